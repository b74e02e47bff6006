"""This module prepares out of band, then runs every trial of the plan that is not recorded yet, one at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import __version__
from harness.errors import ColdbenchError, HostUnfit, Interrupted, RehearsalFailed, UsageError
from harness.model.faults import parse_fault
from harness.model.observation import Failure, Observation
from harness.model.plan import PlannedCase, PlannedTrial, estimate_trial_s, remaining_s
from harness.model.policy import PYFUSE3
from harness.session.faults.course import run_fault_trial
from harness.session.materials import confinement_of
from harness.session.requests import settings_of_case
from harness.session.storm import run_storm
from harness.session.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model.faults import FaultObservation
    from harness.model.scenario import Scenario
    from harness.session.interrupts import Interrupts
    from harness.session.progress import Progress
    from harness.session.setups import Setups
    from harness.session.store import Store


#: First guess at a pass of a run-time workload without a CPU limit, waiting and dropping caches included.
UNLIMITED_PASS_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says how a run ended, in counts over the whole session, including what was recorded before a resume."""

    ok: int
    invalid: int
    failed: int


def outcome_of(seen: Sequence[Observation | FaultObservation]) -> Outcome:
    """Counts observations; of a trial that was run again the last record counts."""
    latest = {o.trial: o for o in seen}.values()
    failed = sum(o.status == "failed" for o in latest)
    invalid = sum(o.status == "ok" and bool(o.invalid) for o in latest)
    return Outcome(len(latest) - failed - invalid, invalid, failed)


