"""This module finds mounts that records vouch for, in any mount namespace that root here made or copied, and removes
them.

A mount namespace copies the mounts of the one it came from, and keeps their file systems and devices busy. One that
another user namespace owns was made by somebody who need not be root here: it is left alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.kernel.namespaces import owned_by_our_user_namespace, unmount_inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.machine.records import Record


@dataclass(frozen=True, slots=True)
class Mount:
    """Holds one line of a mount table: where it is, and what it is said to be of."""

    target: str
    source: str

    def of(self, record: Record) -> bool:
        """Says whether a record vouches for it; where the user said where to mount, by the mount's source as well."""
        places = (str(record.directory), *record.files)
        if any(_below(self.target, place) for place in places):
            return True
        return self.source == record.name and self.target in record.mounts()


@dataclass(frozen=True, slots=True)
class FoundMount:
    """Names a mount of a dead run in the mount namespace of process ``pid``, whose inode is ``namespace``."""

    mount: Mount
    record: str
    pid: int
    namespace: int

    def __str__(self) -> str:
        return self.mount.target if self.pid == os.getpid() else f"{self.mount.target} (namespace of {self.pid})"

    def unmount(self) -> None:
        """Detaches it, unless the process is another one by now."""
        namespace = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(namespace).st_ino == self.namespace and owned_by_our_user_namespace(namespace):
                unmount_inside(namespace, os.fsencode(self.mount.target))
        finally:
            os.close(namespace)


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Returns the mounts of a namespace, deepest first (proc_pid_mountinfo(5))."""
    mounts = []
    for line in reversed(mountinfo.splitlines()):
        left, _, right = line.partition(" - ")
        mounts.append(Mount(_unescaped(left.split(" ")[4]), _unescaped(right.split(" ")[1])))
    return mounts


def find_mounts(dead: Sequence[Record]) -> Iterator[FoundMount]:
    """Finds what these records vouch for; one process stands for its namespace."""
    if not dead:
        return
    seen: set[int] = set()
    for pid in (os.getpid(), *(int(name) for name in os.listdir("/proc") if name.isdigit())):
        try:
            # A descriptor of this directory is the process itself: another one of its pid is never looked at.
            process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            namespace = os.stat("ns/mnt", dir_fd=process).st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            mounts = _mounts_of(process)
        except OSError:
            continue
        finally:
            os.close(process)
        for record in dead:
            yield from (FoundMount(mount, record.id, pid, namespace) for mount in mounts if mount.of(record))


def _mounts_of(process: int) -> list[Mount]:
    """Returns the mounts of a process; none for one whose namespace is not ours to enter."""
    namespace = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        if not owned_by_our_user_namespace(namespace):
            return []
    finally:
        os.close(namespace)
    with open(os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process), "rb") as file:
        return parse_mounts(os.fsdecode(file.read()))


def mounts_below(directory: Path) -> bool:
    """Says whether anything is mounted at or below a directory, in this process's own namespace."""
    table = parse_mounts(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))
    return any(_below(mount.target, directory) for mount in table)


def _below(path: str, directory: Path | str) -> bool:
    return path == str(directory) or path.startswith(f"{directory}/")


def _unescaped(text: str) -> str:
    """Undoes mountinfo's octal numbers for blanks, newlines and backslashes, byte by byte."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
