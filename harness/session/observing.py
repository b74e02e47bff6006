"""This module looks at a trial's machine from outside: it reads counters when phases change, and sees mounts and
daemons.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.model.observation import Phase, PhaseUsage, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.machine.cgroup import Counters
    from harness.machine.machine import Machine, Traffic
    from harness.session.setup import RequestLog


@dataclass(frozen=True, slots=True)
class Mark:
    """Holds the machine's counters at one moment."""

    at_ns: int
    counters: Counters
    wire: Traffic
    requests: int | None = 0
    """Counts registry requests so far; None where they are not known."""


@dataclass
class PhaseMeter:
    """Charges counters to phases. A phase begins where the one before ended; marks are in the order of time."""

    machine: Machine
    clock_ns: Callable[[], int]
    requests: RequestLog | None = None
    outside: bool = False
    """Says whether the engine's daemon is outside of the machine, which then knows of no traffic."""
    begin: Mark = field(init=False)
    phases: list[PhaseUsage] = field(default_factory=list)
    _begun: dict[Phase, Mark] = field(default_factory=dict)
    _last: Mark = field(init=False)

    def start(self, t0_ns: int, before: Mark) -> None:
        """Notes that T0 was at ``t0_ns``; ``before`` was read just before it, since reading takes a millisecond."""
        self.begin = self._last = replace(before, at_ns=t0_ns)
        self._begun = {"pull": self.begin}

    def mark(self) -> Mark:
        """Reads the counters now."""
        requests = self.requests.so_far() if self.requests else None
        return Mark(self.clock_ns(), self.machine.counters(), self.machine.wire(), requests)

    def phase(self, name: Phase) -> None:
        """Notes that this phase begins now, as the engine says."""
        self._begun[name] = self.mark()

    def ready(self, at_ns: int) -> Mark:
        """Notes that readiness was at ``at_ns``, and closes the phases that the engine named, each where the next one
        began.
        """
        now = replace(self.mark(), at_ns=at_ns)
        names = list(self._begun)
        for name, following in pairwise(names):
            end = self._begun[following]
            self._close(name, end if end.at_ns <= at_ns else now)
        self._close(names[-1], now)
        return now

    def cpu_from_start_s(self, ready: Mark) -> float | None:
        """Returns the machine's CPU seconds from the begin of phase ``start`` until readiness; None if it was not
        named.
        """
        begun = self._begun.get("start")
        return None if begun is None else ready.counters.since(begun.counters).cpu_total_s

    def received_before(self, phase: Phase) -> int | None:
        """Returns the bytes received from T0 until this phase began; None if the engine did not name it."""
        begun = self._begun.get(phase)
        return None if begun is None else self.traffic(begun).received_bytes

    def close(self, phase: Literal["background", "workloads"]) -> Mark:
        """Notes that the phase ends now."""
        now = self.mark()
        self._close(phase, now)
        return now

    def _close(self, phase: Literal[Phase, "background", "workloads"], end: Mark) -> None:
        used = end.counters.since(self._last.counters)
        self.phases.append(
            PhaseUsage(
                phase=phase,
                wall_s=(end.at_ns - self._last.at_ns) / 1e9,
                cpu_user_s=used.cpu_user_s,
                cpu_system_s=used.cpu_system_s,
                throttled_s=used.throttled_s,
                nr_periods=used.nr_periods,
                nr_throttled=used.nr_throttled,
            )
        )
        self._last = end

    def traffic(self, end: Mark) -> Wire:
        """Returns the traffic from T0 until a mark."""
        used = end.wire.since(self.begin.wire)
        known = end.requests is not None and self.begin.requests is not None
        requests = (end.requests or 0) - (self.begin.requests or 0) if known else None
        if self.outside:
            return Wire(received_bytes=None, sent_bytes=None, requests=requests)
        return Wire(received_bytes=used.received_bytes, sent_bytes=used.sent_bytes, requests=requests)


def mounted(mountinfo: str) -> dict[str, str]:
    """Returns file system types by device (``major:minor``) from the text of a ``/proc/PID/mountinfo``."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        found[left.split()[2]] = right.split()[0]
    return found


def host_mounts() -> dict[str, str]:
    """Returns what is mounted on the host now."""
    return mounted(Path("/proc/self/mountinfo").read_text("utf-8", errors="replace"))


def inherited_mounts(machine: Machine) -> dict[str, str]:
    """Returns what is mounted in a machine just made: the host's mounts, which it keeps when the host unmounts them
    later.
    """
    try:
        return mounted(Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text("utf-8", errors="replace"))
    except OSError:
        return {}


def root_file_systems(
    machine: Machine,
    pids: Iterable[int],
    host: Callable[[], dict[str, str]] = host_mounts,
    inherited: Mapping[str, str] | None = None,
) -> frozenset[str]:
    """Returns what serves the layers: FUSE and EROFS mounted in the machine and not on the host, else the scratch disk.

    ``inherited`` is what was mounted in it from the first (``inherited_mounts``), and is none of its own either. The
    host's mounts are read before *and* after the machine's: the machine sees what the host mounts, and what another
    program mounts in between is none of the machine's.
    """
    on_host = host()
    found: set[tuple[str, str]] = set()
    seen: set[str] = set()
    for pid in (machine.namespace_pid, *pids):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            inside = mounted(Path(f"/proc/{pid}/mountinfo").read_text("utf-8", errors="replace"))
        except OSError:
            continue
        found |= set(inside.items())
    on_host = on_host | host() | dict(inherited or {})
    kinds = {kind for device, kind in found if device not in on_host}
    return frozenset(kind for kind in kinds if kind == "erofs" or kind.startswith("fuse")) or frozenset({"ext4"})


def running(pid: int) -> bool:
    """Says whether a process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def known_sum(counts: Iterable[int | None]) -> int | None:
    """Returns the sum; None as soon as one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
