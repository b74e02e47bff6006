"""This module says what the trials of one scenario share: its image, what is known of it, and the case of a trial that
is in no plan.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.engines.confinement import Confinement
from harness.model.axes import axis_values
from harness.model.modes import EMBEDDED
from harness.model.observation import Case
from harness.model.plan import PlannedCase
from harness.model.scenario import ModeChoice
from harness.model.shape import Distance, parse_shape
from harness.model.workload import ExitReadiness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.engines.protocol import WorkloadRunner
    from harness.lazyfs.messages import Option
    from harness.model.bound import ImageSize
    from harness.model.modes import Mode
    from harness.model.scenario import Scenario
    from harness.model.shape import Shape
    from harness.probes.share import ShareStart
    from harness.session.faults.sampling import Samples
    from harness.session.image_files import ListedFile


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


def members(scenario: Scenario) -> list[Scenario]:
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


def described(reading: ShareStart) -> dict[str, str | int]:
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
