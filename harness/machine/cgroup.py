"""This module is the cgroup seam: limits go in, counters come out; versions 1 and 2 stand behind one Protocol.

Everything reads and writes below a root that is passed in, so that both drivers are tested on plain directories.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.errors import HostUnfit, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.machine.devices import DeviceRule

CONFINED = "confined"
"""This is the name of the group below a machine's in which containers are."""

UNLIMITED = -1

KILL_TIMEOUT_S = 20.0
"""A killed process that waits for a FUSE request goes only after the daemon that serves it."""


@dataclass(frozen=True, slots=True)
class CpuLimit:
    """Allows ``quota_us`` of CPU time per ``period_us``; ``quota_us`` is ``UNLIMITED`` for none."""

    quota_us: int
    period_us: int

    @classmethod
    def of_cores(cls, cores: float | None, period_us: int) -> CpuLimit:
        """Returns the limit for so many cores (None: unlimited). The kernel takes no quota below 1 ms."""
        if cores is None:
            return cls(UNLIMITED, period_us)
        return cls(max(1000, round(cores * period_us)), period_us)

    @property
    def cores(self) -> float | None:
        return None if self.quota_us < 0 else self.quota_us / self.period_us


@dataclass(frozen=True, slots=True)
class IoLimit:
    """Limits one block device, for reads and writes each; None is unlimited."""

    device: tuple[int, int]
    bytes_per_s: int | None = None
    iops: int | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Holds what was charged to the machine since it was made. Times are in seconds.

    ``memory_peak_bytes`` includes the page cache, as the kernel counts it; ``memory_cache_bytes`` is what of
    ``memory_bytes`` is page cache now, tmpfs included. ``io_written_bytes`` is what reached the
    machine's own disk (from the device, so that writeback counts under both versions).
    """

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    cpu_total_s: float = 0.0
    nr_periods: int = 0
    nr_throttled: int = 0
    throttled_s: float = 0.0
    memory_peak_bytes: int = 0
    memory_bytes: int = 0
    memory_cache_bytes: int = 0
    oom_kills: int = 0
    io_written_bytes: int = 0
    io_read_bytes: int = 0

    def since(self, earlier: Counters) -> Counters:
        """Returns the difference to an earlier snapshot; peaks and levels stay as they are now.

        The total of CPU seconds is exact. How it divides into user and system is the kernel's estimate over all of it,
        which may be put right from one snapshot to the next: neither part is ever less than nothing.
        """
        levels = {"memory_peak_bytes", "memory_bytes", "memory_cache_bytes"}
        used = Counters(
            **{
                f.name: getattr(self, f.name) - (0 if f.name in levels else getattr(earlier, f.name))
                for f in fields(Counters)
            }
        )
        user_s = min(max(0.0, used.cpu_user_s), max(0.0, used.cpu_total_s))
        if user_s == used.cpu_user_s and used.cpu_system_s >= 0:
            return used
        return replace(used, cpu_user_s=user_s, cpu_system_s=max(0.0, used.cpu_total_s - user_s))


class CgroupDriver(Protocol):
    """Drives one control group, named once; ``create`` comes first, ``remove`` last. Raises ``MachineError``."""

    version: int
    name: str
    writeback_limited: bool
    """Says whether an I/O limit also holds for buffered writes (version 1 sees only direct and synchronous ones)."""

    @property
    def parent(self) -> str:
        """Returns the path of this group within its hierarchy, for runtimes that make groups of their own below it."""
        ...

    def create(self) -> None: ...

    def entry_files(self) -> Sequence[str]:
        """Returns the files into which a process writes ``0`` to move itself in."""
        ...

    def confine(self, rules: Sequence[DeviceRule]) -> Sequence[str]:
        """Returns the entry files of a group below this one in which only these devices can be used.

        What is charged stays the same. Called again, it changes the list. Raises ``HostUnfit`` where the kernel has no
        device lists.
        """
        ...

    def set_cpu(self, limit: CpuLimit) -> None: ...

    def read_cpu(self) -> CpuLimit: ...

    def set_memory(self, limit_bytes: int | None) -> None:
        """Limits memory including page cache; there is no swap beyond it."""
        ...

    def read_memory(self) -> int | None: ...

    def set_pids(self, limit: int | None) -> None: ...

    def read_pids(self) -> int | None: ...

    def set_io(self, limit: IoLimit) -> bool:
        """Limits the disk, and says whether the kernel took it (a device or kernel without throttling does not)."""
        ...

    def counters(self) -> Counters: ...

    def cpu_used_s(self) -> float:
        """Returns CPU seconds used so far; this is the one counter that is read many times a second."""
        ...

    def reset_peak(self) -> None:
        """Starts the memory peak anew, where the kernel can."""
        ...

    def drop_cache(self) -> None:
        """Gives back the page cache charged to the group, where the kernel can."""
        ...

    def pids(self) -> list[int]:
        """Returns the processes in the group and in groups below it."""
        ...

    def kill(self) -> None:
        """Kills all of them and waits until they are gone."""
        ...

    def remove(self) -> None:
        """Removes the group and all below it; it must be empty. Nothing happens if it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class CgroupMounts:
    """Says where this host has its hierarchies: ``v1`` maps a controller to its mount point, ``v2`` is the unified one.

    ``others`` are mount points of further version 1 hierarchies, which no machine is in (runc makes groups there).
    """

    v1: dict[str, Path]
    v2: Path | None
    others: tuple[Path, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """Returns every hierarchy once."""
        unified = () if self.v2 is None else (self.v2,)
        return tuple(sorted({*self.v1.values(), *unified, *self.others}))

    @property
    def hybrid_controllers(self) -> tuple[str, ...]:
        """Returns the controllers that the version 2 hierarchy holds on a host whose machines use version 1."""
        if self.version != 1 or self.v2 is None:
            return ()
        return tuple(read_text(self.v2 / "cgroup.controllers").split())

    @property
    def version(self) -> int:
        """Returns the version that has the cpu controller (a hybrid host keeps its controllers in version 1); 0 for
        none.
        """
        if "cpu" in self.v1 and "memory" in self.v1:
            return 1
        if self.v2 is not None and {"cpu", "memory"} <= set(read_text(self.v2 / "cgroup.controllers").split()):
            return 2
        return 0


def find_mounts(mountinfo: str | None = None) -> CgroupMounts:
    """Finds the hierarchies as ``/proc/self/mountinfo`` lists them (proc_pid_mountinfo(5))."""
    text = read_text(Path("/proc/self/mountinfo")) if mountinfo is None else mountinfo
    v1: dict[str, Path] = {}
    v2: Path | None = None
    others: list[Path] = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _source, options = right.split(" ", 2)
        mount_point = Path(left.split()[4])
        if kind == "cgroup2":
            v2 = v2 or mount_point
        elif kind == "cgroup":
            others.append(mount_point)
            for controller in ("cpu", "cpuacct", "memory", "pids", "blkio", "devices"):
                if controller in options.split(","):
                    v1.setdefault(controller, mount_point)
    return CgroupMounts(v1, v2, tuple(others))


def remove_strays(name: str, mounts: CgroupMounts | None = None) -> None:
    """Removes groups of this name in every hierarchy: a runtime that was killed may have left empty ones."""
    for root in (mounts or find_mounts()).roots:
        if (root / name).is_dir():
            remove_tree(root / name)


def make_driver(name: str, mounts: CgroupMounts | None = None) -> CgroupDriver:
    """Makes the driver for this host: the one place that chooses the version. Raises ``HostUnfit`` if there is none."""
    mounts = mounts or find_mounts()
    if mounts.version == 1:
        from harness.machine.cgroup_v1 import CgroupV1

        return CgroupV1(name, mounts.v1)
    if mounts.version == 2 and mounts.v2 is not None:
        from harness.machine.cgroup_v2 import CgroupV2

        return CgroupV2(name, mounts.v2)
    raise HostUnfit("no cgroup hierarchy with the cpu and memory controllers is mounted; `coldbench doctor` says more")


def read_text(path: Path) -> str:
    """Returns a kernel file's text; empty if it is not there."""
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == 19:  # ENODEV: the group has just gone
            return ""
        raise


def read_pairs(path: Path) -> dict[str, int]:
    """Reads a flat-keyed kernel file such as ``cpu.stat``; values that are no numbers are left out."""
    pairs = {}
    for line in read_text(path).splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            pairs[key] = int(value)
    return pairs


def write_value(path: Path, value: str) -> None:
    """Writes one value in one write(2); ``MachineError`` names the file and the value."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise MachineError(f"cannot write '{value}' to {path}: {error.strerror}") from error


def group_dirs(top: Path) -> Iterator[Path]:
    """Returns the group and all groups below it, children before parents."""
    for directory, _subdirs, _files in os.walk(top, topdown=False):
        yield Path(directory)


def list_pids(top: Path) -> list[int]:
    """Returns the processes in a group and below it."""
    pids: list[int] = []
    for group in group_dirs(top):
        pids += [int(line) for line in read_text(group / "cgroup.procs").split()]
    return pids


def remove_tree(top: Path) -> None:
    """Removes a group and all below it; a group stays busy for a moment after its last process has gone."""
    deadline = time.monotonic() + 5.0
    for group in group_dirs(top):
        while True:
            try:
                group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MachineError(f"cannot remove the control group {group}: {error.strerror}") from error
                time.sleep(0.01)


def kill_all(top: Path) -> None:
    """Sends SIGKILL to every process of a group again and again until none is left; for groups
    without ``cgroup.kill``.
    """
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while pids := list_pids(top):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise MachineError(f"processes {pids} of {top} do not end")
        time.sleep(0.005)
