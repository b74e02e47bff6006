"""This module makes the machine's disk: a sparse file behind a loop device, formatted ext4 with its defaults.

The file is unlinked as soon as the device holds it, and the device clears itself when its mount goes, so that nothing
is left even if the harness is killed. Direct I/O towards the file keeps its pages out of the host's cache: what the
machine has not cached comes from the disk. Inode tables of a fresh sparse file are zero already, so no initialising
thread runs in the timed part (``noinit_itable``).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DiskFull, MachineError, MissingTool
from harness.kernel import loop

MOUNT_OPTIONS = "noinit_itable"
SECTOR_BYTES = 512
DEFAULT_BYTES = 32 << 30
_LEAST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Counts what reached the device and came from it."""

    read_bytes: int
    written_bytes: int


def default_directory() -> Path:
    """Returns where the files behind scratch disks are: ``COLDBENCH_SCRATCH``, else ``/var/tmp``."""
    return Path(os.environ.get("COLDBENCH_SCRATCH") or "/var/tmp").absolute()


def default_size(directory: Path) -> int:
    """Returns room for any image, but never all that is left where the file is: a workload may fill its disk."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    status = os.statvfs(existing)
    return max(_LEAST_BYTES, min(DEFAULT_BYTES, status.f_bavail * status.f_frsize * 3 // 4))


class ScratchDisk:
    """Holds one loop device over one unlinked file. ``device`` is to be mounted; ``close`` lets go of it.

    The open descriptor keeps the device until the machine has mounted it; after that the mount does.
    """

    def __init__(self, name: str, size_bytes: int, directory: Path) -> None:
        """Makes the file and the device; ``DiskFull``, ``MissingTool`` or ``MachineError`` if that fails."""
        mkfs = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
        if mkfs is None:
            raise MissingTool("mkfs.ext4 is not installed; install the package e2fsprogs")
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.img"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size_bytes)
            made = subprocess.run(
                [mkfs, "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-L", name[:16], str(path)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode != 0:
                raise MachineError(f"mkfs.ext4 of the scratch disk failed: {made.stderr.strip().splitlines()[-1:]}")
            self._fd, self.device = loop.attach(file, name.encode(), loop.AUTOCLEAR | loop.DIRECT_IO)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(
                    f"no space for the scratch disk in {directory}; choose another (COLDBENCH_SCRATCH)"
                ) from None
            raise MachineError(f"cannot make the scratch disk in {directory}: {error.strerror}") from error
        finally:
            os.close(file)
            path.unlink(missing_ok=True)
        status = os.stat(self.device)
        self.number = (os.major(status.st_rdev), os.minor(status.st_rdev))

    def use(self) -> DiskUse:
        """Returns the bytes so far (kernel: admin-guide/iostats, sectors read and written)."""
        text = Path(f"/sys/dev/block/{self.number[0]}:{self.number[1]}/stat").read_text("ascii").split()
        return DiskUse(int(text[2]) * SECTOR_BYTES, int(text[6]) * SECTOR_BYTES)

    def close(self) -> None:
        """Lets go; the device clears itself once it is mounted nowhere."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
