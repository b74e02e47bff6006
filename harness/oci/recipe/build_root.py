"""This module makes the tree a layer is built in: OverlayFS over the layers below, in name spaces that die with the
command.

Every command runs by ``contained.py``, so that not even a kill leaves a mount or a process behind, and what scripts of
packages can reach is the tree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ContentError, HostUnfit, MissingTool, NotRoot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TAIL_LINES = 4
_CONTAINED = Path(__file__).with_name("contained.py")


def need_tool(name: str, package: str) -> str:
    """Returns the path of a program, or raises MissingTool naming the Debian package that has it."""
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"{name} is not installed; install it with: apt-get install {package}")
    return path


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotRoot(f"{what} needs root (owners, device nodes, chroot); run it with sudo")


def run(argv: Sequence[str], env: Mapping[str, str] | None = None, what: str = "") -> str:
    """Runs a command and returns its output, or raises ContentError with the last lines of what it said."""
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
    """Mounts ``lowers``, bottom first; what commands change ends up in ``upper`` as OverlayFS keeps it."""

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
        """Runs a command with the tree mounted at ``merged``: inside it, or on the host beside it."""
        request = {
            "where": "tree" if chroot else "host",
            "tree": str(self.merged),
            "overlay": self._overlay_options(),
            "network": network,
            "command": list(argv),
        }
        return run_contained(request, env, what)

    def find(self, name: str) -> Path | None:
        """Finds a file of the tree as it stands, the topmost one; symbolic links are not followed."""
        for directory in (self.upper, *reversed(self.lowers)):
            path = directory / name.lstrip("/")
            if os.path.lexists(path):
                return path
        return None

    def _overlay_options(self) -> str:
        lowers = ":".join(str(path) for path in reversed(self.lowers))
        return (
            f"lowerdir={lowers},upperdir={self.upper},workdir={self.scratch / 'work'}"
            ",redirect_dir=off,metacopy=off,index=off"
        )


def run_contained(request: Mapping[str, object], env: Mapping[str, str], what: str) -> str:
    """Runs a command as `contained.py` reads it; returns its output, or raises ContentError with its last lines."""
    return run([sys.executable, "-I", str(_CONTAINED), json.dumps({**request, "parent": os.getpid()})], env, what)


def plain_environment(epoch_s: int) -> dict[str, str]:
    """Returns the caller's environment in the C locale, with SOURCE_DATE_EPOCH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "LC_"))}
    return kept | {"SOURCE_DATE_EPOCH": str(epoch_s), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
