"""One trial: a fresh machine, one cold start of one case, and everything that was seen, as an observation.

Whatever happens, the container, the daemons and the machine are gone when ``run_trial`` returns, and what was seen up
to a failure is kept beside the failure.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from harness import __version__
from harness.errors import ColdbenchError, HostUnfit, Interrupted, MachineError, NotReady, UsageError
from harness.machine import host
from harness.model.observation import CreditSample, Failure, Observation
from harness.model.settings import Settings
from harness.model.timeline import Recorder
from harness.session import application, observing, validity
from harness.session.bounds import Moved
from harness.session.observing import Mark, PhaseMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from harness.engines.protocol import Container, DeployRequest, Engine, WorkloadRunner
    from harness.lazyfs.messages import Touch
    from harness.machine.machine import Machine
    from harness.model.observation import Bound, Invalidity, LazyUsage, Phase, WorkloadResult
    from harness.model.plan import PlannedCase, PlannedTrial
    from harness.model.workload import Readiness
    from harness.session.interrupts import Interrupts
    from harness.session.progress import Progress

OUTPUT_TAIL_CHARACTERS = 4000


class ReadinessProbe(Protocol):
    """Watches a container from outside its machine's CPU quota."""

    def wait(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of readiness; raises ``WorkloadError`` when it does not come."""
        ...

    def output_tail(self) -> str:
        """The end of what the container has written so far."""
        ...

    def close(self) -> None:
        """Stop watching; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """What a trial is made from; everything that touches the system comes in here."""

    session: str
    trial: PlannedTrial
    case: PlannedCase
    request: Callable[[Machine], DeployRequest]
    readiness: Readiness
    image_digest: str
    image_compressed_bytes: int
    deploy_timeout_s: float
    background_timeout_s: float
    teardown_timeout_s: float
    make_machine: Callable[[], AbstractContextManager[Machine]]
    make_engine: Callable[[], Engine]
    make_probe: Callable[[Readiness, Container, Machine, Callable[[], bool]], ReadinessProbe]
    interrupts: Interrupts
    progress: Progress
    #: What the case runs with beside mode and preset, for the record.
    settings: Settings = field(default_factory=Settings)
    workloads: WorkloadRunner | None = None
    #: Whether the shape's CPU limit is lifted while run-time workloads run.
    lift_quota: bool = False
    #: The lower bound, given what a lazy trial had moved when it was ready.
    bound: Callable[[Moved], Bound | None] = lambda _moved: None
    #: Requests the session's registry has answered so far; None where it cannot be asked (the engine's count is taken).
    requests: Callable[[], int] | None = lambda: 0
    clock_ns: Callable[[], int] = time.monotonic_ns
    #: Trials of a trace run keep the reads in first-touch order here.
    privileges: Mapping[str, Any] = field(default_factory=dict)
    """What the container may do beyond the default (``harness.engines.confinement``), for the observation."""
    touches: list[Touch] = field(default_factory=list)


class _Trial:
    """The state of one trial while it runs: what has been seen so far."""

    def __init__(self, setup: TrialSetup) -> None:
        self.setup = setup
        self.phase = ""
        self.inner_phase = ""
        self.failure: Failure | None = None
        self.recorder: Recorder | None = None
        self.meter: PhaseMeter | None = None
        self.ready_at_ns: int | None = None
        self.ready_mark: Mark | None = None
        self.end_mark: Mark | None = None
        self.lazy: LazyUsage | None = None
        self.at_ready: LazyUsage | None = None
        self.moved = Moved()
        self.lifted_mark: Mark | None = None
        self.workloads: list[WorkloadResult] = []
        self.credits: tuple[CreditSample, ...] = ()
        self.output_tail = ""
        self._probe: ReadinessProbe | None = None
        self.roots: frozenset[str] = frozenset()
        self.daemons: tuple[int, ...] = ()
        self.died: tuple[str, ...] = ()
        self.wrong_limits: tuple[str, ...] = ()
        self.steal = 0.0
        self.limited_s = 0.0
        self.found_invalid: tuple[Invalidity, ...] = ()
        self.details: dict[str, Any] = {"privileges": dict(setup.privileges)} if setup.privileges else {}

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.setup.progress.phase(phase)

    # -- the course of events

    def run(self) -> None:
        """Make the machine, run the trial in it, unmake it. Raises what ends the whole session."""
        setup = self.setup
        if setup.interrupts.requested:
            raise Interrupted(f"interrupted by {setup.interrupts.requested}")
        self.enter("machine")
        with ExitStack() as stack:
            machine = stack.enter_context(setup.make_machine())
            engine = setup.make_engine()
            stack.callback(self._tear_down, machine, engine)
            try:
                with setup.interrupts.allowed():
                    self._measure(machine, engine)
            except (HostUnfit, UsageError, Interrupted):
                raise
            except Exception as error:  # a session of hours must not end with one trial's bug
                self._fail(error, machine)
            finally:
                phase, self.phase = self.phase, "tear-down"
                setup.progress.phase(self.phase)
                self._look_back(machine, engine)
                self.phase = phase
        self.phase = ""

    def _measure(self, machine: Machine, engine: Engine) -> None:
        setup = self.setup
        self.enter("boot")
        request = setup.request(machine)
        engine.start(machine, request)
        machine.reset()
        ticks = host.cpu_ticks()
        meter = self.meter = PhaseMeter(machine, setup.clock_ns, setup.requests)
        limited_ns = machine.throttle(True)
        self.enter("pull")
        try:
            # Throttling reads back what it set, which takes tens of milliseconds: T0 is after it, at the request.
            before = meter.mark()
            t0_ns = setup.clock_ns()
            meter.start(t0_ns, before)
            self.limited_s = (t0_ns - limited_ns) / 1e9
            self.recorder = Recorder(t0_ns)
            try:
                with self._deadline(machine):
                    container = engine.deploy(machine, request, self.recorder, _Watch(self, machine, meter))
            except ColdbenchError:
                self.inner_phase = engine.report().phase
                raise
            self.enter("start")
            self.daemons = engine.daemon_pids()
            self._await_ready(engine, meter)
        finally:
            self.steal = host.steal_share(ticks, host.cpu_ticks())
        self.roots = observing.root_file_systems(machine, (container.pid, *self.daemons))
        self._after_ready(machine, engine, container, meter)

    def _await_ready(self, engine: Engine, meter: PhaseMeter) -> None:
        assert self.recorder is not None
        assert self._probe is not None, "the engine told of the container it made"
        started_ns = self.setup.clock_ns()
        try:
            at_ns = self._probe.wait()
        finally:
            self.output_tail = self._probe.output_tail()[-OUTPUT_TAIL_CHARACTERS:]
        self.ready_at_ns = at_ns
        self.ready_mark = meter.ready(at_ns)
        self._note_usage(engine, meter, self.ready_mark)
        self.recorder.add("ready", min(started_ns, at_ns), at_ns, detail=self.setup.readiness.kind)

    def _note_usage(self, engine: Engine, meter: PhaseMeter, ready: Mark) -> None:
        """What the daemon had done by readiness. Background fetch begins only when workloads, if any, have run:
        their first touch is cold, and the daemon's CPU is theirs."""
        if (used := meter.cpu_from_start_s(ready)) is not None:
            self.details[application.DETAIL] = used
        usage = self.at_ready = engine.lazy_usage()
        if usage is not None:
            late = meter.mark().counters.since(ready.counters).cpu_total_s
            received = meter.traffic(ready).received_bytes
            fetched = usage.bytes_fetched_before_ready
            self.moved = Moved(
                received_bytes=received if fetched is None else min(fetched, received),
                inflated_bytes=usage.bytes_inflated or 0,
                fuse_requests=usage.fuse_requests or 0,
                late_core_s=late,
            )
        if self.setup.workloads is None:
            engine.mark_ready()

    def _after_ready(self, machine: Machine, engine: Engine, container: Container, meter: PhaseMeter) -> None:
        assert self.recorder is not None
        assert self._probe is not None
        try:
            workloads, lazy = self.setup.workloads, self.setup.case.lazy
            if workloads is not None:
                self.enter("workloads")
                with self._quota_lifted(machine, meter):
                    self.workloads = workloads.run(machine, engine, container, evicted=False)
                meter.close("workloads")
                engine.mark_ready()
            if lazy:
                self.enter("background")
                done = engine.finish_background(self.setup.background_timeout_s, self.recorder)
                self.details["background_finished"] = done
                meter.close("background")
            if workloads is not None:
                # With the data local: after the background fetch, where there is one.
                self.enter("workloads")
                if self.setup.lift_quota:
                    machine.throttle(False)
                self.workloads += workloads.run(machine, engine, container, evicted=True)
                meter.close("workloads")
        finally:
            self.output_tail = self._probe.output_tail()[-OUTPUT_TAIL_CHARACTERS:]
            self._probe.close()

    @contextmanager
    def _quota_lifted(self, machine: Machine, meter: PhaseMeter) -> Iterator[None]:
        """Without the CPU limit inside, if the scenario says so; what had to be seen under it is looked at before."""
        self.details["runtime_quota"] = "none" if self.setup.lift_quota else "shape"
        if not self.setup.lift_quota:
            yield
            return
        self._check_limits(machine)
        self._note_credits(machine)
        self.lifted_mark = meter.mark()
        machine.throttle(False)
        yield
        if self.setup.case.lazy:
            machine.throttle(True)

    def _note_credits(self, machine: Machine) -> None:
        self.credits = tuple(
            CreditSample(t_s=s.t_s - self.limited_s, balance_core_s=s.balance_core_s, quota_cores=s.quota_cores)
            for s in machine.credit_samples()
        )

    def _daemons_alive(self) -> bool:
        return all(observing.running(pid) for pid in self.daemons)

    @contextmanager
    def _deadline(self, machine: Machine) -> Iterator[None]:
        """Engines wait as long as it takes; what outlasts the scenario's limit is killed, and they notice."""
        with _killing_after(self.setup.deploy_timeout_s, machine) as expired:
            try:
                yield
            except (ColdbenchError, OSError, EOFError) as error:
                if expired.is_set():
                    limit = f"timeouts.deploy_s ({self.setup.deploy_timeout_s:g} s)"
                    raise NotReady(f"no container within {limit}") from error
                raise

    def _tear_down(self, machine: Machine, engine: Engine) -> None:
        if self._probe is not None:
            self._probe.close()
        with _killing_after(self.setup.teardown_timeout_s, machine) as expired:
            engine.tear_down()
        if expired.is_set():
            self.details["teardown_killed"] = True

    # -- looking back

    def _fail(self, error: Exception, machine: Machine) -> None:
        failure = self.failure_of(error)
        kind, message = failure.kind, failure.message
        kills = 0
        with suppress(MachineError, OSError):
            kills = machine.counters().oom_kills
        if kills and kind not in {"NotReady", "OutOfMemory"}:
            memory = machine.shape.memory_bytes
            limit = f" of {memory >> 20} MiB" if memory else ""
            kind, message = "OutOfMemory", f"the machine ran out of its memory{limit}; {message}"
        self.failure = Failure(kind=kind, message=message, phase=failure.phase)

    def failure_of(self, error: Exception) -> Failure:
        """An error as it is stored; one that no user can mend keeps its traceback in the details."""
        kind = error.kind if isinstance(error, ColdbenchError) else type(error).__name__
        if not isinstance(error, (ColdbenchError, OSError)):
            self.details["traceback"] = "".join(traceback.format_exception(error))
        message = " ".join(str(error).split()) or "no message"
        return Failure(kind=kind, message=message, phase=self.inner_phase or self.phase or "machine")

    def _look_back(self, machine: Machine, engine: Engine) -> None:
        """Read what is left to read before the machine goes; a machine half gone must not hide the failure."""
        try:
            if self.meter is not None and hasattr(self.meter, "begin"):
                self.end_mark = self.meter.mark()
                if self.lifted_mark is None:
                    self._note_credits(machine)
                if self.lifted_mark is None or self.setup.case.lazy:
                    self._check_limits(machine)
            self.died = tuple(f"daemon {pid}" for pid in self.daemons if not observing.running(pid))
            self.lazy = self._usage(engine.lazy_usage())
            self.setup.touches.extend(engine.first_touches())
        except (ColdbenchError, OSError) as error:
            if self.failure is None:
                self.failure = self.failure_of(error)
        report = engine.report()
        self.details.update(report.details)
        if report.log_tail:
            self.details["engine_log"] = report.log_tail
        self.found_invalid = report.invalid
        if self.setup.requests is None:
            self._count_requests(report.requests)

    def _usage(self, last: LazyUsage | None) -> LazyUsage | None:
        """The last counters, with what they were at readiness as it was read then."""
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
        """A registry whose log is not ours: what the clients in the machine say they sent, where they do."""
        if self.meter is None or not hasattr(self.meter, "begin"):
            return
        first, last = self.at_ready, self.lazy
        before = first.requests_before_ready if first else 0
        in_all = last.requests if last else 0
        self.meter.begin = replace(self.meter.begin, requests=0)
        if self.ready_mark is not None:
            self.ready_mark = replace(self.ready_mark, requests=_sum(clients, before))
        if self.end_mark is not None:
            self.end_mark = replace(self.end_mark, requests=_sum(clients, in_all))

    def _check_limits(self, machine: Machine) -> None:
        wrong: list[str] = []
        try:
            machine.verify()
        except MachineError as error:
            wrong.append(str(error))
        if machine.shape.disk is not None:
            self.details["disk_limited"] = machine.disk_limited
            if machine.disk_limited == "no":
                wrong.append("this host's kernel did not take the disk limits")
        self.wrong_limits = tuple(dict.fromkeys((*self.wrong_limits, *wrong)))

    # -- the result

    def observation(self, started_at: str) -> Observation:
        """What was seen, judged by the rules of validity."""
        setup, meter = self.setup, self.meter
        ready_s = (self.ready_at_ns - self.recorder.t0_ns) / 1e9 if self.ready_at_ns and self.recorder else None
        ok = self.failure is None and ready_s is not None
        end = self.end_mark
        bound = setup.bound(self.moved)
        fields: dict[str, Any] = {}
        if meter is not None and self.ready_mark is not None:
            fields["wire_before_ready"] = meter.traffic(self.ready_mark)
        if meter is not None and end is not None:
            fields["wire"] = meter.traffic(end)
            fields["memory_peak_bytes"] = end.counters.memory_peak_bytes
            fields["disk_written_bytes"] = end.counters.since(meter.begin.counters).io_written_bytes
        return Observation(
            coldbench_version=__version__,
            session=setup.session,
            trial=setup.trial.trial,
            block=setup.trial.block,
            case=setup.case.case,
            started_at=started_at,
            image_digest=setup.image_digest,
            options=setup.settings.options,
            prefetch=setup.settings.prefetch_kind,
            status="ok" if ok else "failed",
            failure=self.failure,
            invalid=(*validity.check(self._evidence(ready_s, bound)), *self.found_invalid),
            time_to_ready_s=ready_s if ok else None,
            timeline=self.recorder.sorted() if self.recorder else (),
            phases=tuple(meter.phases) if meter else (),
            lazy=self.lazy,
            credits=self.credits,
            workloads=tuple(self.workloads),
            bound=bound,
            output_tail=self.output_tail,
            details=self.details,
            **fields,
        )

    def _evidence(self, ready_s: float | None, bound: Bound | None) -> validity.Evidence:
        setup, meter, end = self.setup, self.meter, self.end_mark
        used = end.counters.since(meter.begin.counters) if meter is not None and end is not None else None
        limited = self.lifted_mark or end
        under = limited.counters.since(meter.begin.counters) if meter is not None and limited is not None else None
        received = meter.traffic(self.ready_mark).received_bytes if meter is not None and self.ready_mark else 0
        return validity.Evidence(
            lazy=setup.case.lazy,
            fuse_allowed=setup.case.mode.through_fuse,
            image_compressed_bytes=setup.image_compressed_bytes,
            received_before_ready_bytes=received,
            ready=self.ready_at_ns is not None,
            layers_lazy=self.lazy.layers_lazy if self.lazy else None,
            root_file_systems=self.roots,
            steal_share=self.steal,
            limits_wrong=self.wrong_limits,
            cpu_s=under.cpu_total_s if under else 0.0,
            wall_s=(limited.at_ns - meter.begin.at_ns) / 1e9 if meter is not None and limited is not None else 0.0,
            ceiling_cores=setup.case.shape.ceiling_cores,
            time_to_ready_s=ready_s,
            bound_s=bound.seconds if bound else None,
            daemons_died=self.died,
            oom_kills=used.oom_kills if used else 0,
        )


@dataclass(frozen=True, slots=True)
class _Watch:
    """What an engine tells while it deploys (``harness.engines.protocol.Watch``)."""

    trial: _Trial
    machine: Machine
    meter: PhaseMeter

    def phase(self, name: Phase) -> None:
        self.meter.phase(name)

    def created(self, container: Container) -> None:
        trial = self.trial
        trial._probe = trial.setup.make_probe(trial.setup.readiness, container, self.machine, trial._daemons_alive)


def _sum(*counts: int | None) -> int | None:
    """The sum of what is known; None as soon as one count is not."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


@contextmanager
def _killing_after(seconds: float, machine: Machine) -> Iterator[threading.Event]:
    """Kill every process of the machine when the block takes longer; the event says whether that happened."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for pid in machine.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def run_trial(setup: TrialSetup) -> Observation:
    """Run one trial; a trial that fails is an observation with its failure.

    Raises:
        HostUnfit, UsageError: nothing of this kind can run here, so the session ends.
        Interrupted: the user stopped it; nothing is recorded, the trial runs again on resume.
    """
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    trial = _Trial(setup)
    try:
        trial.run()
    except (HostUnfit, UsageError, Interrupted):
        raise
    except Exception as error:  # as above: the machine could not be made or taken away
        if trial.failure is None:
            trial.failure = trial.failure_of(error)
    return trial.observation(started_at)
