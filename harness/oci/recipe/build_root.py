"""The tree a layer is built in: OverlayFS over the layers below, in a mount namespace that dies with the command.

Every command runs under ``unshare --mount``, so that not even a kill leaves a mount behind.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ContentError, HostUnfit, MissingTool, NotRoot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 4


def need_tool(name: str, package: str) -> str:
    """Path of a program, or MissingTool naming the Debian package that has it."""
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"{name} is not installed; install it with: apt-get install {package}")
    return path


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotRoot(f"{what} needs root (owners, device nodes, chroot); run it with sudo")


def run(argv: Sequence[str], env: Mapping[str, str] | None = None, what: str = "") -> str:
    """Run a command; its output, or ContentError with the last lines of what it said."""
    try:
        done = subprocess.run(
            list(argv),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise HostUnfit(f"{argv[0]}: cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
        errors = [line for line in said if line.startswith(("E:", "ERROR", "npm ERR", "npm error", "error"))]
        tail = " | ".join(line.strip() for line in (errors or said)[-_TAIL_LINES:])
        raise ContentError(f"{what or argv[0]} failed with code {done.returncode}: {tail}")
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class BuildRoot:
    """``lowers`` bottom first; what commands change ends up in ``upper`` as OverlayFS keeps it."""

    scratch: Path
    lowers: tuple[Path, ...]

    @property
    def upper(self) -> Path:
        return self.scratch / "upper"

    @property
    def merged(self) -> Path:
        return self.scratch / "merged"

    def prepare(self) -> None:
        for directory in (self.upper, self.merged, self.scratch / "work"):
            directory.mkdir()
        self.upper.chmod(0o755)

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], chroot: bool, what: str, network: bool = False
    ) -> str:
        """Run a command with the tree mounted at ``merged``: inside it, or on the host beside it."""
        merged = shlex.quote(str(self.merged))
        steps = ["set -e", self._mount_line()]
        if chroot:
            steps += [
                f"mount -t proc proc {merged}/proc",
                f"mount -t tmpfs tmpfs {merged}/tmp",
                f"mount --bind /dev {merged}/dev",
            ]
            if network:
                # A copy in the upper directory, which cleaning takes away again: no image keeps this host's.
                steps.append(f"rm -f {merged}/etc/resolv.conf; cp -L /etc/resolv.conf {merged}/etc/resolv.conf || :")
        command = " ".join(shlex.quote(part) for part in argv)
        steps.append(f"chroot {merged} {command}" if chroot else command)
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)]
        return run(argv, env, what)

    def find(self, name: str) -> Path | None:
        """A file of the tree as it stands, the topmost one; symbolic links are not followed."""
        for directory in (self.upper, *reversed(self.lowers)):
            path = directory / name.lstrip("/")
            if os.path.lexists(path):
                return path
        return None

    def _mount_line(self) -> str:
        merged = shlex.quote(str(self.merged))
        lowers = ":".join(str(path) for path in reversed(self.lowers))
        options = (
            f"lowerdir={lowers},upperdir={self.upper},workdir={self.scratch / 'work'}"
            ",redirect_dir=off,metacopy=off,index=off"
        )
        return f"mount -t overlay overlay -o {shlex.quote(options)} {merged}"


def plain_environment(epoch_s: int) -> dict[str, str]:
    """The caller's environment in the C locale, with SOURCE_DATE_EPOCH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "LC_"))}
    return kept | {"SOURCE_DATE_EPOCH": str(epoch_s), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
