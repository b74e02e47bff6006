"""This module describes a scenario's axes: values that its trials differ in beside mode, engine, shape and distance.

A scenario with axes stands for one scenario for each combination of their values: its *points*. Each has a name of its
own, an image or a workload of its own, and cases of its own; all points are trials of the same blocks, so that they can
be compared inside a block, too.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from harness.model.image import CompressionName  # noqa: TC001 - pydantic reads it at run time
from harness.model.storm import MOST_MACHINES
from harness.model.workload import Many, Table, refuse_repeats

if TYPE_CHECKING:
    from harness.model.scenario import Scenario


class Axes(Table):
    """Lists values that each make a point of the scenario; an axis that is left out has none."""

    compression: Many[CompressionName] = Field(
        default=(), description="The image with its layers compressed so: gzip, zstd or none, perhaps as zstd:19."
    )
    read_percent: Many[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=(), description="Shares of the image's bytes that the start reads, in percent; needs workload.reads."
    )

    machines: Many[Annotated[int, Field(ge=1, le=MOST_MACHINES)]] = Field(
        default=(), description="Machines that are started at the same moment; needs [storm]."
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> Axes:
        refuse_repeats(list(self.compression), "axes.compression")
        refuse_repeats([str(percent) for percent in self.read_percent], "axes.read_percent")
        refuse_repeats([str(machines) for machines in self.machines], "axes.machines")
        return self


def suffix(compression: str, read_percent: int | None, machines: int | None) -> str:
    """Returns what a point's name has after the scenario's own, empty where it is on no axis."""
    packed = f".{compression.replace(':', '-')}" if compression else ""
    share = "" if read_percent is None else f".{read_percent}pct"
    return packed + share + ("" if machines is None else f".{machines}x")


def family(name: str, compression: str, read_percent: int | None, machines: int | None) -> str:
    """Returns the name of the scenario that a point, or a case of it, belongs to.

    A value may also stand in the scenario itself, and then not in its name: the longest ending that fits is taken off.
    """
    choices = product(*({value, none} for value, none in ((compression, ""), (read_percent, None), (machines, None))))
    ends = {suffix(packed, share, count) for packed, share, count in choices}  # type: ignore[arg-type]
    return name.removesuffix(max((end for end in ends if name.endswith(end)), key=len))


def axis_values(scenario: Scenario) -> dict[str, Any]:
    """Returns what a case of a scenario says of the axes, whether an axis put it there or the file itself."""
    reads = scenario.workload.reads
    return {
        "compression": scenario.image.compression or "",
        "read_percent": reads.percent if reads is not None else None,
        "machines": scenario.storm.machines if scenario.storm is not None else None,
    }


def points(scenario: Scenario) -> tuple[Scenario, ...]:
    """Returns the scenarios that one with axes stands for, in the order of its values; itself where it has none."""
    axes = scenario.axes
    if axes == Axes():
        return (scenario,)
    made = []
    values = product(axes.compression or (None,), axes.read_percent or (None,), axes.machines or (None,))
    for compression, percent, machines in values:
        name = f"{scenario.name}{suffix(compression or '', percent, machines)}"
        changed: dict[str, object] = {"name": name, "axes": Axes()}
        if compression is not None:
            changed["image"] = scenario.image.model_copy(update={"compression": compression})
        if percent is not None:
            assert scenario.workload.reads is not None, "the scenario was checked"
            reads = scenario.workload.reads.model_copy(update={"percent": percent})
            changed["workload"] = scenario.workload.model_copy(update={"reads": reads})
        if machines is not None:
            assert scenario.storm is not None, "the scenario was checked"
            changed["storm"] = scenario.storm.model_copy(update={"machines": machines})
        made.append(scenario.model_copy(update=changed))
    return tuple(made)
