"""This module runs trials that are in no plan: they say what a start reads, what the kernel asks for, and what the
workload itself costs.

They run on a machine without limits, next to the registry, and nothing is compared with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import NotReady, RehearsalFailed, WorkloadError, WorkloadExited
from harness.model.modes import recorder, recorder_options
from harness.model.plan import PlannedTrial
from harness.probes.readiness import LAST_WORDS
from harness.session import recordings
from harness.session.materials import side_case
from harness.session.progress import last_lines
from harness.session.trial import run_trial

if TYPE_CHECKING:
    from harness.engines.protocol import WorkloadRunner
    from harness.formats.erofs.recording import Recording
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.model.observation import Observation
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.session.setups import Setups

#: Failures that a container brings about itself.
_OF_THE_WORKLOAD = frozenset({WorkloadExited.__name__, NotReady.__name__})


class SideTrials:
    """Runs them with the images, registry and interrupts of ``setups``."""

    def __init__(self, setups: Setups) -> None:
        self._setups = setups

    def run(
        self,
        case: PlannedCase,
        what: str,
        touches: list[Touch] | None = None,
        ranges: list[ReadRange] | None = None,
        workloads: WorkloadRunner | None = None,
    ) -> Observation:
        """Runs one; the lists, where given, collect what the tree was read for and what the kernel asked for.

        Raises:
            RehearsalFailed: the workload fails by itself, and every trial would.
            WorkloadError: the trial failed for another reason; ``what`` names it.
        """
        setup = self._setups.setup(PlannedTrial(trial=0, block=0, case=case.case.key), case, touches, side=True)
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

    def trace(self, case: PlannedCase) -> tuple[Observation, list[Touch]]:
        """Runs one trial that records its reads, prefetch off; raises WorkloadError when it fails."""
        self._setups.publish(case)
        touches: list[Touch] = []
        observation = self.run(case, "trace", touches)
        ready_s = observation.time_to_ready_s or 0.0
        return observation, [touch for touch in touches if touch.t_s <= ready_s]

    def prepare_recording(self, scenario: Scenario) -> tuple[Setups, PlannedCase]:
        """Makes what a recorded start needs, the form of the image among it, which is a preparation of its own."""
        scenario = scenario.model_copy(update={"storm": None})
        case = side_case(scenario, recorder(), options=recorder_options())
        setups = replace(self._setups, scenarios={**self._setups.scenarios, scenario.name: scenario})
        setups.material(scenario)
        setups.publish(case)
        return setups, case

    def record(self, scenario: Scenario) -> Recording:
        """Runs one trial that records what the kernel asks for of the layers until the start is ready.

        Raises WorkloadError when it fails.
        """
        setups, case = self.prepare_recording(scenario)
        ranges: list[ReadRange] = []
        observation = setups.side.run(case, "recording", [], ranges)
        layers = [layer.digest for layer in setups.preparer.local(scenario).image.layers]
        return recordings.recording_of(ranges, layers, observation.time_to_ready_s or 0.0)
