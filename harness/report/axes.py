"""This module gathers what the report shows of a scenario's axes: a section for each, with figures and a table for each
place.

A point of an axis is one group of many; its own table stays where groups are, and the figures are the axis's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.report import figures, tables
from harness.report.density import densities
from harness.report.packing import packings
from harness.report.storms import storms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from harness.report.cells import Table
    from harness.report.comparison import Group
    from harness.report.density import Density
    from harness.report.packing import Packing
    from harness.report.storms import StormSweep


@dataclass(frozen=True, slots=True)
class AxisFigure:
    """Holds a figure by the name its file gets; ``draw(narrow=…)`` gives None where there is nothing to show."""

    name: str
    title: str
    words: str
    draw: Callable[..., Figure | None]


@dataclass(frozen=True, slots=True)
class AxisSection:
    """Holds one axis of one scenario."""

    scenario: str
    title: str
    figures: tuple[AxisFigure, ...]
    tables: tuple[tuple[str, Table], ...]
    """Holds the tables, each with the place that it is of."""


def sections(groups: Sequence[Group]) -> list[AxisSection]:
    """Makes a section for each scenario and axis that has been measured."""
    dense: dict[str, list[Density]] = {}
    for density in densities(groups):
        dense.setdefault(density.scenario, []).append(density)
    packed: dict[str, list[Packing]] = {}
    for packing in packings(groups):
        packed.setdefault(packing.scenario, []).append(packing)
    return [
        *(_density(name, found) for name, found in dense.items()),
        *(_packing(name, found) for name, found in packed.items()),
        *(_storm(sweep) for sweep in storms(groups)),
    ]


def _density(scenario: str, found: Sequence[Density]) -> AxisSection:
    return AxisSection(
        scenario,
        f"{scenario}: where lazy stops paying",
        (
            AxisFigure(
                "density", "Time to ready over the share that is read", "Each mode's time as a ratio to the full "
                "pull's, with its 95 % interval; dashed, that of the lower bounds. Above 1 the full pull is sooner.",
                partial(figures.density_curves, found),
            ),
            AxisFigure(
                "density-surface", "The same as a surface", "Share by place; green is sooner than the full pull, "
                "orange later, grey not told apart. Below, what the lower bounds alone would give.",
                partial(figures.density_surface, found),
            ),
        ),
        tuple((density.place, tables.density(density)) for density in found),
    )  # fmt: skip


def _packing(scenario: str, found: Sequence[Packing]) -> AxisSection:
    drawn = tuple(
        AxisFigure(
            f"packing-{number}" if len(found) > 1 else "packing", f"What the compression changes on {packing.place}",
            "Medians of each mode, a mark for each compression. Intervals of the ratios are in the table.",
            partial(figures.packing_marks, packing),
        )
        for number, packing in enumerate(found, 1)
    )  # fmt: skip
    made = tuple((packing.place, tables.packing(packing)) for packing in found)
    return AxisSection(scenario, f"{scenario}: how the layers are compressed", drawn, made)


def _storm(sweep: StormSweep) -> AxisSection:
    figure = AxisFigure(
        "storm", "Time until all machines are ready", "A mark is the median trial's last machine, ticks are all of "
        "them. Dashed: the least time that one machine's bytes and CPU allow through this line on this host, "
        "also where nothing was measured.", partial(figures.storm_times, sweep),
    )  # fmt: skip
    return AxisSection(
        sweep.scenario, f"{sweep.scenario}: machines started together", (figure,), ((sweep.place, tables.storm(sweep)),)
    )