@dataclass
class SessionRun:
    """Runs what is left of a session.

    With ``keep_going`` a scenario whose image cannot be had is left out, and one whose workload fails by itself runs.
    """

    store: Store
    setups: Setups
    interrupts: Interrupts
    progress: Progress
    keep_going: bool = False
    takes: Callable[[PlannedTrial], bool] = lambda _trial: True
    """Says which trials of the plan are this run's: a shard has some of the blocks."""
    goes_on: Callable[[int, tuple[Observation, ...]], bool] = lambda _block, _seen: True
    """Is asked before each block after the first of this run, with all that is recorded: a gate may have seen enough.
    """
    host: str = ""
    """Names this host where the session has several; observations then carry the name."""
    _unprepared: dict[str, Failure] = field(default_factory=dict)
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    _guesses: dict[str, float] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Prepares, then runs every trial that is not recorded.

        A case that cannot be prepared gets failed trials, and the others go on where this raises nothing.

        Raises:
            Interrupted: stopped by a signal; what was recorded stays, and the session can be resumed.
            ColdbenchError: an image cannot be had (without ``keep_going``), no case can be prepared, or nothing can run
                on this host.
        """
        plan = self.store.header.plan
        left = self._left()
        cases = {case.case.key: case for case in plan.cases}
        needed = [cases[key] for key in dict.fromkeys(trial.case for trial in left)]
        self._guess({})
        self.progress.session(plan, len(self.store.finished), self._remaining())
        self.setups.unseal()
        try:
            self._prepare(needed)
        except (HostUnfit, Interrupted, UsageError):
            raise
        except ColdbenchError:
            for trial in left:
                if trial.case in self._unprepared and not trial.fault:
                    self.store.append(self._run_one(trial, cases[trial.case]))
            raise
        self.setups.seal()
        block = left[0].block if left else 0
        for trial in left:
            if trial.block != block and not self.goes_on(trial.block, tuple(self.store.observations)):
                break
            block = trial.block
            position = len(self.store.finished) + 1
            self.progress.trial(trial, position, self._remaining())
            started = time.monotonic()
            if trial.fault:
                failing = self._run_fault(trial, cases[trial.case])
                if failing is not None:
                    self._seconds.setdefault(trial.kind, []).append(time.monotonic() - started)
                    self.store.append_fault(failing.model_copy(update={"host": self.host}))
                    self.progress.fault_ended(failing, self._remaining())
                continue
            observation = self._run_one(trial, cases[trial.case])
            self._seconds.setdefault(trial.kind, []).append(time.monotonic() - started)
            if self.host:
                observation = observation.model_copy(update={"host": self.host})
            self.store.append(observation)
            self.progress.ended(observation, self._remaining())
        return self.outcome()

    def _left(self) -> list[PlannedTrial]:
        plan, finished = self.store.header.plan, self.store.finished
        left = [trial for trial in plan.trials if trial.trial not in finished and self.takes(trial)]
        if self.host:
            # A block that another host began is run whole here: its trials are compared with each other.
            begun = {trial.block for trial in left}
            left = [trial for trial in plan.trials if trial.block in begun and self.takes(trial)]
        return left

    def outcome(self) -> Outcome:
        """Counts what is recorded."""
        return outcome_of((*self.store.observations, *self.store.faults))

    def _scenario(self, case: PlannedCase) -> Scenario:
        return self.store.header.scenarios[case.case.scenario]

    # -- out of band

    def _prepare(self, needed: list[PlannedCase]) -> None:
        errors: list[ColdbenchError] = []
        for name in dict.fromkeys(case.case.scenario for case in needed):
            of_scenario = [case for case in needed if case.case.scenario == name]
            scenario = self.store.header.scenarios[name]
            try:
                material = self.setups.material(scenario)
            except (HostUnfit, Interrupted):
                raise
            except ColdbenchError as error:
                errors.append(error)
                for case in of_scenario:
                    self._give_up(case, error)
                if not self.keep_going:
                    raise
                continue
            self._guess({name: material.compressed_bytes})
            errors += [wrong for case in of_scenario if (wrong := self._publish(case)) is not None]
            if self._prepared(of_scenario):
                errors += self._rehearse(scenario, of_scenario)
                errors += self._sample(scenario, of_scenario)
        if needed and not self._prepared(needed):
            raise errors[0]

    def _prepared(self, cases: list[PlannedCase]) -> list[PlannedCase]:
        return [case for case in cases if case.case.key not in self._unprepared]

    def _publish(self, case: PlannedCase) -> ColdbenchError | None:
        try:
            self.setups.publish(case)
        except (HostUnfit, Interrupted):
            raise
        except ColdbenchError as error:
            return self._give_up(case, error)
        return None

    def _rehearse(self, scenario: Scenario, cases: list[PlannedCase]) -> list[ColdbenchError]:
        traced = [case for case in cases if settings_of_case(scenario, case).prefetch == "trace"]
        try:
            self.setups.rehearsals.rehearse(scenario, trace=bool(self._prepared(traced)))
        except Interrupted:
            raise
        except RehearsalFailed as error:
            if not self.keep_going:
                raise
            self.progress.remark(str(error))
            return self._rehearse_without(scenario, traced)
        except ColdbenchError as error:
            for case in traced:
                self._give_up(case, error)
            self.setups.rehearsals.rehearse(scenario, trace=False)
            return [error]
        return []

    def _rehearse_without(self, scenario: Scenario, traced: list[PlannedCase]) -> list[ColdbenchError]:
        """Prepares what is left for a workload that failed on a machine without limits: its trials run all the same."""
        try:
            self.setups.rehearsals.rehearse(scenario, trace=bool(self._prepared(traced)), calibrate=False)
        except Interrupted:
            raise
        except ColdbenchError as error:
            for case in traced:
                self._give_up(case, error)
            self.setups.rehearsals.rehearse(scenario, trace=False, calibrate=False)
            return [error]
        return []

    def _sample(self, scenario: Scenario, cases: list[PlannedCase]) -> list[ColdbenchError]:
        """Chooses the files that fault trials read, where the plan has any of this scenario."""
        keys = {case.case.key for case in cases}
        if not any(trial.fault and trial.case in keys for trial in self.store.header.plan.trials):
            return []
        try:
            self.setups.rehearsals.sample(scenario)
        except (HostUnfit, Interrupted):
            raise
        except ColdbenchError as error:
            for case in cases:
                self._give_up(case, error)
            return [error]
        return []

    def _give_up(self, case: PlannedCase, error: ColdbenchError) -> ColdbenchError:
        self._unprepared[case.case.key] = Failure(kind=error.kind, message=str(error), phase="preparation")
        return error

    # -- trials

    def _run_one(self, trial: PlannedTrial, case: PlannedCase) -> Observation:
        failure = self._unprepared.get(trial.case)
        if failure is not None:
            settings = settings_of_case(self.store.header.scenarios[case.case.scenario], case)
            return Observation(
                coldbench_version=__version__,
                session=self.store.header.session,
                trial=trial.trial,
                block=trial.block,
                case=case.case,
                options=settings.options,
                prefetch=settings.prefetch_kind,
                started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                status="failed",
                failure=failure,
            )
        if case.case.machines is not None:
            with self.setups.storm(trial, case) as setups:
                return run_storm(setups)
        return run_trial(self.setups.setup(trial, case))

    def _run_fault(self, trial: PlannedTrial, case: PlannedCase) -> FaultObservation | None:
        """Runs one trial of what fails after ready; None where the case could not be prepared, as its starts say."""
        if trial.case in self._unprepared:
            return None
        scenario = self._scenario(case)
        assert scenario.faults is not None
        return run_fault_trial(
            self.setups.setup(trial, case), parse_fault(trial.fault), scenario.faults,
            self.setups.samples(scenario), confinement_of(scenario),
        )  # fmt: skip

    # -- time

    def _guess(self, compressed_bytes: dict[str, int]) -> None:
        """Makes first guesses for all cases, or better ones for the scenarios whose image is known now."""
        header = self.store.header
        for case in header.plan.cases:
            name = case.case.scenario
            if compressed_bytes and name not in compressed_bytes:
                continue
            runtime = header.scenarios[name].runtime
            passes = len(runtime.workloads) * len(runtime.temperatures) if header.workloads else 0
            limited = passes if runtime.quota == "shape" else 0
            guess = estimate_trial_s(case, compressed_bytes.get(name, 0), limited)
            self._guesses[case.case.key] = guess + (passes - limited) * UNLIMITED_PASS_S

    def _remaining(self) -> float:
        plan = self.store.header.plan
        others = (trial.trial for trial in plan.trials if not self.takes(trial))
        return remaining_s(plan, self._seconds, self.store.finished.union(others), self._guesses)


def versions() -> dict[str, str]:
    """Returns the versions of what takes part, for the header."""
    import platform
    from importlib import metadata

    names = ("pydantic", "trio", "pycurl", "isal", "numpy", "pyroute2", PYFUSE3)
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"coldbench": __version__, "python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
