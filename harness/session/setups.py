"""This module makes trials from scenarios and cases: it publishes images, lists files and traces starts, each once per
session.

Beside the trials of the plan there are two kinds that run out of band and are kept in the cache directory: the *trace*
(what a start reads) and the *calibration* (CPU seconds the workload itself needs, ``harness.session.application``).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.engines.confinement import Confinement
from harness.errors import ColdbenchError, Interrupted, NotReady, RehearsalFailed, WorkloadError, WorkloadExited
from harness.model.axes import axis_values
from harness.model.details import PreparationDetails, StormUse
from harness.model.modes import EMBEDDED, OVERLAY2, Form, recorder, recorder_options, tracer
from harness.model.observation import Case
from harness.model.plan import PlannedCase, PlannedTrial
from harness.model.scenario import ModeChoice
from harness.model.session import Preparation
from harness.model.shape import Distance, parse_shape
from harness.model.workload import ExitReadiness
from harness.probes import share
from harness.probes.readiness import LAST_WORDS
from harness.session import application, recordings, traces
from harness.session.faults.injection import gate_of
from harness.session.inventory import Inventory
from harness.session.preparation import Cost
from harness.session.progress import last_lines
from harness.session.requests import settings_of_case
from harness.session.scene import CaseBound, CaseScene
from harness.session.setup import TrialSetup, Unbounded
from harness.session.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from harness.engines.protocol import WorkloadRunner
    from harness.formats.erofs.recording import Recording
    from harness.lazyfs.messages import Option, ReadRange, Touch
    from harness.model.bound import ImageSize
    from harness.model.modes import Mode
    from harness.model.observation import Observation
    from harness.model.scenario import Scenario
    from harness.model.shape import Shape
    from harness.probes.share import ShareStart
    from harness.session.bounds import Bounder
    from harness.session.faults.sampling import Samples
    from harness.session.image_files import ListedFile
    from harness.session.interrupts import Interrupts
    from harness.session.preparation import Preparer, Published
    from harness.session.progress import Progress
    from harness.session.registry import Endpoint
    from harness.session.setup import LowerBound
    from harness.session.traces import Recorded


#: Failures that a container brings about itself.
_OF_THE_WORKLOAD = frozenset({WorkloadExited.__name__, NotReady.__name__})


@dataclass(slots=True)
class Material:
    """Holds what the trials of one scenario share."""

    digest: str
    compressed_bytes: int
    layers: tuple[int, ...] = ()
    files: list[ListedFile] = field(default_factory=list)
    size: ImageSize | None = None
    application_core_s: float = 0.0
    workloads: WorkloadRunner | None = None
    reading: ShareStart | None = None
    """Says what the start runs and reads; None unless the scenario's start reads a share of the image."""
    samples: Samples | None = None


def roomy_shape() -> Shape:
    """Returns a shape without limits but half of this host's memory: a greedy workload must not take the host along."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return parse_shape("unlimited").model_copy(update={"memory_bytes": memory_bytes // 2})


def side_case(
    scenario: Scenario, mode: Mode, shape: Shape | None = None, options: Mapping[str, Option] | None = None
) -> PlannedCase:
    """Makes a case that is in no plan: the mode's best preset, no distance, a roomy machine unless a shape is given."""
    shape = shape or roomy_shape()
    distance = shape.distance or Distance()
    choice = ModeChoice(mode=mode.name, preset=mode.best.name, options=dict(options or {}))
    case = Case(
        scenario=scenario.name, mode=choice.mode, preset=choice.preset, engine=EMBEDDED, shape=shape.label,
        distance=distance.name, **axis_values(scenario),
    )  # fmt: skip
    return PlannedCase(case=case, choice=choice, shape=shape, distance=distance)


def _members(scenario: Scenario) -> list[Scenario]:
    """Returns what each machine of a trial starts: the scenario, or for distinct images a copy of it with blobs of its
    own.
    """
    storm = scenario.storm
    if storm is None or storm.images == "same":
        return [scenario]
    copies = [
        scenario.model_copy(
            update={
                "name": f"{scenario.name}.copy{number}",
                "image": scenario.image.model_copy(update={"copy_number": number}),
            }
        )
        for number in range(1, storm.machines)
    ]
    return [scenario, *copies]


