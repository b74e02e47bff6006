"""Finds and removes what killed runs left: by their records, and by name where a record is missing.

What belongs to a live run is never touched: an ID whose record names a live owner is skipped wherever it turns up.
A record is written before the first thing it stands for is made, and removed after the last has gone; so it is read
after a thing was seen, never before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.kernel import loop
from harness.machine import cgroup, records, shaping
from harness.machine.records import ENVIRONMENT_MARK, PREFIX, ProcessId, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ID = re.compile(rf"{PREFIX}([0-9a-f]{{8}})(?![0-9a-f])")
_INTERFACE_ID = re.compile(rf"{records.INTERFACE_PREFIX}([0-9a-f]{{8}})[a-z]$")
_PATH_ID = re.compile(rf"(?:{re.escape(str(records.RUN_DIR))}/|{PREFIX})([0-9a-f]{{8}})")

_HALF_WRITTEN_S = 60.0
"""A record younger than this may be about to get its name."""


@dataclass(frozen=True)
class Leftover:
    """One thing of one dead run. ``remove`` takes it away; what it was part of may already have taken it along."""

    kind: str
    what: str
    id: str
    remove: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


def find_leftovers(mine: bool = False) -> list[Leftover]:
    """Everything dead runs left, in the order in which it has to go.

    With ``mine``, also what this very process still holds: for tests that look after tear-down. Needs root.
    """
    own = ProcessId.of(os.getpid())

    def is_dead(found: str) -> bool:
        record = Record.load(records.RUN_DIR / f"{found}.json")
        return record is None or not record.owner.alive or (mine and record.owner == own)

    dead = [record for record in records.stored() if is_dead(record.id)]
    found: list[Leftover] = []
    found += _processes(dead, is_dead)
    found += _groups(is_dead)
    found += _mounts(is_dead)
    found += _loops(is_dead)
    found += _interfaces(is_dead)
    found += _files(dead, is_dead)
    return found


def sweep() -> list[str]:
    """Remove all of it, looking again because things go in steps; what was removed, in words."""
    removed: list[str] = []
    for _round in range(5):
        with records.host_lock():
            found = find_leftovers()
            for leftover in found:
                with contextlib.suppress(OSError):
                    leftover.remove()
        removed += [text for text in map(str, found) if text not in removed]
        if not found:
            break
        time.sleep(0.1)
    return removed


def _processes(dead: list[Record], is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    seen: set[int] = set()
    for record in dead:
        for process in record.processes:
            if process.alive and process.pid not in seen:
                seen.add(process.pid)
                yield Leftover("process", _command(process.pid), record.id, _killer(process))
    mark = f"{ENVIRONMENT_MARK}={PREFIX}".encode()
    for pid in _all_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if mark not in environment or pid in seen or pid == os.getpid():
            continue
        for variable in environment.split(b"\0"):
            found = variable.removeprefix(mark).decode("ascii", "replace") if variable.startswith(mark) else ""
            process_id = ProcessId.of(pid)
            if found and is_dead(found) and process_id is not None:
                yield Leftover("process", _command(pid), found, _killer(process_id))


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        words = ""
    return f"{pid} ({words.strip()[:80]})"


def _killer(process: ProcessId) -> Callable[[], None]:
    def kill() -> None:
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    return kill


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _groups(is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    for root in cgroup.find_mounts().roots:
        for path in sorted(root.glob(f"{PREFIX}*")):
            match = _ID.match(path.name)
            if match and is_dead(match[1]):
                yield Leftover("control group", str(path), match[1], _group_remover(path))


def _group_remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        for name, value in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max"), ("pids.max", "0")):
            with contextlib.suppress(OSError):
                (path / name).write_text(value, "ascii")
        cgroup.kill_all(path)
        cgroup.remove_tree(path)

    return remove


def _mounts(is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    """Mounts at or of our names in any mount namespace, deepest first; one process stands for its namespace."""
    seen: set[int] = set()
    for pid in _all_pids():
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            lines = Path(f"/proc/{pid}/mountinfo").read_text("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        seen.add(namespace)
        for line in reversed(lines):
            match = _PATH_ID.search(line)
            if match and is_dead(match[1]):
                target = line.split()[4].encode().decode("unicode_escape")
                yield Leftover("mount", f"{target} (namespace of {pid})", match[1], _unmounter(pid, target))


def _unmounter(pid: int, target: str) -> Callable[[], None]:
    def unmount() -> None:
        subprocess.run(
            ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "umount", "-l", target], capture_output=True, check=False
        )

    return unmount


def _loops(is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        match = _ID.search(cgroup.read_text(path))
        if match and is_dead(match[1]):
            device = f"/dev/{path.parent.parent.name}"
            yield Leftover("loop device", device, match[1], _loop_clearer(device))


def _loop_clearer(device: str) -> Callable[[], None]:
    def clear() -> None:
        with open(device, "rb") as file:
            fcntl.ioctl(file, loop.CLR_FD)

    return clear


def _interfaces(is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    for name in shaping.interfaces():
        match = _INTERFACE_ID.match(name)
        if match and is_dead(match[1]):
            yield Leftover("interface", name, match[1], lambda name=name: shaping.remove_interface(name))  # type: ignore[misc]
    for address, label in shaping.loopback_addresses().items():
        match = _INTERFACE_ID.match(label)
        if match and is_dead(match[1]):
            yield Leftover(
                "address", address, match[1], lambda address=address: shaping.remove_loopback_address(address)  # type: ignore[misc]
            )  # fmt: skip


def _files(dead: list[Record], is_dead: Callable[[str], bool]) -> Iterator[Leftover]:
    for record in dead:
        for file in record.files:
            if os.path.lexists(file):
                yield Leftover("file", file, record.id, _file_remover(Path(file)))
    if records.RUN_DIR.is_dir():
        for path in sorted(records.RUN_DIR.iterdir()):
            found = path.name.partition(".")[0]
            half_written = path.suffix == ".tmp" and time.time() - _modified(path) < _HALF_WRITTEN_S
            if re.fullmatch("[0-9a-f]{8}", found) and not half_written and is_dead(found):
                kind = "directory" if path.is_dir() else "record"
                yield Leftover(kind, str(path), found, _file_remover(path))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _file_remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        if path.is_dir() and not path.is_symlink():
            if not any(os.path.ismount(entry) for entry in path.iterdir()):
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    return remove
