"""This module finds and removes what killed runs left.

A thing is ours when a record vouches for it: by the ID in its name, by the name a loop device was given, by a path the
record lists. What only looks like ours, and whatever belongs to a live run, is never touched. Records are read after a
thing was seen, never before: they are written before the first thing they stand for and removed after the last.

No file is executed in a namespace that somebody else may have shaped (``harness.machine.mount_table``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import MachineError
from harness.kernel import loop
from harness.machine import cgroup, network_filter, records, shaping
from harness.machine.mount_table import find_mounts, mounts_below
from harness.machine.records import ENVIRONMENT_MARK, PREFIX, ProcessId, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{8}})")
_INTERFACE_NAME = re.compile(rf"{records.INTERFACE_PREFIX}([0-9a-f]{{8}})[a-z]")

_HALF_WRITTEN_S = 60.0
"""A record younger than this may be about to get its name."""


@dataclass(frozen=True)
class Leftover:
    """Names one thing of one dead run. ``remove`` takes it away; what it was part of may already
    have taken it along.
    """

    kind: str
    what: str
    id: str
    remove: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


class Titles:
    """Knows which IDs belong to dead runs. With ``mine``, this very process counts as one of them."""

    def __init__(self, mine: bool) -> None:
        self._own = ProcessId.of(os.getpid()) if mine else None

    def dead(self, found: str) -> Record | None:
        """Returns the record of a dead run with this ID; None for a live one's, and where nobody vouches for the ID."""
        if not records.is_trusted(records.RUN_DIR):
            return None
        record = Record.load(records.RUN_DIR / f"{found}.json")
        if record is None or (record.owner.alive and record.owner != self._own):
            return None
        return record

    def match(self, pattern: re.Pattern[str], name: str) -> str:
        """Returns the ID of a dead run that ``name`` carries; empty for any other name."""
        match = pattern.fullmatch(name)
        return match[1] if match and self.dead(match[1]) is not None else ""


def find_leftovers(mine: bool = False) -> list[Leftover]:
    """Finds everything dead runs left, in the order in which it has to go.

    With ``mine``, also what this very process still holds: for tests that look after tear-down. Needs root.
    """
    titles = Titles(mine)
    dead = [record for record in records.stored() if titles.dead(record.id) is not None]
    found: list[Leftover] = []
    found += _processes(dead, titles)
    found += _groups(titles)
    found += _mounts(dead)
    found += _loops(titles)
    found += _interfaces(titles)
    found += _tables(dead)
    found += _files(dead)
    # A record goes after all that it vouches for: without it nothing of that would be found any more.
    return [*found, *_records(dead, {leftover.id for leftover in found}), *_half_written()]


def sweep() -> list[str]:
    """Removes all of it, looking again because things go in steps; returns what was removed, in words."""
    removed: list[str] = []
    for _round in range(5):
        with records.host_lock():
            found = find_leftovers()
            for leftover in found:
                with contextlib.suppress(OSError, MachineError):
                    leftover.remove()
        removed += [text for text in map(str, found) if text not in removed]
        if not found:
            break
        time.sleep(0.1)
    return removed


def _processes(dead: list[Record], titles: Titles) -> Iterator[Leftover]:
    seen: set[int] = {os.getpid()}
    for record in dead:
        for process in record.processes:
            if process.alive and process.pid not in seen:
                seen.add(process.pid)
                yield Leftover("process", _command(process.pid), record.id, _killer(process))
    mark = f"{ENVIRONMENT_MARK}=".encode()
    for pid in _all_pids():
        process_id = ProcessId.of(pid)
        if pid in seen or process_id is None:
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        for variable in environment.split(b"\0"):
            if not variable.startswith(mark) or not _is_roots(pid):
                continue
            if found := titles.match(_NAME, variable.removeprefix(mark).decode("ascii", "replace")):
                yield Leftover("process", _command(pid), found, _killer(process_id))


def _is_roots(pid: int) -> bool:
    """Says whether a process is root's in every respect: anybody may give his own the environment he likes."""
    for line in cgroup.read_text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("Uid:"):
            return set(line.split()[1:]) == {"0"}
    return False


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


def _groups(titles: Titles) -> Iterator[Leftover]:
    for root in cgroup.find_mounts().roots:
        for path in sorted(root.glob(f"{PREFIX}*")):
            if found := titles.match(_NAME, path.name):
                yield Leftover("control group", str(path), found, _group_remover(path))


def _group_remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        for name, value in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max"), ("pids.max", "0")):
            with contextlib.suppress(OSError):
                (path / name).write_text(value, "ascii")
        cgroup.kill_all(path)
        cgroup.remove_tree(path)

    return remove


def _mounts(dead: list[Record]) -> Iterator[Leftover]:
    for found in find_mounts(dead):
        yield Leftover("mount", str(found), found.record, found.unmount)


def _loops(titles: Titles) -> Iterator[Leftover]:
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = f"/dev/{path.parent.parent.name}"
        if found := titles.match(_NAME, loop.name_of(device)):
            yield Leftover("loop device", device, found, _loop_clearer(device, f"{PREFIX}{found}"))


def _loop_clearer(device: str, name: str) -> Callable[[], None]:
    def clear() -> None:
        with open(device, "rb") as file:
            if loop.name_of(device) == name:
                fcntl.ioctl(file, loop.CLR_FD)

    return clear


def _interfaces(titles: Titles) -> Iterator[Leftover]:
    for name in shaping.interfaces():
        if found := titles.match(_INTERFACE_NAME, name):
            yield Leftover("interface", name, found, lambda name=name: shaping.remove_interface(name))  # type: ignore[misc]
    for address, label in shaping.loopback_addresses().items():
        if found := titles.match(_INTERFACE_NAME, label):
            yield Leftover(
                "address", address, found, lambda address=address: shaping.remove_loopback_address(address)  # type: ignore[misc]
            )  # fmt: skip


def _tables(dead: list[Record]) -> Iterator[Leftover]:
    there = network_filter.tables() if dead else []
    for record in dead:
        if record.id in there:
            yield Leftover("nftables table of", record.name, record.id, lambda r=record: network_filter.detach(r))  # type: ignore[misc]


def _files(dead: list[Record]) -> Iterator[Leftover]:
    for record in dead:
        for file in record.files:
            with contextlib.suppress(OSError):
                # The path is known to all once we are gone; what stands there may be another user's.
                if os.lstat(file).st_uid == 0:
                    yield Leftover("file", file, record.id, _file_remover(Path(file)))


def _records(dead: list[Record], busy: set[str]) -> Iterator[Leftover]:
    for record in dead:
        if record.id in busy:
            continue
        if record.directory.is_dir():
            yield Leftover("directory", str(record.directory), record.id, _file_remover(record.directory))
        yield Leftover("record", str(record.path), record.id, _file_remover(record.path))


def _half_written() -> Iterator[Leftover]:
    """Finds records that were never finished: nothing had been made for them yet."""
    if not records.is_trusted(records.RUN_DIR):
        return
    for path in sorted(records.RUN_DIR.glob("*.tmp")):
        match = re.fullmatch(r"([0-9a-f]{8})\.[0-9]+\.tmp", path.name)
        if match and time.time() - _modified(path) > _HALF_WRITTEN_S:
            yield Leftover("record", str(path), match[1], _file_remover(path))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _file_remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif not mounts_below(path):
            records.remove_directory(path)

    return remove
