"""This module reads how much CPU time this machine has used, and how many cores it may use, as a process inside sees
it.

A machine with a quota is the nearest control group above this process that has one, version 1 or 2; it is asked for
its own usage, so what other machines on the same host do does not count. Without a quota the machine is the host, and
``/proc/stat`` says how long its cores were not idle (kernel: admin-guide/cgroup-v1/cpuacct, admin-guide/cgroup-v2,
proc_stat(5)). Reading takes some 20 us. The quota is read each time, since credits move it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_IDLE_FIELDS = (3, 4)
"""They are ``idle`` and ``iowait`` among the numbers of a line of /proc/stat."""


@dataclass(frozen=True, slots=True)
class CpuReading:
    """Holds the CPU seconds used since some moment in the past, and how many cores may be used now.

    ``delayed_s``: how long this thread could have run since its start and did not get to, for want of quota or because
    others had the cores (``schedstat``, kernel: scheduler/sched-stats); 0 where the kernel does not say.
    """

    used_s: float
    cores: float
    delayed_s: float = 0.0


class CpuMeter:
    """Reads usage and limit; ``proc`` is where the kernel shows them. It never raises: what is not seen is None."""

    def __init__(self, proc: str = "/proc") -> None:
        self._stat = os.path.join(proc, "stat")
        self._delays = os.path.join(proc, "thread-self", "schedstat")
        try:
            self._groups = list(_groups(proc))
        except OSError:
            self._groups = []

    def read(self) -> CpuReading | None:
        """Reads usage and limit now; each is None where the kernel does not show it."""
        try:
            for group in self._groups:
                cores = group.cores()
                if cores is not None:
                    return CpuReading(group.used_s(), cores, self._delayed_s())
            return CpuReading(self._host_used_s(), float(len(os.sched_getaffinity(0))), self._delayed_s())
        except (OSError, ValueError, IndexError):
            return None

    def _delayed_s(self) -> float:
        try:
            return int(_text(self._delays).split()[1]) / 1e9
        except OSError:
            return 0.0

    def _host_used_s(self) -> float:
        with open(self._stat, encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        busy = sum(ticks) - sum(ticks[field] for field in _IDLE_FIELDS)
        return busy / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _GroupV1:
    limit: str
    usage: str

    def cores(self) -> float | None:
        quota_us = int(_text(os.path.join(self.limit, "cpu.cfs_quota_us")))
        if quota_us <= 0:
            return None
        return quota_us / int(_text(os.path.join(self.limit, "cpu.cfs_period_us")))

    def used_s(self) -> float:
        return int(_text(os.path.join(self.usage, "cpuacct.usage"))) / 1e9


@dataclass(frozen=True, slots=True)
class _GroupV2:
    directory: str

    def cores(self) -> float | None:
        quota, period = _text(os.path.join(self.directory, "cpu.max")).split()
        return None if quota == "max" else int(quota) / int(period)

    def used_s(self) -> float:
        pairs = dict(line.split() for line in _text(os.path.join(self.directory, "cpu.stat")).splitlines())
        return int(pairs["usage_usec"]) / 1e6


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _groups(proc: str) -> Iterator[_GroupV1 | _GroupV2]:
    """Yields the groups of this process that can have a quota, innermost first."""
    mounts: dict[str, tuple[str, str]] = {}
    with open(os.path.join(proc, "self", "mountinfo"), encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            root, point = left.split()[3:5]
            kind, _, options = right.split(maxsplit=2)
            if kind == "cgroup":
                for controller in options.strip().split(","):
                    mounts.setdefault(controller, (root, point))
            elif kind == "cgroup2":
                mounts.setdefault("", (root, point))
    paths: dict[str, str] = {}
    with open(os.path.join(proc, "self", "cgroup"), encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path
    if "cpu" in mounts and "cpuacct" in mounts and "cpu" in paths:
        for limit, usage in zip(_upwards(mounts["cpu"], paths["cpu"]),
                                _upwards(mounts["cpuacct"], paths.get("cpuacct", "/")), strict=False):  # fmt: skip
            if os.path.exists(os.path.join(limit, "cpu.cfs_quota_us")):
                yield _GroupV1(limit, usage)
    elif "" in mounts and "" in paths:
        for directory in _upwards(mounts[""], paths[""]):
            if os.path.exists(os.path.join(directory, "cpu.max")):
                yield _GroupV2(directory)


def _upwards(mount: tuple[str, str], path: str) -> Iterator[str]:
    """Yields the directories of the group ``path`` and of those above it, as far as the mount shows them."""
    root, point = mount
    relative = os.path.relpath(path, root) if path.startswith(root) else path.lstrip("/")
    parts = [part for part in relative.split("/") if part not in {"", "."}]
    for count in range(len(parts), -1, -1):
        yield os.path.join(point, *parts[:count])
