"""This module keeps what a witness saw of one trial: counters at turning points, limits, credits, daemons, and root.

The trial's course calls a witness at each turning point. When all is over the witness gives the evidence that the rules
of validity look at (``harness.session.validity``) and the figures of the observation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import MachineError
from harness.model.details import Details, EngineDetails
from harness.model.observation import CreditSample
from harness.session import observing, validity
from harness.session.bounds import Moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engines.protocol import Engine
    from harness.machine.machine import Machine
    from harness.model.observation import Bound, Invalidity, LazyUsage, Wire, WorkloadResult
    from harness.session.observing import Mark, PhaseMeter
    from harness.session.setup import TrialSetup


@dataclass
class Witness:
    """Keeps what has been seen so far; a trial that fails keeps what was seen until then."""

    setup: TrialSetup
    meter: PhaseMeter | None = None
    """Charges counters to phases; it is there from T0 on."""
    ready_at_ns: int | None = None
    ready_mark: Mark | None = None
    lifted_mark: Mark | None = None
    """Holds the counters when the CPU limit was lifted; None if it was not."""
    end_mark: Mark | None = None
    at_ready: LazyUsage | None = None
    lazy: LazyUsage | None = None
    moved: Moved = field(default_factory=Moved)
    daemons: tuple[int, ...] = ()
    """Lists the daemons that were last seen to serve the root file system."""
    daemons_now: Callable[[], tuple[int, ...]] = tuple
    died: tuple[str, ...] = ()
    roots: frozenset[str] = frozenset()
    steal: float = 0.0
    limited_s: float = 0.0
    """Says how long before T0 the limits were set: credits are counted from there."""
    wrong_limits: tuple[str, ...] = ()
    credits: tuple[CreditSample, ...] = ()
    workloads: list[WorkloadResult] = field(default_factory=list)
    found_invalid: tuple[Invalidity, ...] = ()
    """Holds the engine's own reasons why the trial does not count."""
    output_tail: str = ""
    told: EngineDetails = field(default_factory=EngineDetails)
    """Holds the facts that the engine reported."""
    engine_log: str = ""
    traceback: str = ""
    cpu_from_start_s: float | None = None
    background_finished: bool | None = None
    runtime_quota: Literal["none", "shape"] | None = None
    disk_limited: str = ""
    teardown_killed: bool = False

    # -- turning points

    def ready(self, at_ns: int, engine: Engine) -> None:
        """Notes that the container was ready at ``at_ns``, and what had been used, fetched and inflated by then."""
        assert self.meter is not None
        self.ready_at_ns = at_ns
        mark = self.ready_mark = self.meter.ready(at_ns)
        self.cpu_from_start_s = self.meter.cpu_from_start_s(mark)
        usage = self.at_ready = engine.lazy_usage()
        if usage is None:
            return
        received, fetched = self.meter.traffic(mark).received_bytes, usage.bytes_fetched_before_ready
        self.moved = Moved(
            received_bytes=(received if fetched is None else min(fetched, received or 0)) or 0,
            inflated_bytes=usage.bytes_inflated or 0,
            unpacked_bytes=usage.pack.bytes_pushed if usage.pack is not None else 0,
            fuse_requests=usage.fuse_requests or 0,
            late_core_s=self.meter.mark().counters.since(mark.counters).cpu_total_s,
        )

    def before_lifting(self, machine: Machine) -> None:
        """Notes what must be seen while the CPU limit is in force: it is about to be lifted."""
        assert self.meter is not None
        self._check_limits(machine)
        self._note_credits(machine)
        self.lifted_mark = self.meter.mark()

    def watch(self, daemons: Callable[[], tuple[int, ...]]) -> None:
        """Watches these daemons from now on: they, or others that took their place, must live."""
        self.daemons_now = daemons
        self.daemons = daemons()

    def daemons_alive(self) -> bool:
        return not self._dead_daemons()

    def _dead_daemons(self) -> tuple[int, ...]:
        """Returns the daemons that died and whose place no other one took."""
        dead = tuple(pid for pid in self.daemons if not observing.running(pid))
        if not dead:
            return ()
        now = tuple(pid for pid in self.daemons_now() if observing.running(pid))
        if len(now) < len(self.daemons):
            return dead
        self.daemons = now
        return ()

    def look_back(self, machine: Machine, engine: Engine) -> None:
        """Notes what is left to see before the machine goes. Raises what a machine half gone raises."""
        if self.meter is not None:
            self.end_mark = self.meter.mark()
            if self.lifted_mark is None:
                self._note_credits(machine)
            if self.lifted_mark is None or self.setup.case.lazy:
                self._check_limits(machine)
        self.died = tuple(f"daemon {pid}" for pid in self._dead_daemons())
        self.lazy = self._usage(engine.lazy_usage())
        self.setup.touches.extend(engine.first_touches())
        self.setup.ranges.extend(engine.read_ranges())

    def hear(self, engine: Engine) -> None:
        """Keeps what the engine reports; a trial that failed has a report, too."""
        report = engine.report()
        self.told = report.details
        self.engine_log = report.log_tail
        self.found_invalid = report.invalid
        if self.setup.requests is None:
            self._count_requests(report.requests)

    # -- parts of them

    def _note_credits(self, machine: Machine) -> None:
        self.credits = tuple(
            CreditSample(t_s=s.t_s - self.limited_s, balance_core_s=s.balance_core_s, quota_cores=s.quota_cores)
            for s in machine.credit_samples()
        )

    def _check_limits(self, machine: Machine) -> None:
        wrong: list[str] = []
        try:
            machine.verify()
        except MachineError as error:
            wrong.append(str(error))
        if machine.shape.disk is not None:
            self.disk_limited = machine.disk_limited
            if machine.disk_limited == "no":
                wrong.append("this host's kernel did not take the disk limits")
        self.wrong_limits = tuple(dict.fromkeys((*self.wrong_limits, *wrong)))

    def _usage(self, last: LazyUsage | None) -> LazyUsage | None:
        """Returns the last counters, but those up to readiness as they were read at readiness."""
        first = self.at_ready
        if last is None or first is None:
            return last or first
        return last.model_copy(
            update={
                "bytes_fetched_before_ready": first.bytes_fetched_before_ready,
                "requests_before_ready": first.requests_before_ready,
            }
        )

    def _count_requests(self, clients: int | None) -> None:
        """Takes the requests that the clients in the machine say they sent, for a registry whose log is not ours."""
        if self.meter is None:
            return
        before = self.at_ready.requests_before_ready if self.at_ready else 0
        in_all = self.lazy.requests if self.lazy else 0
        self.meter.begin = replace(self.meter.begin, requests=0)
        if self.ready_mark is not None:
            self.ready_mark = replace(self.ready_mark, requests=observing.known_sum((clients, before)))
        if self.end_mark is not None:
            self.end_mark = replace(self.end_mark, requests=observing.known_sum((clients, in_all)))

    # -- what came of it

    @property
    def ready_s(self) -> float | None:
        """Returns the seconds from T0 until ready; None where the container never was."""
        if self.meter is None or self.ready_at_ns is None:
            return None
        return (self.ready_at_ns - self.meter.begin.at_ns) / 1e9

    @property
    def details(self) -> Details:
        """Returns the facts for the record; one that is not known, or says nothing, is left out."""
        facts: dict[str, Any] = {
            "privileges": dict(self.setup.privileges) or None,
            "reads": dict(self.setup.reads) or None,
            "runtime_quota": self.runtime_quota,
            "cpu_from_start_s": self.cpu_from_start_s,
            "background_finished": self.background_finished,
            "disk_limited": self.disk_limited or None,
            "teardown_killed": self.teardown_killed or None,
            "engine_log": self.engine_log or None,
            "traceback": self.traceback or None,
        }
        known = {name: fact for name, fact in facts.items() if fact is not None}
        return Details.model_validate({**self.told.model_dump(), **known})

    def traffic(self, end: Mark | None) -> Wire | None:
        """Returns the traffic from T0 until a mark; None where the trial did not come so far."""
        return None if self.meter is None or end is None else self.meter.traffic(end)

    def evidence(self, bound: Bound | None) -> validity.Evidence:
        """Returns what the rules of validity look at."""
        case, meter, end = self.setup.case, self.meter, self.end_mark
        limited = self.lifted_mark or end
        used = end.counters.since(meter.begin.counters) if meter is not None and end is not None else None
        under = limited.counters.since(meter.begin.counters) if meter is not None and limited is not None else None
        before_ready = self.traffic(self.ready_mark)
        return validity.Evidence(
            lazy=case.lazy,
            already_there=case.preset.before_t0,
            reads_a_share=bool(self.setup.reads),
            fuse_allowed=case.mode.through_fuse,
            image_compressed_bytes=self.setup.image_compressed_bytes,
            received_before_ready_bytes=before_ready.received_bytes if before_ready else 0,
            received_before_root_bytes=meter.received_before("create") if meter is not None else None,
            streamed_bytes=self.at_ready.bytes_streamed_before_ready if self.at_ready else 0,
            may_stream=case.preset.streams(self.setup.settings.options),
            latency_s=case.distance.latency_s if self.setup.own_registry else None,
            ready=self.ready_at_ns is not None,
            layers_lazy=self.lazy.layers_lazy if self.lazy else None,
            root_file_systems=self.roots,
            steal_share=self.steal,
            limits_wrong=self.wrong_limits,
            cpu_s=under.cpu_total_s if under else 0.0,
            wall_s=(limited.at_ns - meter.begin.at_ns) / 1e9 if meter is not None and limited is not None else 0.0,
            ceiling_cores=case.shape.ceiling_cores,
            time_to_ready_s=self.ready_s,
            bound_s=bound.seconds if bound else None,
            daemons_died=self.died,
            read_errors=self.lazy.read_errors if self.lazy else None,
            background_finished=(
                self.lazy.background_finished if self.lazy and self.setup.timeouts.background_s > 0 else None
            ),
            pack=self.lazy.pack if self.lazy else None,
            oom_kills=used.oom_kills if used else 0,
        )
