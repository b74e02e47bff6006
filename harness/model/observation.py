"""This module describes an observation: what one trial recorded. A session is stored as lines of them.

Status and values are separate fields: a failed or invalid trial keeps what was seen and why, and never becomes a number
(architecture: rules of measurement, 4). Every field states its unit in its name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.model.details import Details
from harness.model.timeline import Span

#: Version of the stored form; a change of meaning raises it and adds a migration to ``harness.session.store``.
SCHEMA_VERSION = 2


class Frozen(BaseModel):
    """Is the base of all stored models: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


#: What a shape's limits hold for: all of the machine, or, with a Docker that runs already, the container alone.
Limits = Literal["machine", "container"]


class Case(Frozen):
    """Names what is compared: scenario x mode (with its preset) x engine x shape (with the registry's distance)."""

    scenario: str
    mode: str
    preset: str
    engine: str
    shape: str
    distance: str = "none"
    label: str = ""
    """Says what the scenario calls this entry, to tell it from others of the same mode and preset."""
    compression: str = ""
    """Says how the scenario has the image's layers compressed; empty where it leaves them as they are."""
    read_percent: int | None = None
    """Says what share of the image's bytes the start reads; None where its work is another one."""
    machines: int | None = None
    """Counts machines that are started at the same moment; None where a trial has one."""
    limits: Limits = "machine"
    """Is ``container`` where the engine's daemon runs outside, unlimited and uncounted; such a case is never compared
    with one of ``machine``.
    """

    @property
    def variant(self) -> str:
        """Returns the preset, and the label after a ``+``; it tells this case from others of its mode."""
        return f"{self.preset}+{self.label}" if self.label else self.preset

    @property
    def key(self) -> str:
        """Returns a stable text, unique within a session: ``scenario/mode:preset[+label]/engine/shape@distance``, the
        engine with ``[container]`` where limits hold for the container alone.
        """
        engine = self.engine if self.limits == "machine" else f"{self.engine}[{self.limits}]"
        return f"{self.scenario}/{self.mode}:{self.variant}/{engine}/{self.shape}@{self.distance}"


class Failure(Frozen):
    """Says why a trial failed: the error's class name (``harness.errors``), its one-line message, and the phase it
    hit.
    """

    kind: str
    message: str
    phase: str = ""


class Invalidity(Frozen):
    """Names a rule, stated before the run, that this trial broke."""

    rule: str
    """Is one of the rules of ``harness.session.validity``: ``not-lazy``, ``stream-unfounded``, ``fuse-in-full-pull``,
    ``cache-not-cold``, ``host-stolen``, ``limits-not-as-asked``, ``below-bound``, ``daemon-died``, ``reads-failed``,
    ``not-independent``, ``pack-not-used``, ``pack-differs``, ``out-of-memory``.
    """
    reason: str


#: What an engine goes through until the container is ready, as it says itself (``harness.engines.protocol.Watch``).
Phase = Literal["pull", "create", "start"]
BEFORE_READY: tuple[Phase, ...] = ("pull", "create", "start")


class PhaseUsage(Frozen):
    """Counts CPU charged to the machine within one phase (cgroup counters at its two ends)."""

    phase: Literal[Phase, "background", "workloads"]
    """Is ``pull`` from T0 until the root file system is there, ``create`` until the container exists, ``start`` until
    ready; then background and workloads follow. Sessions from before 2027 count ``create`` to ``start``.
    """
    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    throttled_s: float
    nr_periods: int
    nr_throttled: int

    @property
    def cpu_s(self) -> float:
        return self.cpu_user_s + self.cpu_system_s


class Wire(Frozen):
    """Counts traffic of the machine's network interface (bytes, both directions) and registry requests (None: not
    known).
    """

    received_bytes: int | None = 0
    sent_bytes: int | None = 0
    requests: int | None = 0


class Histogram(Frozen):
    """Counts log-bucketed durations: ``counts[i]`` of those in [2^i, 2^(i+1)) microseconds (bucket 0 also below 1
    us).
    """

    counts: tuple[int, ...] = ()
    total_s: float = 0.0
    max_s: float = 0.0


class FuseOpcode(Frozen):
    """Describes one FUSE opcode as the daemon saw it: how often, how long the service took, how long requests
    queued.
    """

    count: int
    service: Histogram = Histogram()
    queueing: Histogram = Histogram()


class PackUsage(Frozen):
    """Says what the start pack did that a preset follows."""

    frames_total: int = 0
    """Counts the pack's frames; 0 where none came: the index has no pack, or its table was of no use."""
    frames: int = 0
    bytes_pushed: int = 0
    """Counts unpacked bytes handed to the kernel's page cache."""
    reads: int = 0
    """Counts reads answered from the pack, beside those that the page cache answered."""
    outside: int = 0
    """Counts reads of bytes that the pack does not hold."""
    passed_over: int = 0
    """Counts reads of bytes that the pack holds but that took their spans, since the frame was too far off."""
    failures: int = 0
    failure: str = ""
    """Says how the pack failed first; empty where it never did."""
    differs: str = ""
    """Says where the pack has other bytes than the layers, if it has; it is compared once the whole image is
    inflated.
    """


