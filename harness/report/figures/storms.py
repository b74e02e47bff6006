"""This module draws machines started together: each one's time to ready over their number, and what arithmetic says of
more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.report.figures.canvas import LINE, PAPER, axes_of, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.storms import StormCase, StormSweep


def storm_times(sweep: StormSweep, *, narrow: bool = False) -> Figure | None:
    """Draws one field per case: marks are when all were ready, ticks the machines of the median trial.

    A dashed line is the least time that the fewest machines' bytes and CPU allow, on to numbers that were not measured.
    """
    if not sweep.cases:
        return None
    across = 1 if narrow else min(len(sweep.cases), 2 if len(sweep.cases) == 4 else 3)
    down = math.ceil(len(sweep.cases) / across)
    figure = canvas(2.2 * down + 0.5, narrow=narrow)
    grid = axes_of(figure, down, across, share_x=True)
    for axes, case in zip(grid, sweep.cases, strict=False):
        _case(axes, case)
    for axes in grid[len(sweep.cases) :]:
        axes.set_visible(False)
    break_ = "\n" if narrow else "   "
    figure.supxlabel(f"machines started together{break_}(dashed: the least time by arithmetic)", fontsize=8)
    figure.supylabel("seconds until all are ready", fontsize=8)
    return figure


def _case(axes: Axes, case: StormCase) -> None:
    style = case.style
    counts = [point.machines for point in case.points]
    least = [*((p.machines, p.model_s) for p in case.points), *case.beyond]
    axes.plot([n for n, _ in least], [s for _, s in least], "--", color=style.colour, linewidth=0.9)
    for point in case.points:
        axes.plot([point.machines] * len(point.each_s), point.each_s, "_", color=style.colour, markersize=9, alpha=0.5)
    axes.plot(
        counts, [point.ready_s for point in case.points], marker=style.marker, linestyle="-", color=style.colour,
        markerfacecolor=PAPER if style.hollow else style.colour, markersize=5, linewidth=1.1,
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([n for n, _ in least], [str(n) for n, _ in least])
    axes.xaxis.set_minor_formatter(lambda _x, _: "")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:.0e}"[0] in "25" else "")
    axes.set_title(case.label, fontsize=8, loc="left")
    axes.tick_params(which="both", labelsize=7)
    axes.grid(axis="y", color=LINE, linewidth=0.5)
