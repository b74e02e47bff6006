"""This module makes a loop device over the lazy file, whose backing can be changed while it is mounted.

EROFS keeps the file it was mounted from for as long as it is mounted. A read-only loop device in between does not:
once all bytes are local, it is turned from the FUSE file to the cache file (LOOP_CHANGE_FD), and FUSE is out of the
way. Source: loop(4); Linux, include/uapi/linux/loop.h.
"""

from __future__ import annotations

import fcntl
import os

from harness.kernel import loop

OWNER_VARIABLE = "COLDBENCH_MACHINE"
"""Names the run a process belongs to; a device carries that name, so that it is found when the run was killed."""

_BLOCK_BYTES = 512
LAZY_READ_AHEAD_KIB = 128
"""Sets read-ahead while bytes come over the network: the kernel's 2.5 MB for loop devices would fetch too much."""
_LOCAL_READ_AHEAD_KIB = 2560
"""Says what Linux gives a loop device by itself (two requests of 1 280 KiB)."""


class LoopDevice:
    """Attaches a free device to ``path``, read-only, and holds it open, since it frees itself after its last use."""

    def __init__(
        self, path: str, offset: int = 0, *, read_ahead_kib: int = LAZY_READ_AHEAD_KIB, exact: bool = False
    ) -> None:
        """``offset`` is where the device begins. With ``exact`` the file's own read-ahead adds nothing to the device's.

        Raises OSError when there is no free device or none may be used.
        """
        backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if exact:
                os.posix_fadvise(backing, 0, 0, os.POSIX_FADV_RANDOM)
            self._fd, self.path = loop.attach(
                backing,
                os.fsencode(os.environ.get(OWNER_VARIABLE) or path)[:63],
                loop.READ_ONLY | loop.AUTOCLEAR,
                _BLOCK_BYTES,
                offset,
            )
        finally:
            os.close(backing)
        _set_read_ahead(self.path, read_ahead_kib)

    def close(self) -> None:
        """Lets go of the device: it becomes free when nothing is mounted from it, else when that is unmounted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def change_backing(device: str, backing: int) -> None:
    """Turn ``device`` to the open file ``backing``, which must have the same size and content. Raises OSError.

    Waits for reads under way. Pages are then cached once, by EROFS, if the file system below allows direct reads.
    """
    handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, loop.CHANGE_FD, backing)
        try:
            fcntl.ioctl(handle, loop.SET_DIRECT_IO, 1)
        except OSError:
            pass
    finally:
        os.close(handle)


def read_ahead_as_lazy(device: str) -> None:
    """Sets the device's read-ahead to the usual one of a device over a lazy file."""
    _set_read_ahead(device, LAZY_READ_AHEAD_KIB)


def read_ahead_as_local(device: str) -> None:
    """Sets the device's read-ahead to the usual one again, since its bytes are near now."""
    _set_read_ahead(device, _LOCAL_READ_AHEAD_KIB)


def _set_read_ahead(device: str, kib: int) -> None:
    write_read_ahead(f"/sys/block/{os.path.basename(device)}/queue/read_ahead_kb", kib)


def write_read_ahead(file: str, kib: int) -> bool:
    """Sets a device's read-ahead by its file in sysfs; returns whether sysfs let us."""
    try:
        with open(file, "w") as opened:
            opened.write(str(kib))
    except OSError:
        return False
    return True