class LazyUsage(Frozen):
    """Says what the lazy-pulling daemon did, up to ready and in all. None stands for what its engine cannot know."""

    layers_lazy: int | None = None
    layers_unpacked: int | None = None
    bytes_fetched_before_ready: int | None = None
    bytes_fetched: int | None = None
    requests_before_ready: int | None = None
    requests: int | None = None
    spans_fetched: int | None = None
    spans_total: int | None = None
    bytes_inflated: int | None = None
    digest_mismatches: int | None = None
    retries: int | None = None
    fuse: dict[str, FuseOpcode] | None = Field(default_factory=dict)
    memory_peak_bytes: int | None = 0
    cpu_s: float | None = 0.0
    handed_over: bool = False
    """Says whether the kernel reads the local file in the end, and FUSE is out of the way (mode erofs)."""
    bytes_pushed: int = 0
    """Counts inflated bytes handed to the kernel's page cache without a request for them (mode erofs)."""
    read_errors: int | None = None
    """Counts reads that the daemon could not answer, and that failed with an I/O error."""
    disk_full: bool | None = None
    """Says whether the machine's disk took no more bytes into the cache."""
    background_finished: bool | None = None
    """Says whether the rest of the image is local; None where that was not promised, or is not known."""
    not_handed_over: str = ""
    """Says why the kernel does not read the local file, though it was to (mode erofs)."""
    restarts: int | None = None
    """Counts daemons that died and were replaced; None where nobody would replace one."""
    layers_refetched: int = 0
    """Counts layers fetched a second time in timed work, because index and stream did not agree."""
    bytes_streamed_before_ready: int = 0
    """Counts bytes fetched before readiness that no read, list or index had asked for: the layers were streamed while a
    far registry left the CPU idle.
    """
    bytes_streamed: int = 0
    streamed_since_s: float | None = None
    """Says how many seconds after T0 the daemon began to stream the layers; None where it did not."""
    streamed_why: str = ""
    """Says what made the daemon stream: the latency of a round, the cores it may use, how idle they were."""
    pack: PackUsage | None = None
    """Says what the start pack did; None where the preset follows none."""

    @property
    def fuse_requests(self) -> int | None:
        """Counts FUSE requests of all opcodes; None where they were not counted."""
        return None if self.fuse is None else sum(opcode.count for opcode in self.fuse.values())


class CreditSample(Frozen):
    """Holds the state of the CPU-credit governor at a time after T0."""

    t_s: float
    balance_core_s: float
    quota_cores: float


class WorkloadResult(Frozen):
    """Holds one run-time workload at one temperature: one number per trial (rules of measurement, 6).

    Where short warm passes were repeated, ``wall_s`` is the median pass and the other figures are means of one.
    """

    workload: str
    temperature: Literal["cold", "warm", "stale", "evicted"]
    wall_s: float
    operations: int
    bytes: int = 0
    cpu_workload_s: float = 0.0
    cpu_daemon_s: float = 0.0
    fuse_requests: int | None = 0
    """Counts requests of one pass, rounded up, so that 0 means that there was none in any; None where they were not
    counted.
    """
    passes: int = 1
    reference_wall_s: float = 0.0
    """Holds the median pass of the reference job right before this workload; 0 where it did not run."""
    reference_cpu_s: float = 0.0
    failure: Failure | None = None


class Bound(Frozen):
    """Holds the physical lower bound of this trial and the terms it was computed from."""

    seconds: float
    terms: dict[str, float] = Field(default_factory=dict)


class StormMachine(Frozen):
    """Describes one machine of a storm; bytes and CPU are until it was ready, what it wrote to its disk is of the whole
    trial.
    """

    image_digest: str = ""
    ready_s: float | None
    """Says when it was ready; None where it never was, or does not count."""
    cpu_s: float
    received_bytes: int
    streamed_bytes: int = 0
    """Counts what of them a lazy mode streamed without being asked."""
    disk_written_bytes: int
    memory_peak_bytes: int = 0


class Observation(Frozen):
    """Holds one trial. ``time_to_ready_s`` is there only when ``status`` is ``ok``; use ``valid`` before comparing."""

    schema_version: int = SCHEMA_VERSION
    coldbench_version: str
    session: str
    trial: int
    block: int
    case: Case
    started_at: str
    """Says when it started: UTC, ISO 8601."""
    host: str = ""
    """Says which of a campaign's hosts ran it; empty where the session has only one."""
    image_digest: str = ""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Holds what differed from the preset's own policy, as the engine was told."""
    prefetch: str = "none"
    """Says what was fetched before it was asked for: ``image``, ``trace``, ``list`` or ``none``."""
    status: Literal["ok", "failed"]
    failure: Failure | None = None
    invalid: tuple[Invalidity, ...] = ()
    time_to_ready_s: float | None = None
    timeline: tuple[Span, ...] = ()
    phases: tuple[PhaseUsage, ...] = ()
    memory_peak_bytes: int | None = 0
    memory_ready_bytes: int | None = None
    """Counts bytes that the machine held when it was seen to be ready; None in sessions from before 2027."""
    memory_ready_cache_bytes: int | None = None
    """Counts the page cache that the machine held when ready; the kernel gives it back when programs want the
    memory.
    """
    disk_written_bytes: int | None = 0
    """Counts bytes that reached the machine's disk; None where limits hold for the container only."""
    wire: Wire = Wire()
    wire_before_ready: Wire = Wire()
    lazy: LazyUsage | None = None
    credits: tuple[CreditSample, ...] = ()
    workloads: tuple[WorkloadResult, ...] = ()
    bound: Bound | None = None
    storm: tuple[StormMachine, ...] = ()
    """Holds each machine of a trial that has several. The trial's times are the last one's, bytes and CPU
    everybody's.
    """
    output_tail: str = ""
    details: Details = Details()

    @property
    def valid(self) -> bool:
        """Says whether this trial may enter a comparison."""
        return self.status == "ok" and not self.invalid and self.time_to_ready_s is not None

    @property
    def cpu_to_ready_s(self) -> float | None:
        """Returns the CPU seconds charged to the machine from T0 until ready; None where the daemon is outside of
        it.
        """
        if self.case.limits == "container":
            return None
        return sum(p.cpu_s for p in self.phases if p.phase in BEFORE_READY)
