"""This module draws what a mode costs after the start: run-time workloads against the baseline, as a heat map and as
intervals.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from harness.report.figures.canvas import INK, LINE, PAPER, SOFT, axes_of, canvas, legend_below
from harness.report.wording import NO_NUMBER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.comparison import CaseLine, Group, RuntimeLine

TEMPERATURES = ("cold", "warm", "stale", "evicted")
#: A ratio this large or small has the full colour.
_FULL = math.log(3.0)
_SLOWER, _FASTER = "#d55e00", "#009e73"


def runtime_heat(group: Group, *, narrow: bool = False, temperatures: tuple[str, ...] = TEMPERATURES) -> Figure | None:
    """Draws ratios to the baseline, workload by mode, one field per temperature; grey where nothing is proven.

    A difference is proven when it survives Holm's correction over everything the figure shows.
    """
    lines = [line for line in group.runtime if line.ratio is not None]
    present = [t for t in temperatures if any(line.temperature == t for line in lines)]
    if not lines or not present:
        return None
    workloads = list(dict.fromkeys(line.workload for line in lines))
    labels = list(dict.fromkeys(line.label for line in lines))
    across = 1 if narrow else min(len(present), 2)
    down = math.ceil(len(present) / across)
    figure = canvas(down * (0.9 + 0.26 * len(workloads)) + 0.2, narrow=narrow)
    grid = axes_of(figure, down, across)
    for axes, temperature in zip(grid, present, strict=False):
        here = {(line.workload, line.label): line for line in lines if line.temperature == temperature}
        for y, workload in enumerate(workloads):
            for x, label in enumerate(labels):
                _field(axes, x, y, here.get((workload, label)))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(workloads) - 0.5, -0.5)
        axes.set_title(temperature, fontsize=9, loc="left")
        axes.set_xticks(range(len(labels)), [_short(label) for label in labels], fontsize=7)
        axes.set_yticks(range(len(workloads)), workloads, fontsize=8)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    for axes in grid[len(present) :]:
        axes.set_visible(False)
    return figure


def _short(label: str) -> str:
    return label.replace(" (", "\n(").replace(":", "\n")


def _field(axes: Axes, x: int, y: int, line: RuntimeLine | None) -> None:
    if line is None or line.ratio is None:
        axes.text(x, y, NO_NUMBER, ha="center", va="center", fontsize=8, color=SOFT)
        return
    ratio = line.ratio.ratio
    strength = min(abs(math.log(ratio)) / _FULL, 1.0) if line.proven else 0.0
    colour = _SLOWER if ratio > 1 else _FASTER
    if line.proven:
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=0.15 + 0.55 * strength, lw=0))
    else:
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=LINE, alpha=0.5, lw=0))
    said = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    axes.text(x, y, said, ha="center", va="center", fontsize=8, color=INK if line.proven else SOFT)


def runtime_ratios(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws run-time overhead per workload and temperature as ratio to the baseline with its 95 % interval, on a log
    scale.
    """
    lines = [line for line in group.runtime if line.ratio is not None]
    if not lines:
        return None
    temperatures = [t for t in TEMPERATURES if any(r.temperature == t for r in lines)]
    workloads = list(dict.fromkeys(line.workload for line in lines))
    cases = {line.label: line for line in group.lines}
    labels = list(dict.fromkeys(line.label for line in lines))
    rows = len(temperatures) if narrow else 1
    height = 0.9 + 0.16 * len(workloads) * (len(labels) + 1)
    figure = canvas(height * rows, narrow=narrow)
    grid = axes_of(figure, rows, 1 if narrow else len(temperatures))
    for axes, temperature in zip(grid, temperatures, strict=True):
        for found in lines:
            if found.temperature == temperature:
                y = workloads.index(found.workload) + (labels.index(found.label) + 0.5) / (len(labels) + 1) - 0.5
                _mark(axes, y, found, cases[found.label])
        _scale(axes, workloads, temperature)
    legend_below(figure, [(label, cases[label].style.colour) for label in labels], 2 if narrow else 5)
    return figure


def _scale(axes: Axes, workloads: list[str], temperature: str) -> None:
    axes.axvline(1, color=SOFT, linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 10:
        # Less than a decade holds one power of ten at the most.
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.xaxis.set_minor_formatter(lambda x, _: "")
    axes.set_title(temperature, fontsize=9)
    axes.set_yticks(range(len(workloads)), workloads, fontsize=8)
    axes.set_ylim(len(workloads) - 0.5, -0.6)


def _mark(axes: Axes, y: float, line: RuntimeLine, case: CaseLine) -> None:
    ratio = line.ratio
    assert ratio is not None
    style = case.style
    colour = style.colour if line.proven else SOFT
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=1)
    face = PAPER if style.hollow or not line.proven else colour
    axes.plot(ratio.ratio, y, style.marker, markersize=4, color=face, markeredgecolor=colour)
