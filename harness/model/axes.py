"""An axis of a scenario is a value that its trials differ in beside mode, engine, shape and distance.

A scenario with axes stands for one scenario for each combination of their values: its *points*. Each has a name of its
own, an image or a workload of its own, and cases of its own; all points are trials of the same blocks, so that they can
be compared inside a block, too.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from harness.model.workload import Many, Table, refuse_repeats

if TYPE_CHECKING:
    from harness.model.scenario import Scenario


class Axes(Table):
    """Values that each make a point of the scenario; an axis that is left out has none."""

    read_percent: Many[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=(), description="Shares of the image's bytes that the start reads, in percent; needs workload.reads."
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> Axes:
        refuse_repeats([str(percent) for percent in self.read_percent], "axes.read_percent")
        return self


def suffix(read_percent: int | None) -> str:
    """What a point's name has after the scenario's own, empty where it is on no axis."""
    return "" if read_percent is None else f".{read_percent}pct"


def family(name: str, read_percent: int | None) -> str:
    """The name of the scenario that a point, or a case of it, belongs to."""
    return name.removesuffix(suffix(read_percent))


def points(scenario: Scenario) -> tuple[Scenario, ...]:
    """The scenarios that one with axes stands for, in the order of its values; itself where it has none."""
    axes = scenario.axes
    if axes == Axes():
        return (scenario,)
    made = []
    for (percent,) in product(axes.read_percent):
        reads = scenario.workload.reads
        assert reads is not None, "the scenario was checked"
        workload = scenario.workload.model_copy(update={"reads": reads.model_copy(update={"percent": percent})})
        name = f"{scenario.name}{suffix(percent)}"
        made.append(scenario.model_copy(update={"name": name, "axes": Axes(), "workload": workload}))
    return tuple(made)
