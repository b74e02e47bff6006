"""This module rehearses scenarios before their trials: it traces and records starts, measures what the workload itself
needs, and chooses what run-time workloads read.

The *trace* says what a start reads, the *recording* what the kernel asks for meanwhile, and the *calibration* how many
CPU seconds the workload itself needs (``harness.session.application``). Each is kept in the cache directory by image
and workload, so that a later session finds it; what making it cost is a preparation of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from harness.errors import ColdbenchError, Interrupted, RehearsalFailed
from harness.model.details import PreparationDetails
from harness.model.modes import OVERLAY2, tracer
from harness.model.session import Preparation
from harness.session import application, recordings, traces
from harness.session.inventory import Inventory
from harness.session.materials import confinement_of, side_case
from harness.session.preparation import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engines.protocol import WorkloadRunner
    from harness.formats.erofs.recording import Recording
    from harness.lazyfs.messages import Touch
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.session.materials import Material
    from harness.session.setups import Setups
    from harness.session.traces import Recorded

_Result = TypeVar("_Result")


class Rehearsals:
    """Rehearses the scenarios of ``setups``, whose side trials it runs."""

    def __init__(self, setups: Setups) -> None:
        self._setups = setups

    def rehearse(self, scenario: Scenario, *, trace: bool, calibrate: bool = True) -> None:
        """Runs the scenario's trials out of band, unless their results are kept, and prepares its workloads.

        The calibration comes first: a full pull on a machine without limits shows whether the workload works at all.

        Raises:
            RehearsalFailed: the workload fails by itself, and every trial would.
            ColdbenchError: the trace is wanted (``trace``) and failed. Where it only says which files are not cold any
                more, and the calibration, they are done without: the preparation says why.
        """
        setups = self._setups
        material = setups.material(scenario)
        if setups.bounder is not None and calibrate:
            try:
                material.application_core_s = self.calibration(scenario, material)
            except (Interrupted, RehearsalFailed):
                raise
            except ColdbenchError as error:
                self._note(scenario, "application", material, None, PreparationDetails(error=str(error)))
        touched: tuple[str, ...] | None = None
        with_workloads = setups.runs_workloads(scenario)
        if trace or setups.trace_starts or with_workloads:
            try:
                touched = self.start_reads(scenario, material).paths
            except Interrupted:
                raise
            except ColdbenchError as error:
                if trace:
                    raise
                self._note(scenario, "trace", material, None, PreparationDetails(error=str(error)))
        if with_workloads:
            material.workloads = self._workloads(scenario, material, touched or ())
        if material.files:
            listed = {file.path: file.size for file in material.files}
            setups.keep_inventory(Inventory(material.digest, material.layers, listed, touched))

    def sample(self, scenario: Scenario) -> None:
        """Chooses the files that fault trials read, by what a trace of the start touched. Raises ColdbenchError."""
        from harness.oci.location import open_source
        from harness.session.faults.sampling import choose, load_truth

        setups = self._setups
        material = setups.material(scenario)
        touched = self.start_reads(scenario, material).paths
        with setups.interrupts.allowed():
            setups.progress.preparing(scenario.name, "hashing the image's files")
            local = setups.preparer.local(scenario)
            with open_source(local.name) as source:
                truth = load_truth(source, local.image, setups.preparer.cache.root)
        material.samples = choose(truth, touched, setups.seed)

    # -- what is kept

    def start_reads(self, scenario: Scenario, material: Material) -> Recorded:
        """Returns what the start reads. Raises ColdbenchError."""
        path = traces.place(self._setups.preparer.cache, material.digest, scenario.workload)
        case = side_case(scenario, tracer())

        def make() -> Recorded:
            observation, touches = self._setups.side.trace(case)
            return traces.save(path, traces.recorded(touches, observation.time_to_ready_s or 0.0))

        return self._once(
            scenario, "trace", material, traces.load(path),
            ready=lambda: self._setups.publish(case), saying="tracing a start", make=make,
            told=lambda found: PreparationDetails(paths=len(found.paths), reads=len(found.reads)),
        )  # fmt: skip

    def recording(self, scenario: Scenario, material: Material) -> Recording:
        """Returns what the kernel asks for during a start; a start pack is made from it. Raises ColdbenchError."""
        path = recordings.place(self._setups.preparer.cache, material.digest, scenario.workload)
        side = self._setups.side
        return self._once(
            scenario, "recording", material, recordings.load(path),
            ready=lambda: side.prepare_recording(scenario), saying="recording a start",
            make=lambda: recordings.save(path, side.record(scenario)),
            told=lambda found: PreparationDetails(ranges=len(found.ranges)),
        )  # fmt: skip

    def calibration(self, scenario: Scenario, material: Material) -> float:
        """Returns the workload's core-seconds from its start until ready, as the lower bound takes them.

        Raises ColdbenchError.
        """
        setups = self._setups
        assert setups.bounder is not None
        path = application.place(setups.preparer.cache, material.digest, scenario.workload, setups.bounder.rates.host)
        case = side_case(scenario, OVERLAY2)
        measured: list[float] = []

        def make() -> float:
            for _ in range(application.TRIALS):
                measured.append(float(setups.side.run(case, "calibration").details.cpu_from_start_s or 0.0))
            return application.save(path, measured)

        return self._once(
            scenario, "application", material, application.load(path),
            ready=lambda: setups.publish(case), saying="measuring the workload's own CPU", make=make,
            told=lambda figure: PreparationDetails(application_core_s=figure, measured_s=tuple(measured) or None),
        )  # fmt: skip

    def _once(
        self,
        scenario: Scenario,
        form: str,
        material: Material,
        kept: _Result | None,
        *,
        ready: Callable[[], object],
        saying: str,
        make: Callable[[], _Result],
        told: Callable[[_Result], PreparationDetails],
    ) -> _Result:
        """Returns what is kept, or makes it and notes what that cost; what ``ready`` does before is noted by itself."""
        cost: Cost | None = None
        if kept is None:
            ready()
            self._setups.progress.preparing(scenario.name, saying)
            cost = Cost()
            kept = make()
        self._note(scenario, form, material, cost, told(kept))
        return kept

    def _note(
        self, scenario: Scenario, form: str, material: Material, cost: Cost | None, details: PreparationDetails
    ) -> None:
        wall_s, cpu_s = cost.read() if cost else (0.0, 0.0)
        self._setups.preparer.record(
            Preparation(
                scenario=scenario.name, form=form, digest=material.digest, wall_s=wall_s,
                cached=cost is None and details.error is None, cpu_s=cpu_s, details=details,
            )
        )  # fmt: skip

    def trace_use(self, case: PlannedCase) -> tuple[str, ...]:
        """Returns the paths that a start reads, and then the scenario's own commands, each run once after it.

        The program's own workloads are left out: they read the files that are dealt to them, which nobody needs. The
        result is kept, by image and by what is run. Raises WorkloadError when the trial fails.
        """
        setups = self._setups
        scenario = setups.scenarios[case.case.scenario]
        commands = [
            workload.model_copy(update={"temperatures": ("cold",)})
            for workload in scenario.runtime.workloads
            if workload.arguments
        ]
        runtime = scenario.runtime.model_copy(update={"workloads": tuple(commands), "reference_s": 0.0})
        material = setups.material(scenario)
        path = traces.place_of_use(setups.preparer.cache, material.digest, scenario.workload, runtime)
        known = traces.load(path)
        if known is not None:
            return known.paths
        setups.progress.preparing(scenario.name, "tracing a start and the commands after it")
        setups.publish(case)
        only = scenario.model_copy(update={"runtime": runtime})
        runner = self._workloads(only, material, ()) if commands else None
        touches: list[Touch] = []
        setups.side.run(case, "trace", touches, workloads=runner)
        return traces.save(path, traces.recorded(touches)).paths

    def _workloads(self, scenario: Scenario, material: Material, touched: tuple[str, ...]) -> WorkloadRunner:
        from harness.probes.selection import select
        from harness.probes.workloads import FileWorkloads, PlannedWorkload

        setups, runtime = self._setups, scenario.runtime
        planned = [
            PlannedWorkload(w.name, w.temperatures or runtime.temperatures, w.arguments, setup=w.setup)
            for w in runtime.workloads
        ]
        selection = select([file.for_selection() for file in material.files], setups.seed, touched=touched)

        def progress(what: str) -> None:
            setups.progress.phase(f"workloads: {what}")

        return FileWorkloads(
            planned,
            selection,
            seed=setups.seed,
            confinement=confinement_of(scenario),
            repeat_s=runtime.repeat_s,
            reference_s=runtime.reference_s,
            progress=progress,
        )
