"""The run loop: prepare out of band, then every trial of the plan that is not recorded yet, one at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.errors import ColdbenchError, HostUnfit, Interrupted, WorkloadError
from harness.model.observation import Failure, Observation
from harness.model.plan import PlannedCase, PlannedTrial, estimate_trial_s, remaining_s
from harness.model.session import Preparation
from harness.model.shape import parse_shape
from harness.session import traces
from harness.session.preparation import Cost
from harness.session.requests import choices_of, make_request
from harness.session.trial import TrialSetup, run_trial

if TYPE_CHECKING:
    from harness.engines.protocol import WorkloadRunner
    from harness.model.bound import ImageSize
    from harness.model.scenario import Scenario
    from harness.session.bounds import Bounder
    from harness.session.interrupts import Interrupts
    from harness.session.preparation import Preparer, Published
    from harness.session.progress import Progress
    from harness.session.registry import Endpoint
    from harness.session.store import Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; counts over the whole session, what was recorded before a resume included."""

    ok: int
    invalid: int
    failed: int


@dataclass(slots=True)
class _Material:
    """What the trials of one scenario share: image figures and run-time workloads."""

    size: ImageSize | None = None
    workloads: WorkloadRunner | None = None
    digest: str = ""


@dataclass
class SessionRun:
    """Runs what is left of a session. ``bounder`` None leaves the lower bounds out."""

    store: Store
    preparer: Preparer
    endpoint: Endpoint
    interrupts: Interrupts
    progress: Progress
    bounder: Bounder | None = None
    keep_going: bool = False
    _materials: dict[str, _Material] = field(default_factory=dict)
    _unprepared: dict[str, Failure] = field(default_factory=dict)
    _published: dict[str, Published] = field(default_factory=dict)
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    _guesses: dict[str, float] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Prepare, then run every trial that is not recorded.

        Raises:
            Interrupted: stopped by a signal; what was recorded stays, and the session can be resumed.
            ColdbenchError: preparation failed (without ``keep_going``), or nothing can run on this host.
        """
        plan = self.store.header.plan
        left = [trial for trial in plan.trials if trial.trial not in self.store.finished]
        cases = {case.case.key: case for case in plan.cases}
        needed = [cases[key] for key in dict.fromkeys(trial.case for trial in left)]
        self._guess({})
        self.progress.session(plan, len(plan.trials) - len(left), self._remaining())
        with self.interrupts.allowed():
            for case in needed:
                self._prepare(case)
        for case in needed:
            if choices_of(self._scenario(case), case.choice).prefetch == "trace":
                self._trace(case)
        for trial in left:
            position = len(self.store.finished) + 1
            self.progress.trial(trial, position, self._remaining())
            started = time.monotonic()
            observation = self._run_one(trial, cases[trial.case])
            self._seconds.setdefault(trial.case, []).append(time.monotonic() - started)
            self.store.append(observation)
            self.progress.ended(observation, self._remaining())
        return self.outcome()

    def outcome(self) -> Outcome:
        """Counts of what is recorded."""
        seen = self.store.observations
        failed = sum(o.status == "failed" for o in seen)
        invalid = sum(o.status == "ok" and bool(o.invalid) for o in seen)
        return Outcome(len(seen) - failed - invalid, invalid, failed)

    def _scenario(self, case: PlannedCase) -> Scenario:
        return self.store.header.scenarios[case.case.scenario]

    # -- out of band

    def _prepare(self, case: PlannedCase) -> None:
        scenario = self._scenario(case)
        try:
            if scenario.name not in self._materials:
                self._materials[scenario.name] = self._material(scenario)
                self._guess({scenario.name: self.preparer.local(scenario).compressed_bytes})
            self._published[case.case.key] = self.preparer.publish(scenario, case.choice.mode)
        except (HostUnfit, Interrupted):
            raise
        except ColdbenchError as error:
            if not self.keep_going:
                raise
            self._unprepared[case.case.key] = Failure(kind=error.kind, message=str(error), phase="preparation")

    def _material(self, scenario: Scenario) -> _Material:
        """List the image's files once, where bounds or workloads need them."""
        from harness.oci.location import open_source
        from harness.probes.selection import select
        from harness.probes.workloads import FileWorkloads, PlannedWorkload
        from harness.session.bounds import image_size
        from harness.session.image_files import list_files

        local = self.preparer.local(scenario)
        wanted = scenario.runtime.workloads if self.store.header.workloads else ()
        material = _Material(digest=local.digest)
        if self.bounder is None and not wanted:
            return material
        self.progress.preparing(scenario.name, "listing files")
        with open_source(local.name) as source:
            files = list_files(source, local.image, self.preparer.cache.root)
        material.size = image_size(local.image, files)
        if wanted:
            planned = [
                PlannedWorkload(w.name, w.temperatures or scenario.runtime.temperatures, w.arguments) for w in wanted
            ]
            seed = self.store.header.plan.seed
            selection = select([file.for_selection() for file in files], seed)
            material.workloads = FileWorkloads(planned, selection, seed=seed, progress=self._workload_phase)
        return material

    def _workload_phase(self, what: str) -> None:
        self.progress.phase(f"workloads: {what}")

    def _trace(self, case: PlannedCase) -> None:
        """Record what the case's start reads, in a trial of its own on an unlimited machine, unless it is known."""
        scenario = self._scenario(case)
        if case.case.key in self._unprepared:
            return
        digest = self._materials[scenario.name].digest
        path = traces.place(self.preparer.cache, digest, scenario.workload)
        cost: Cost | None = None
        paths = traces.load(path)
        if paths is None:
            self.progress.preparing(scenario.name, "trace")
            cost = Cost()
            traced = PlannedCase(
                case=case.case, choice=case.choice, shape=parse_shape("unlimited"), distance=case.distance
            )
            touches: list[dict[str, Any]] = []
            setup = self._setup(PlannedTrial(trial=0, block=0, case=case.case.key), traced, touches)
            observation = run_trial(setup)
            if observation.failure is not None:
                raise WorkloadError(f"{scenario.name}: the trace trial failed: {observation.failure.message}")
            paths = traces.paths_of(touches)
            traces.save(path, paths)
        wall_s, cpu_s = cost.read() if cost else (0.0, 0.0)
        self.store.append_preparation(
            Preparation(
                scenario=scenario.name, form="trace", digest=digest, cached=cost is None, wall_s=wall_s, cpu_s=cpu_s,
                details={"paths": len(paths)},
            )
        )  # fmt: skip

    # -- trials

    def _run_one(self, trial: PlannedTrial, case: PlannedCase) -> Observation:
        failure = self._unprepared.get(trial.case)
        if failure is not None:
            return Observation(
                coldbench_version=__version__,
                session=self.store.header.session,
                trial=trial.trial,
                block=trial.block,
                case=case.case,
                started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                status="failed",
                failure=failure,
            )
        return run_trial(self._setup(trial, case))

    def _setup(self, trial: PlannedTrial, case: PlannedCase, touches: list[dict[str, Any]] | None = None) -> TrialSetup:
        """A trial's set-up; with ``touches`` it is a trace trial."""
        from harness.engines import make_engine
        from harness.machine.machine import Machine
        from harness.probes.readiness import make_probe

        scenario = self._scenario(case)
        material = self._materials[scenario.name]
        published = self._published[case.case.key]
        trace = touches is not None
        prefetch: tuple[str, ...] = ()
        if not trace and choices_of(scenario, case.choice).prefetch == "trace":
            prefetch = traces.load(traces.place(self.preparer.cache, material.digest, scenario.workload)) or ()
        endpoint = self.endpoint
        size, bounder = material.size, self.bounder
        return TrialSetup(
            session=self.store.header.session,
            trial=trial,
            case=case,
            request=lambda machine: make_request(
                scenario, case, published, endpoint, machine, traced=prefetch, trace=trace
            ),
            readiness=scenario.workload.readiness,
            image_digest=material.digest,
            image_compressed_bytes=published.compressed_bytes,
            deploy_timeout_s=scenario.timeouts.deploy_s,
            background_timeout_s=scenario.timeouts.background_s,
            teardown_timeout_s=scenario.timeouts.teardown_s,
            make_machine=lambda: Machine(
                case.shape, case.distance, name=case.case.key, registry_upstream=endpoint.upstream
            ),
            make_engine=lambda: make_engine(case.case.engine),
            make_probe=make_probe,
            interrupts=self.interrupts,
            progress=self.progress,
            workloads=None if trace else material.workloads,
            bound=lambda fetched: bounder.bound(case, size, fetched) if bounder and size else None,
            requests=endpoint.requests,
            touches=touches if touches is not None else [],
        )

    # -- time

    def _guess(self, compressed_bytes: dict[str, int]) -> None:
        """First guesses for all cases, or better ones for the scenarios whose image is known now."""
        header = self.store.header
        for case in header.plan.cases:
            name = case.case.scenario
            if compressed_bytes and name not in compressed_bytes:
                continue
            runtime = header.scenarios[name].runtime
            passes = len(runtime.workloads) * len(runtime.temperatures) if header.workloads else 0
            self._guesses[case.case.key] = estimate_trial_s(case, compressed_bytes.get(name, 0), passes)

    def _remaining(self) -> float:
        return remaining_s(self.store.header.plan, self._seconds, self.store.finished, self._guesses)


def versions() -> dict[str, str]:
    """Versions of what takes part, for the header."""
    import platform
    from importlib import metadata

    names = ("pydantic", "pyfuse3", "trio", "pycurl", "isal", "numpy", "pyroute2")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"coldbench": __version__, "python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
