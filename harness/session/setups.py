"""This module makes trials from scenarios and cases: it publishes images and lists their files, each once per session.

Beside the trials of the plan there are others that are in none (``harness.session.side_trials``), which rehearse a
scenario (``harness.session.rehearsals``).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.model.details import StormUse
from harness.model.modes import Form
from harness.probes import share
from harness.session import traces
from harness.session.faults.injection import gate_of
from harness.session.materials import Material, confinement_of, described, members, recorded_scenario
from harness.session.rehearsals import Rehearsals
from harness.session.requests import settings_of_case
from harness.session.scene import CaseBound, CaseScene
from harness.session.setup import TrialSetup, Unbounded
from harness.session.side_trials import SideTrials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.formats.erofs.recording import Recording
    from harness.lazyfs.messages import Touch
    from harness.model.plan import PlannedCase, PlannedTrial
    from harness.model.scenario import Scenario
    from harness.session.bounds import Bounder
    from harness.session.faults.sampling import Samples
    from harness.session.interrupts import Interrupts
    from harness.session.inventory import Inventory
    from harness.session.preparation import Preparer, Published
    from harness.session.progress import Progress
    from harness.session.registry import Endpoint
    from harness.session.setup import LowerBound
    from harness.session.traces import Recorded


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

    def __post_init__(self) -> None:
        self.side = SideTrials(self)
        self.rehearsals = Rehearsals(self)

    # -- images

    def publish(self, case: PlannedCase) -> None:
        """Puts the form of the image that a case pulls, and of each copy, into the registry. Raises ColdbenchError."""
        for scenario in members(self.scenarios[case.case.scenario]):
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
                first = self.rehearsals.start_reads(own, self.material(own)).paths
            elif case.form is Form.EROFS_PACKED:
                # A copy has layers of its own, of which a recording of the original says nothing.
                wanted = recorded_scenario(scenario, case.choice.record)
                recording = self.rehearsals.recording(wanted, self.material(scenario))
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
        if self.bounder is not None or self.runs_workloads(scenario) or reads is not None:
            self.progress.preparing(scenario.name, "listing files")
            with open_source(local.name) as source:
                material.files = list_files(source, local.image, self.preparer.cache.root)
            material.size = image_size(local.image, material.files)
        if reads is not None:
            files = [file.for_selection() for file in material.files]
            material.reading = share.start(files, reads.percent, reads.seed, reads.by)
        return material

    def runs_workloads(self, scenario: Scenario) -> bool:
        """Says whether trials of the scenario run workloads after the start."""
        return self.with_workloads and bool(scenario.runtime.workloads)

    def samples(self, scenario: Scenario) -> Samples:
        """Returns the files that ``sample`` chose."""
        found = self._materials[scenario.name].samples
        assert found is not None, "the run samples before its first trial"
        return found

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
        starts = members(scenario)
        shared = StormUse(machines=wanted.machines, images=wanted.images, uplink_bytes_s=wanted.uplink_bytes_s)
        with self.endpoint.behind(wanted.uplink_bytes_s) as endpoint:
            yield [
                replace(
                    self._setup(trial, case, starts[number % len(starts)], None, side=False, endpoint=endpoint),
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
            reads={} if reading is None else described(reading),
            privileges=confinement_of(scenario).described(),
            own_registry=self.endpoint.own,
            requests=self.endpoint.requests,
            touches=touches if touches is not None else [],
        )
