"""This module draws the break-even: how far ahead a sooner start still is after so much work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.report.figures.canvas import SOFT, axes_of, canvas
from harness.stats.breakeven import advantage_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.report.comparison import Group

#: More curves than this in one field cannot be told apart; those that lose soonest are shown.
MOST_CURVES = 4
_STYLES = ("-", "--", ":", "-.")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def break_even_curves(group: Group, *, temperature: str = "warm", narrow: bool = False) -> Figure | None:
    """Draws seconds ahead of the baseline over running time, per workload; a curve that crosses zero has lost its
    saving.

    A workload whose overhead is not proven is a level line: nothing is lost that one could show.
    """
    lines = [
        line
        for line in group.runtime
        if line.break_even is not None and line.temperature == temperature and line.ratio is not None
    ]
    ahead = [line for line in lines if line.break_even is not None and line.break_even.saving_s > 0]
    if not ahead:
        return None
    finite = [r.break_even.seconds for r in ahead if r.break_even and r.proven and math.isfinite(r.break_even.seconds)]
    saving = max(r.break_even.saving_s for r in ahead if r.break_even)
    horizon = min(max([*finite, saving * 2, 1.0]) * 1.3, 40 * max(saving, 1.0))
    times = np.linspace(0, horizon, 50)
    labels = list(dict.fromkeys(r.label for r in ahead))
    across = 1 if narrow else min(2, len(labels))
    figure = canvas(2.1 * math.ceil(len(labels) / across) + 0.3, narrow=narrow)
    grid = axes_of(figure, math.ceil(len(labels) / across), across, share_x=True)
    for axes, label in zip(grid, labels, strict=False):
        mine = [r for r in ahead if r.label == label]
        mine.sort(key=lambda r: r.break_even.seconds if r.break_even and r.proven else math.inf)
        for number, line in enumerate(mine[:MOST_CURVES]):
            assert line.break_even is not None
            ratio = max(line.break_even.ratio, 1.0) if line.proven else 1.0
            curve = advantage_curve(line.break_even.saving_s, ratio, list(times))
            axes.plot(times, curve, _STYLES[number], linewidth=1.1, label=line.workload, color=_COLOURS[number])
        axes.axhline(0, color=SOFT, linewidth=0.8)
        axes.set_title(label, fontsize=9, loc="left")
        axes.set_ylim(-saving * 1.2, saving * 1.2)
        axes.legend(fontsize=6.5, loc="lower left")
    for axes in grid[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("seconds of work after ready", fontsize=8)
    figure.supylabel("seconds ahead", fontsize=8)
    return figure
