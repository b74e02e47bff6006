"""This module counts what the daemon does: FUSE requests by opcode with their times, and bytes fetched and inflated.

It uses plain lists and integers, because the measured machine pays for the counting itself: about 0.5 us per request.
"""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from harness.lazyfs.messages import Histogram, OpcodeUsage, PackUsage, Usage
from harness.lazyfs.totals import added

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.errors import ColdbenchError
    from harness.lazyfs.data.fetch import Fetched

log = logging.getLogger(__name__)

BUCKETS = 40


class Opcode:
    """Counts one FUSE opcode: how often it came, and its service and queueing times as log2 buckets of microseconds.

    *Service* is from the start of the handler until its answer is ready. *Queueing* is what this process can see of
    the time before: from when the event loop learnt that the request was readable (its poll returned; or, where the
    request was found waiting behind another, from when that other one was read) until its handler started. The time
    a request spends in the kernel while the process is throttled or asleep is not visible from here.
    """

    __slots__ = ("count", "queue_max_ns", "queue_ns", "queueing", "service", "service_max_ns", "service_ns")

    def __init__(self) -> None:
        self.count = 0
        self.service = [0] * BUCKETS
        self.service_ns = 0
        self.service_max_ns = 0
        self.queueing = [0] * BUCKETS
        self.queue_ns = 0
        self.queue_max_ns = 0

    def record(self, arrived_ns: int, started_ns: int) -> None:
        """Counts one request; all times are of ``time.perf_counter_ns``."""
        took = time.perf_counter_ns() - started_ns
        self.count += 1
        self.service_ns += took
        if took > self.service_max_ns:  # noqa: PLR1730 - half the cost of max()
            self.service_max_ns = took
        self.service[(took // 2000).bit_length()] += 1
        queued = started_ns - arrived_ns
        self.queue_ns += queued
        if queued > self.queue_max_ns:  # noqa: PLR1730
            self.queue_max_ns = queued
        self.queueing[(queued // 2000).bit_length()] += 1

    def usage(self) -> OpcodeUsage:
        return OpcodeUsage(
            self.count,
            _histogram(self.service, self.service_ns, self.service_max_ns),
            _histogram(self.queueing, self.queue_ns, self.queue_max_ns),
        )


def memory_peak_bytes() -> int:
    """Returns the peak of this process's resident memory (getrusage's would include the parent's before exec)."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _histogram(counts: list[int], total_ns: int, max_ns: int) -> Histogram:
    last = max((i for i, count in enumerate(counts) if count), default=-1)
    return Histogram(tuple(counts[: last + 1]), total_ns / 1e9, max_ns / 1e9)


@dataclass(slots=True)
class PackCounters:
    """Counts what came of a start pack (``harness.lazyfs.data.pack``)."""

    frames_total: int = 0
    frames: int = 0
    bytes_pushed: int = 0
    reads: int = 0
    outside: int = 0
    """Counts reads of bytes that the pack does not hold."""
    passed_over: int = 0
    """Counts reads of bytes that the pack holds and that took their spans, since the frame was too far off."""
    failures: int = 0
    failure: str = ""
    differs: str = ""
    """Says where the pack has other bytes than the layers, if it does."""

    def usage(self) -> PackUsage:
        return PackUsage(**asdict(self))


@dataclass(slots=True)
class Counters:
    """Counts everything one daemon did. ``freeze`` is called at readiness and keeps what had been fetched by then."""

    opcodes: dict[str, Opcode] = field(default_factory=dict)
    layers_lazy: int = 0
    layers_unpacked: int = 0
    spans_total: int = 0
    spans_fetched: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    retries: int = 0
    bytes_inflated: int = 0
    digest_mismatches: int = 0
    read_errors: int = 0
    last_read_error: str = ""
    disk_full: bool = False
    layers_refetched: int = 0
    """Counts layers fetched twice because the index and the stream did not agree (``harness.lazyfs.data.whole``)."""
    handed_over: bool = False
    bytes_pushed: int = 0
    background_finished: bool | None = None
    """Says whether the background fetch has finished; None where none was promised."""
    not_handed_over: str = ""
    """Says why the kernel does not read the local file, though it was to."""
    bytes_streamed: int = 0
    """Counts bytes fetched because layers are streamed (``harness.lazyfs.data.stream``), not because anybody asked."""
    streamed_since_ns: int = 0
    streamed_why: str = ""
    t0_ns: int = 0
    before_ready: tuple[int, int, int] | None = None
    """Holds the bytes, requests and streamed bytes before readiness, of all daemons."""
    pack: PackCounters | None = None
    """Is None where the preset follows no start pack."""
    earlier: Usage | None = None
    """Holds what the daemons before this one counted."""
    restarts: int | None = None
    """Counts the daemons before this one; None where nobody would take over from this one."""
    counted: Callable[[], None] | None = None
    """Is called when a request was counted."""

    def note_read_error(self, where: str, error: ColdbenchError) -> None:
        """Count a read that could not be answered; the log says it once for each cause, not for each read."""
        self.read_errors += 1
        if str(error) != self.last_read_error:
            self.last_read_error = str(error)
            log.warning("%s: %s; such reads fail with an I/O error", where, error)

    def count(self, fetched: Fetched) -> None:
        """Count one range request and what it brought."""
        self.requests += 1
        self.bytes_fetched += fetched.received_bytes
        self.bytes_inflated += fetched.inflated_bytes
        self.spans_fetched += len(fetched.decoded) + len(fetched.packed) + len(fetched.written_packed)
        if not fetched.decoded:
            self.spans_fetched += len(fetched.written_inflated)
        if self.counted is not None:
            self.counted()

    def opcode(self, name: str) -> Opcode:
        return self.opcodes.setdefault(name, Opcode())

    def freeze(self) -> tuple[int, int, int]:
        """Notes that readiness is now; later calls change nothing.

        Returns what was fetched before: bytes, requests, and bytes that were streamed.
        """
        if self.before_ready is None:
            usage = self.usage()
            self.before_ready = (usage.bytes_fetched, usage.requests, usage.bytes_streamed)
        return self.before_ready

    def usage(self) -> Usage:
        """Returns what was counted so far, by all daemons of the mount, with their memory and CPU time."""
        own = self._own()
        usage = own if self.earlier is None else added(self.earlier, own)
        now = (usage.bytes_fetched, usage.requests, usage.bytes_streamed)
        fetched, requests, streamed = self.before_ready or now
        return replace(
            usage,
            bytes_fetched_before_ready=fetched,
            requests_before_ready=requests,
            bytes_streamed_before_ready=streamed,
        )

    def _own(self) -> Usage:
        """Returns what this daemon counted."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(
            layers_lazy=self.layers_lazy,
            layers_unpacked=self.layers_unpacked,
            bytes_fetched_before_ready=0,
            bytes_fetched=self.bytes_fetched,
            requests_before_ready=0,
            requests=self.requests,
            spans_fetched=self.spans_fetched,
            spans_total=self.spans_total,
            bytes_inflated=self.bytes_inflated,
            digest_mismatches=self.digest_mismatches,
            retries=self.retries,
            fuse={name: op.usage() for name, op in sorted(self.opcodes.items()) if op.count},
            handed_over=self.handed_over,
            bytes_pushed=self.bytes_pushed,
            memory_peak_bytes=memory_peak_bytes(),
            cpu_s=usage.ru_utime + usage.ru_stime,
            read_errors=self.read_errors,
            disk_full=self.disk_full,
            layers_refetched=self.layers_refetched,
            background_finished=self.background_finished,
            not_handed_over="" if self.handed_over else self.not_handed_over,
            restarts=self.restarts,
            bytes_streamed_before_ready=0,
            bytes_streamed=self.bytes_streamed,
            streamed_since_s=(self.streamed_since_ns - self.t0_ns) / 1e9 if self.streamed_since_ns else None,
            streamed_why=self.streamed_why,
            pack=self.pack.usage() if self.pack is not None else None,
        )
