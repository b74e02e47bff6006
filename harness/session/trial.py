"""This module starts one case cold on a fresh machine, and makes an observation of everything that was seen.

The course of events is here; ``evidence`` keeps what is seen on the way, ``record`` makes the observation of it.
Whatever happens, the container, the daemons and the machine are gone when ``run_trial`` returns, and what was seen up
to a failure is kept beside the failure.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError, HostUnfit, Interrupted, NotReady, UsageError
from harness.machine import host
from harness.model.timeline import Recorder
from harness.session import observing, record
from harness.session.deadline import killing_after
from harness.session.evidence import Witness
from harness.session.gates import OpenGate
from harness.session.observing import PhaseMeter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.engines.protocol import Container, Engine
    from harness.machine.machine import Machine
    from harness.model.observation import Failure, Observation, Phase
    from harness.session.gates import Gate
    from harness.session.setup import ReadinessProbe, TrialSetup

OUTPUT_TAIL_CHARACTERS = 4000


def run_trial(setup: TrialSetup) -> Observation:
    """Runs one trial; a trial that fails gives an observation with its failure.

    Raises:
        HostUnfit, UsageError: nothing of this kind can run here, so the session ends.
        Interrupted: the user stopped it; nothing is recorded, the trial runs again on resume.
    """
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    course = Course(setup)
    try:
        course.run()
    except (HostUnfit, UsageError, Interrupted):
        raise
    except Exception as error:  # the machine could not be made or taken away
        course.fail(error)
    return record.observation(course.witness, course.recorder, course.failure, started_at)


class Course:
    """Runs one trial step by step; at ``gate`` it may wait for others."""

    def __init__(self, setup: TrialSetup, gate: Gate | None = None) -> None:
        self.setup = setup
        self.gate = gate or OpenGate()
        self.machine: Machine | None = None
        """Holds the machine while its processes may run."""
        self.witness = Witness(setup)
        self.recorder: Recorder | None = None
        self.failure: Failure | None = None
        self._inherited: dict[str, str] = {}
        self._phase = ""
        self._engine_phase = ""
        self._probe: ReadinessProbe | None = None

    def run(self) -> None:
        """Makes the machine, runs the trial in it, unmakes it. Raises what ends the whole session."""
        setup = self.setup
        if setup.interrupts.requested:
            raise Interrupted(f"interrupted by {setup.interrupts.requested}")
        self._enter("machine")
        self.gate.boot()
        with ExitStack() as stack:
            machine = self.machine = stack.enter_context(setup.scene.machine())
            self._inherited = observing.inherited_mounts(machine)
            engine = setup.scene.engine()
            stack.callback(self._tear_down, machine, engine)
            try:
                with setup.interrupts.allowed():
                    self._start(machine, engine)
            except (HostUnfit, UsageError, Interrupted):
                raise
            except Exception as error:  # a session of hours must not end with one trial's bug
                self.fail(error)
                assert self.failure is not None
                self.failure = record.blame_memory(self.failure, machine)
            finally:
                setup.progress.phase("tear-down")
                if setup.storm:
                    os.sync()  # what a storm writes to disk is counted when it has been written
                self._look_back(machine, engine)
        self._phase = ""

    def fail(self, error: Exception) -> None:
        """Keeps the first failure: later ones are its consequences."""
        if self.failure is None:
            phase = self._engine_phase or self._phase or "machine"
            self.failure = record.failure_of(error, phase, self.witness)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self.setup.progress.phase(phase)

    # -- the steps

    def _start(self, machine: Machine, engine: Engine) -> None:
        """Boots, sets the limits, deploys at T0, waits until ready; then goes on with what comes after readiness."""
        setup, witness = self.setup, self.witness
        self._enter("boot")
        request = setup.scene.request(machine)
        engine.start(machine, request)
        machine.reset(keep_pages=setup.case.preset.keeps_pages)
        ticks = host.cpu_ticks()
        meter = PhaseMeter(machine, setup.clock_ns, setup.requests, setup.case.outside)
        self.gate.booted()
        limited_ns = machine.throttle(True)
        self.gate.limited()
        self._enter("pull")
        try:
            # Throttling reads back what it set, which takes tens of milliseconds: T0 is after it, at the request.
            before = meter.mark()
            t0_ns = setup.clock_ns()
            meter.start(t0_ns, before)
            witness.meter, witness.limited_s = meter, (t0_ns - limited_ns) / 1e9
            self.recorder = Recorder(t0_ns)
            try:
                with self._deadline(machine):
                    container = engine.deploy(machine, request, self.recorder, _Watch(self, machine, meter))
            except ColdbenchError:
                self._engine_phase = engine.report().phase
                raise
            self._enter("start")
            witness.watch(engine.daemon_pids)
            self._await_ready(engine)
        finally:
            witness.steal = host.steal_share(ticks, host.cpu_ticks())
        witness.roots = observing.root_file_systems(
            machine, (container.pid, *witness.daemons), inherited=self._inherited
        )
        self.gate.ready()
        try:
            self._go_on(machine, engine, container, meter)
        finally:
            self._keep_output()
            self._close_probe()

    def _await_ready(self, engine: Engine) -> None:
        assert self.recorder is not None
        assert self._probe is not None, "the engine told of the container it made"
        started_ns = self.setup.clock_ns()
        try:
            at_ns = self._probe.wait()
        finally:
            self._keep_output()
        self.witness.ready(at_ns, engine)
        # With workloads, background fetch waits for them: their first touch is cold, and the daemon's CPU is theirs.
        if self.setup.workloads is None:
            engine.mark_ready()
        self.recorder.add("ready", min(started_ns, at_ns), at_ns, detail=self.setup.readiness)

    def _go_on(self, machine: Machine, engine: Engine, container: Container, meter: PhaseMeter) -> None:
        """Runs the workloads while the rest of the image is absent, fetches it, and runs them again with the data
        local.
        """
        assert self.recorder is not None
        workloads, lazy, witness = self.setup.workloads, self.setup.case.lazy, self.witness
        if workloads is not None:
            self._enter("workloads")
            with self._quota_lifted(machine):
                witness.workloads = workloads.run(machine, engine, container, evicted=False)
            meter.close("workloads")
            engine.mark_ready()
        if lazy:
            self._enter("background")
            done = engine.finish_background(self.setup.timeouts.background_s, self.recorder)
            witness.background_finished = done
            meter.close("background")
        if workloads is not None:
            self._enter("workloads")
            if self.setup.lift_quota:
                machine.throttle(False)
            witness.workloads += workloads.run(machine, engine, container, evicted=True)
            meter.close("workloads")

    @contextmanager
    def _quota_lifted(self, machine: Machine) -> Iterator[None]:
        """Lifts the CPU limit inside, if the scenario says so."""
        self.witness.runtime_quota = "none" if self.setup.lift_quota else "shape"
        if not self.setup.lift_quota:
            yield
            return
        self.witness.before_lifting(machine)
        machine.throttle(False)
        yield
        if self.setup.case.lazy:
            machine.throttle(True)

    @contextmanager
    def _deadline(self, machine: Machine) -> Iterator[None]:
        """Kills what outlasts the scenario's limit: engines wait as long as it takes, and notice that."""
        deploy_s = self.setup.timeouts.deploy_s
        with killing_after(deploy_s, machine) as expired:
            try:
                yield
            except (ColdbenchError, OSError, EOFError) as error:
                if expired.is_set():
                    raise NotReady(f"no container within timeouts.deploy_s ({deploy_s:g} s)") from error
                raise

    def _look_back(self, machine: Machine, engine: Engine) -> None:
        """Sees what is left to see before the machine goes; a machine half gone must not hide the failure."""
        try:
            self.witness.look_back(machine, engine)
        except (ColdbenchError, OSError) as error:
            phase, self._phase = self._phase, "tear-down"
            self.fail(error)
            self._phase = phase
        self.witness.hear(engine)

    def _tear_down(self, machine: Machine, engine: Engine) -> None:
        self._close_probe()
        with killing_after(self.setup.timeouts.teardown_s, machine) as expired:
            engine.tear_down()
        if expired.is_set():
            self.witness.teardown_killed = True

    # -- the probe

    def watch(self, container: Container, machine: Machine) -> None:
        """Watches the container, which exists now, from its first instant."""
        self._probe = self.setup.scene.probe(container, machine, self.witness.daemons_alive)

    def _keep_output(self) -> None:
        if self._probe is not None:
            self.witness.output_tail = self._probe.output_tail()[-OUTPUT_TAIL_CHARACTERS:]

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()


@dataclass(frozen=True, slots=True)
class _Watch:
    """Hears what an engine tells while it deploys (``harness.engines.protocol.Watch``)."""

    course: Course
    machine: Machine
    meter: PhaseMeter

    def phase(self, name: Phase) -> None:
        self.meter.phase(name)

    def created(self, container: Container) -> None:
        self.course.watch(container, self.machine)
