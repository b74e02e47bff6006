"""What a trial looks at from outside the machine: phases at the moments they change, mounts, daemons."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.model.observation import PhaseUsage, Wire
from harness.model.timeline import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from harness.machine.cgroup import Counters
    from harness.machine.machine import Machine, Traffic

Phase = Literal["pull", "start", "background", "workloads"]


@dataclass
class WatchedRecorder(Recorder):
    """A recorder that tells of every span as it arrives, so that counters can be read at that moment."""

    on_span: Callable[[str], None] = lambda _name: None

    def add(self, name: str, start_ns: int, end_ns: int, layer: int | None = None, detail: str = "") -> None:
        """Record one finished span, then tell of it."""
        super().add(name, start_ns, end_ns, layer, detail)
        self.on_span(name)


@dataclass(frozen=True, slots=True)
class Mark:
    """The machine's counters at one moment."""

    at_ns: int
    counters: Counters
    wire: Traffic
    requests: int = 0


@dataclass
class PhaseMeter:
    """Charges counters to phases. A phase begins where the one before ended; marks are in the order of time."""

    machine: Machine
    clock_ns: Callable[[], int]
    requests: Callable[[], int] = lambda: 0
    begin: Mark = field(init=False)
    mounted: Mark | None = None
    created: Mark | None = None
    phases: list[PhaseUsage] = field(default_factory=list)
    _last: Mark = field(init=False)

    def start(self, t0_ns: int, before: Mark) -> None:
        """T0 was at ``t0_ns``; ``before`` was read just before it, since reading takes a millisecond."""
        self.begin = self._last = replace(before, at_ns=t0_ns)

    def mark(self) -> Mark:
        """Read the counters now."""
        return Mark(self.clock_ns(), self.machine.counters(), self.machine.wire(), self.requests())

    def span_seen(self, name: str) -> None:
        """The root file system is there when the last mount is: the phase ``pull`` ends with it."""
        if name == "mount":
            self.mounted = self.mark()

    def ready(self, at_ns: int) -> Mark:
        """Readiness was at ``at_ns``: closes ``pull`` (at the mount, where one was seen) and ``start``."""
        now = replace(self.mark(), at_ns=at_ns)
        if self.mounted is not None and self.mounted.at_ns <= at_ns:
            self._close("pull", self.mounted)
        self._close("start", now)
        return now

    def container_created(self) -> None:
        """The container exists, and its process does not run yet."""
        self.created = self.mark()

    def cpu_from_start_s(self, ready: Mark) -> float | None:
        """CPU seconds of the machine from the container's creation until readiness; None when that was not seen."""
        if self.created is None:
            return None
        return ready.counters.since(self.created.counters).cpu_total_s

    def close(self, phase: Phase) -> Mark:
        """The phase ends now."""
        now = self.mark()
        self._close(phase, now)
        return now

    def _close(self, phase: Phase, end: Mark) -> None:
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
        """Traffic from T0 until a mark."""
        used = end.wire.since(self.begin.wire)
        requests = end.requests - self.begin.requests
        return Wire(received_bytes=used.received_bytes, sent_bytes=used.sent_bytes, requests=requests)


def mounted(mountinfo: str) -> dict[str, str]:
    """File system types by device (``major:minor``) from the text of a ``/proc/PID/mountinfo``."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        found[left.split()[2]] = right.split()[0]
    return found


def root_file_systems(machine: Machine, pids: Iterable[int]) -> frozenset[str]:
    """What serves the layers: FUSE and EROFS mounted in the machine and not on the host, else the scratch disk."""
    host = mounted(Path("/proc/self/mountinfo").read_text("utf-8", errors="replace"))
    found: set[str] = set()
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
        found |= {kind for device, kind in inside.items() if device not in host}
    return frozenset(kind for kind in found if kind == "erofs" or kind.startswith("fuse")) or frozenset({"ext4"})


def running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