def _described(reading: ShareStart) -> dict[str, str | int]:
    """Returns what a start reads, as the record keeps it."""
    return {
        "with": reading.command[0], "bytes": reading.bytes, "pieces": reading.pieces, "of_bytes": reading.of_bytes
    }  # fmt: skip


def recorded_scenario(scenario: Scenario, command: Sequence[str]) -> Scenario:
    """Returns the scenario whose start is recorded: this one, or one of the same image that runs ``command`` to its
    end.
    """
    if not command:
        return scenario
    workload = scenario.workload.model_copy(
        update={"command": tuple(command), "reads": None, "readiness": ExitReadiness(kind="exit")}
    )
    return scenario.model_copy(update={"workload": workload})


def confinement_of(scenario: Scenario) -> Confinement:
    """Returns what the container is kept from; what the scenario asks for is allowed."""
    asked = scenario.workload
    return Confinement(asked.capabilities, asked.devices, asked.privileged)


@dataclass
class Setups:
    """Makes trials of some scenarios. ``bounder`` None leaves the lower bounds out, and their calibration."""

    session: str
    seed: int
    scenarios: Mapping[str, Scenario]
    preparer: Preparer
    endpoint: Endpoint
    interrupts: Interrupts
    progress: Progress
    bounder: Bounder | None = None
    with_workloads: bool = True
    trace_starts: bool = False
    """Says whether a start is traced also where no case and no workload needs it: a gate names the files that it reads.
    """
    keep_inventory: Callable[[Inventory], None] = lambda _inventory: None
    _materials: dict[str, Material] = field(default_factory=dict)
    _published: dict[tuple[str, Form, tuple[str, ...]], Published] = field(default_factory=dict)

    # -- out of band

    def publish(self, case: PlannedCase) -> None:
        """Puts the form of the image that a case pulls, and of each copy, into the registry. Raises ColdbenchError."""
        for scenario in _members(self.scenarios[case.case.scenario]):
            self._publish(scenario, case)

    def _publish(self, scenario: Scenario, case: PlannedCase) -> None:
        """Publishes one image of a case; a form made for what a start reads follows the start of the case's own
        scenario.
        """
        own = self.scenarios[case.case.scenario]
        key = (scenario.name, case.form, tuple(case.choice.record))
        if key not in self._published:
            first: tuple[str, ...] = ()
            recording: Recording | None = None
            if case.form is Form.ESTARGZ_OPTIMIZED:
                first = self._trace(own, self.material(own)).paths
            elif case.form is Form.EROFS_PACKED:
                # A copy has layers of its own, of which a recording of the original says nothing.
                wanted = recorded_scenario(scenario, case.choice.record)
                recording = self._record(wanted, self.material(scenario))
            with self.interrupts.allowed():
                published = self.preparer.publish(scenario, case.form, first, recording)
                self.endpoint.explore(published.repository, published.reference)
                self._published[key] = published

    def unseal(self) -> None:
        """Lets the session's registry take what is published from now on."""
        self.endpoint.unseal()

    def seal(self) -> None:
        """Tells the session's registry to take nothing any more: all that trials pull has been published."""
        self.endpoint.seal()

    def material(self, scenario: Scenario) -> Material:
        """Returns the scenario's image on this disk, with its files listed where bounds or workloads need them."""
        if scenario.name not in self._materials:
            with self.interrupts.allowed():
                self._materials[scenario.name] = self._material(scenario)
        return self._materials[scenario.name]

    def _material(self, scenario: Scenario) -> Material:
        from harness.oci.location import open_source
        from harness.session.bounds import image_size
        from harness.session.image_files import list_files

        local = self.preparer.local(scenario)
        material = Material(local.digest, local.compressed_bytes, tuple(layer.size for layer in local.image.layers))
        reads = scenario.workload.reads
        if self.bounder is not None or self._workloads(scenario) or reads is not None:
            self.progress.preparing(scenario.name, "listing files")
            with open_source(local.name) as source:
                material.files = list_files(source, local.image, self.preparer.cache.root)
            material.size = image_size(local.image, material.files)
        if reads is not None:
            files = [file.for_selection() for file in material.files]
            material.reading = share.start(files, reads.percent, reads.seed, reads.by)
        return material

    def _workloads(self, scenario: Scenario) -> bool:
        return self.with_workloads and bool(scenario.runtime.workloads)

    def rehearse(self, scenario: Scenario, *, trace: bool, calibrate: bool = True) -> None:
        """Runs the scenario's trials out of band, unless their results are kept, and prepares its workloads.

        The calibration comes first: a full pull on a machine without limits shows whether the workload works at all.

        Raises:
            RehearsalFailed: the workload fails by itself, and every trial would.
            ColdbenchError: the trace is wanted (``trace``) and failed. Where it only says which files are not cold any
                more, and the calibration, they are done without: the preparation says why.
        """
        material = self.material(scenario)
        if self.bounder is not None and calibrate:
            try:
                material.application_core_s = self._calibrate(scenario, material)
            except (Interrupted, RehearsalFailed):
                raise
            except ColdbenchError as error:
                self._note(scenario, "application", material, None, PreparationDetails(error=str(error)))
        touched: tuple[str, ...] | None = None
        if trace or self.trace_starts or self._workloads(scenario):
            try:
                touched = self._trace(scenario, material).paths
            except Interrupted:
                raise
            except ColdbenchError as error:
                if trace:
                    raise
                self._note(scenario, "trace", material, None, PreparationDetails(error=str(error)))
        if self._workloads(scenario):
            material.workloads = self._make_workloads(scenario, material, touched or ())
        if material.files:
            listed = {file.path: file.size for file in material.files}
            self.keep_inventory(Inventory(material.digest, material.layers, listed, touched))

    def sample(self, scenario: Scenario) -> None:
        """Chooses the files that fault trials read, by what a trace of the start touched. Raises ColdbenchError."""
        from harness.oci.location import open_source
        from harness.session.faults.sampling import choose, load_truth

        material = self.material(scenario)
        touched = self._trace(scenario, material).paths
        with self.interrupts.allowed():
            self.progress.preparing(scenario.name, "hashing the image's files")
            local = self.preparer.local(scenario)
            with open_source(local.name) as source:
                truth = load_truth(source, local.image, self.preparer.cache.root)
        material.samples = choose(truth, touched, self.seed)

    def samples(self, scenario: Scenario) -> Samples:
        """Returns the files that ``sample`` chose."""
        found = self._materials[scenario.name].samples
        assert found is not None, "the run samples before its first trial"
        return found

    def _make_workloads(self, scenario: Scenario, material: Material, touched: tuple[str, ...]) -> WorkloadRunner:
        from harness.probes.selection import select
        from harness.probes.workloads import FileWorkloads, PlannedWorkload

        runtime = scenario.runtime
        planned = [
            PlannedWorkload(w.name, w.temperatures or runtime.temperatures, w.arguments, setup=w.setup)
            for w in runtime.workloads
        ]
        selection = select([file.for_selection() for file in material.files], self.seed, touched=touched)

        def progress(what: str) -> None:
            self.progress.phase(f"workloads: {what}")

        return FileWorkloads(
            planned,
            selection,
            seed=self.seed,
            confinement=confinement_of(scenario),
            repeat_s=runtime.repeat_s,
            reference_s=runtime.reference_s,
            progress=progress,
        )

    def _note(
        self, scenario: Scenario, form: str, material: Material, cost: Cost | None, details: PreparationDetails
    ) -> None:
        wall_s, cpu_s = cost.read() if cost else (0.0, 0.0)
        self.preparer.record(
            Preparation(
                scenario=scenario.name, form=form, digest=material.digest, wall_s=wall_s,
                cached=cost is None and details.error is None, cpu_s=cpu_s, details=details,
            )
        )  # fmt: skip

    def _trace(self, scenario: Scenario, material: Material) -> Recorded:
        """Returns what the start reads."""
        path = traces.place(self.preparer.cache, material.digest, scenario.workload)
        recorded = traces.load(path)
        cost: Cost | None = None
        if recorded is None:
            case = side_case(scenario, tracer())
            self.publish(case)  # a preparation of its own
            self.progress.preparing(scenario.name, "tracing a start")
            cost = Cost()
            observation, touches = self.trace(case)
            recorded = traces.recorded(touches, observation.time_to_ready_s or 0.0)
            traces.save(path, recorded)
        found = PreparationDetails(paths=len(recorded.paths), reads=len(recorded.reads))
        self._note(scenario, "trace", material, cost, found)
        return recorded

    def _record(self, scenario: Scenario, material: Material) -> Recording:
        """Returns what the kernel asks for during a start; a start pack is made from it."""
        path = recordings.place(self.preparer.cache, material.digest, scenario.workload)
        recording = recordings.load(path)
        cost: Cost | None = None
        if recording is None:
            recorders, case = self._recorder(scenario)
            self.progress.preparing(scenario.name, "recording a start")
            cost = Cost()
            recording = recorders._recorded(case)
            recordings.save(path, recording)
        self._note(scenario, "recording", material, cost, PreparationDetails(ranges=len(recording.ranges)))
        return recording

    def record(self, scenario: Scenario) -> Recording:
        """Runs one trial that records what the kernel asks for of the layers; raises WorkloadError when it fails."""
        recorders, case = self._recorder(scenario)
        return recorders._recorded(case)

    def _recorder(self, scenario: Scenario) -> tuple[Setups, PlannedCase]:
        """Makes what a recorded start needs, the form of the image among it, which is a preparation of its own."""
        scenario = scenario.model_copy(update={"storm": None})
        case = side_case(scenario, recorder(), options=recorder_options())
        mine = replace(self, scenarios={**self.scenarios, scenario.name: scenario})
        mine.material(scenario)
        mine.publish(case)
        return mine, case

    def _recorded(self, case: PlannedCase) -> Recording:
        ranges: list[ReadRange] = []
        observation = self._side_trial(case, "recording", [], ranges)
        local = self.preparer.local(self.scenarios[case.case.scenario])
        layers = [layer.digest for layer in local.image.layers]
        return recordings.recording_of(ranges, layers, observation.time_to_ready_s or 0.0)

    def trace(self, case: PlannedCase) -> tuple[Observation, list[Touch]]:
        """Runs one trial that records its reads, prefetch off; raises WorkloadError when it fails."""
        self.publish(case)
        touches: list[Touch] = []
        observation = self._side_trial(case, "trace", touches)
        ready_s = observation.time_to_ready_s or 0.0
        return observation, [touch for touch in touches if touch.t_s <= ready_s]

    def trace_use(self, case: PlannedCase) -> tuple[str, ...]:
        """Returns the paths that a start reads, and then the scenario's own commands, each run once after it.

        The program's own workloads are left out: they read the files that are dealt to them, which nobody needs. The
        result is kept, by image and by what is run. Raises WorkloadError when the trial fails.
        """
        scenario = self.scenarios[case.case.scenario]
        commands = [
            workload.model_copy(update={"temperatures": ("cold",)})
            for workload in scenario.runtime.workloads
            if workload.arguments
        ]
        runtime = scenario.runtime.model_copy(update={"workloads": tuple(commands), "reference_s": 0.0})
        material = self.material(scenario)
        path = traces.place_of_use(self.preparer.cache, material.digest, scenario.workload, runtime)
        known = traces.load(path)
        if known is not None:
            return known.paths
        self.progress.preparing(scenario.name, "tracing a start and the commands after it")
        self.publish(case)
        only = scenario.model_copy(update={"runtime": runtime})
        runner = self._make_workloads(only, material, ()) if commands else None
        touches: list[Touch] = []
        self._side_trial(case, "trace", touches, workloads=runner)
        seen = traces.recorded(touches)
        traces.save(path, seen)
        return seen.paths

    def _calibrate(self, scenario: Scenario, material: Material) -> float:
        """Returns the workload's core-seconds from its start until ready, as the lower bound takes them."""
        assert self.bounder is not None
        host = self.bounder.rates.host
        path = application.place(self.preparer.cache, material.digest, scenario.workload, host)
        figure = application.load(path)
        cost: Cost | None = None
        if figure is None:
            case = side_case(scenario, OVERLAY2)
            self.publish(case)  # a preparation of its own
            self.progress.preparing(scenario.name, "measuring the workload's own CPU")
            cost = Cost()
            measured = [
                float(self._side_trial(case, "calibration").details.cpu_from_start_s or 0.0)
                for _ in range(application.TRIALS)
            ]
            figure = application.save(path, measured)
            details = PreparationDetails(application_core_s=figure, measured_s=tuple(measured))
        else:
            details = PreparationDetails(application_core_s=figure)
        self._note(scenario, "application", material, cost, details)
        return figure

    def _side_trial(
        self,
        case: PlannedCase,
        what: str,
        touches: list[Touch] | None = None,
        ranges: list[ReadRange] | None = None,
        workloads: WorkloadRunner | None = None,
    ) -> Observation:
        setup = self.setup(PlannedTrial(trial=0, block=0, case=case.case.key), case, touches, side=True)
        setup = replace(setup, workloads=workloads)
        if ranges is not None:
            setup = replace(setup, ranges=ranges)
        observation = run_trial(setup)
        failure = observation.failure
        if failure is None:
            return observation
        if failure.kind in _OF_THE_WORKLOAD and failure.phase == "start":
            how = failure.message.partition(LAST_WORDS)[0]
            said = last_lines(observation.output_tail) or ["(it wrote nothing)"]
            alone = f"{case.case.scenario}: the workload fails by itself, on a machine without limits: {how}"
            raise RehearsalFailed("\n    ".join([f"{alone}; the end of its output:", *said]))
        raise WorkloadError(f"{case.case.scenario}: the {what} trial failed: {failure.message}")

    # -- trials

    def setup(
        self,
        trial: PlannedTrial,
        case: PlannedCase,
        touches: list[Touch] | None = None,
        *,
        side: bool = False,
    ) -> TrialSetup:
        """Makes a trial's set-up. With ``side`` it has no workloads and no bound; ``touches`` collects the reads."""
        scenario = self.scenarios[case.case.scenario]
        return self._setup(trial, case, scenario, touches, side=side)

    @contextmanager
    def storm(self, trial: PlannedTrial, case: PlannedCase) -> Iterator[list[TrialSetup]]:
        """Makes the set-ups of a storm's machines; the line that they share on the way from the registry is there
        meanwhile.

        Raises UsageError where an uplink is wanted in front of a registry that is not the session's own.
        """
        scenario = self.scenarios[case.case.scenario]
        wanted = scenario.storm
        assert wanted is not None, "a storm's scenario says so"
        members = _members(scenario)
        shared = StormUse(machines=wanted.machines, images=wanted.images, uplink_bytes_s=wanted.uplink_bytes_s)
        with self.endpoint.behind(wanted.uplink_bytes_s) as endpoint:
            yield [
                replace(
                    self._setup(trial, case, members[number % len(members)], None, side=False, endpoint=endpoint),
                    storm=shared,
                )
                for number in range(wanted.machines)
            ]

    def _setup(
        self,
        trial: PlannedTrial,
        case: PlannedCase,
        scenario: Scenario,
        touches: list[Touch] | None,
        *,
        side: bool,
        endpoint: Endpoint | None = None,
    ) -> TrialSetup:
        endpoint = endpoint or self.endpoint
        material = self._materials[case.case.scenario]
        published = self._published[scenario.name, case.form, tuple(case.choice.record)]
        recorded: Recorded | None = None
        settings = settings_of_case(scenario, case)
        if not side and settings.prefetch == "trace":
            recorded = traces.load(traces.place(self.preparer.cache, material.digest, scenario.workload))
        reads = recorded.reads if recorded is not None else ()
        reading = material.reading
        command = reading.command if reading else ()
        gated = gate_of(trial.fault)
        scene = CaseScene(scenario, case, published, endpoint, reads, command, trace=touches is not None, gated=gated)
        timeouts = scenario.timeouts
        bound: LowerBound = Unbounded()
        if self.bounder is not None and material.size is not None and not side:
            bound = CaseBound(self.bounder, case, material.size, material.application_core_s)
        return TrialSetup(
            session=self.session,
            trial=trial,
            case=case,
            scene=scene,
            timeouts=timeouts.model_copy(update={"background_s": 0.0}) if side else timeouts,
            readiness=scenario.workload.readiness.kind,
            settings=settings,
            image_digest=material.digest,
            image_compressed_bytes=published.compressed_bytes,
            interrupts=self.interrupts,
            progress=self.progress,
            workloads=None if side or trial.fault else material.workloads,
            lift_quota=scenario.runtime.quota == "none",
            bound=bound,
            reads={} if reading is None else _described(reading),
            privileges=confinement_of(scenario).described(),
            requests=self.endpoint.requests,
            touches=touches if touches is not None else [],
        )
