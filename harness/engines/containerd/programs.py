"""This module finds the programs this engine runs, says which versions serve, and how to get what is missing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.engines.build.programs import find
from harness.engines.protocol import Availability, Program
from harness.model.policy import Snapshotter

if TYPE_CHECKING:
    from harness.model.engine import ContainerdChoice

#: Its transfer service takes snapshotters' labels from the configuration, and unpacks layers in parallel.
OLDEST_CONTAINERD = (2, 2)
#: Makes a file system from a tar stream as containerd asks it to (erofs-utils' own history).
OLDEST_MKFS_EROFS = (1, 7)
_HOW = "build it with `./dev engines` (or `nox -s engines`; needs Go)"
_VERSION = re.compile(r"\bv?(\d+(?:\.\d+)+)")


@dataclass(frozen=True)
class Programs:
    """Holds paths of what one mode needs; empty for what is not there."""

    containerd: str
    shim: str
    helper: str
    runtime: str
    daemon: str = ""
    daemon_name: str = ""
    mkfs_erofs: str = ""

    @property
    def path(self) -> str:
        """Returns the PATH of the daemons: containerd finds its shim there, and the runtime and mkfs.erofs."""
        found = [self.shim, self.containerd, self.runtime, self.mkfs_erofs]
        directories = [str(Path(program).parent) for program in found if program]
        return ":".join(dict.fromkeys([*directories, "/usr/sbin", "/usr/bin", "/sbin", "/bin"]))


#: Snapshotter daemons by the name of the snapshotter: the program of ours or the project's, first found.
DAEMONS = {
    Snapshotter.STARGZ: ("coldbench-stargz", "containerd-stargz-grpc"),
    Snapshotter.SOCI: ("soci-snapshotter-grpc",),
}


def locate(choice: ContainerdChoice, snapshotter: Snapshotter) -> Programs:
    """Looks for everything a snapshotter needs."""
    containerd = find("containerd", choice.containerd or os.environ.get("COLDBENCH_CONTAINERD", ""))
    beside = str(Path(containerd).parent / "containerd-shim-runc-v2") if containerd else ""
    shim = beside if os.access(beside, os.X_OK) else find("containerd-shim-runc-v2")
    names = DAEMONS.get(snapshotter, ())
    named = {Snapshotter.STARGZ: choice.stargz, Snapshotter.SOCI: choice.soci}.get(snapshotter, "")
    daemon = find(names[0], named) if named else next((path for name in names if (path := find(name))), "")
    return Programs(
        containerd=containerd,
        shim=shim,
        helper=find("coldbench-containerd-helper"),
        runtime=shutil.which("runc") or shutil.which("crun") or "",
        daemon=daemon,
        daemon_name=named or (names[0] if names else ""),
        mkfs_erofs=shutil.which("mkfs.erofs") or "" if snapshotter is Snapshotter.EROFS else "",
    )


def check(choice: ContainerdChoice, snapshotter: Snapshotter) -> Availability:
    """Says whether this host has all that a snapshotter needs, in versions that serve."""
    found = locate(choice, snapshotter)
    version = version_of(found.containerd)
    programs = [
        Program("containerd", found.containerd, version),
        Program("runc" if found.runtime.endswith("runc") else "crun", found.runtime, version_of(found.runtime)),
    ]
    if found.daemon_name:
        programs.append(Program(Path(found.daemon_name).name, found.daemon, version_of(found.daemon)))
    if snapshotter is Snapshotter.EROFS:
        programs.append(Program("mkfs.erofs", found.mkfs_erofs, mkfs_version(found.mkfs_erofs)))
    return Availability(tuple(programs), _reason(choice, found, version, snapshotter))


def _reason(choice: ContainerdChoice, found: Programs, version: str, snapshotter: Snapshotter) -> str:
    if not found.containerd:
        where = f" at {choice.containerd}" if choice.containerd else ""
        return f"there is no containerd{where}; {_HOW}"
    if numbers(version) < OLDEST_CONTAINERD:
        wanted = ".".join(map(str, OLDEST_CONTAINERD))
        said = version or "of an unknown version"
        return f"containerd {said} ({found.containerd}) is too old, {wanted} or newer is wanted; {_HOW}"
    if not found.shim:
        return f"there is no containerd-shim-runc-v2 beside {found.containerd} or on the PATH; {_HOW}"
    if not found.helper:
        return f"coldbench's own helper for containerd is not built; {_HOW}"
    if not found.runtime:
        return "there is neither runc nor crun; apt-get install runc"
    if found.daemon_name and not found.daemon:
        return f"there is no {found.daemon_name}; {_HOW}"
    if snapshotter is Snapshotter.EROFS and numbers(mkfs_version(found.mkfs_erofs)) < OLDEST_MKFS_EROFS:
        wanted = ".".join(map(str, OLDEST_MKFS_EROFS))
        said = mkfs_version(found.mkfs_erofs) or "not installed"
        return (
            f"mkfs.erofs is {said}, containerd's erofs snapshotter wants {wanted} or newer; install a newer erofs-utils"
        )
    return ""


def numbers(version: str) -> tuple[int, ...]:
    """Returns a version as numbers that compare; empty, and so the oldest, for none."""
    found = _VERSION.search(version)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def version_of(program: str) -> str:
    """Returns what a program says of its own version; empty when it says nothing one can read."""
    return _said(program, os.stat(program).st_mtime_ns, "--version") if program else ""


def mkfs_version(program: str) -> str:
    """Returns the version of mkfs.erofs, which older ones tell on ``-V`` only."""
    return _said(program, os.stat(program).st_mtime_ns, "-V") if program else ""


@functools.cache
def _said(program: str, _changed_ns: int, option: str) -> str:
    try:
        done = subprocess.run(
            [program, option], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout) or _VERSION.search(done.stderr)
    return found.group(1) if found else ""
