"""This module draws time to ready: each case with its interval, the floor and the bound in one figure, every trial in
another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from harness.report.figures.canvas import INK, LINE, PAPER, SOFT, axes_of, canvas
from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.comparison import CaseLine, Group


def ready_times(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws the trimmed mean with its 95 % interval per case, on a log scale; a line marks the floor, a tick each
    bound.

    The floor is the same start with the image already on the machine. Below three trials there is no interval, and
    the trials stand alone.
    """
    shown = [line for line in group.lines if line.ready_by_block]
    if not shown:
        return None
    figure = canvas(1.1 + (0.52 if narrow else 0.36) * len(shown), narrow=narrow)
    (axes,) = axes_of(figure)
    for row, line in enumerate(shown):
        _case(axes, row, line)
    floor = next((line for line in shown if line.label == group.floor), None)
    if floor is not None and floor.ready is not None:
        axes.axvline(floor.ready.median, color=SOFT, linewidth=1, linestyle=":")
    _labels(axes, [line.label for line in shown], narrow=narrow)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    legend = "○ mean and 95 % interval   | bound" + ("   ⋮ image already there" if floor else "")
    axes.set_xlabel("seconds to ready, log scale\n" + legend, fontsize=8)
    return figure


def _case(axes: Axes, row: int, line: CaseLine) -> None:
    times = list(line.ready_by_block.values())
    colour = line.style.colour
    axes.plot(times, [row] * len(times), "|", color=colour, markersize=7, alpha=0.45)
    mean = paired_ratio(times, [1.0] * len(times))
    if mean.low is not None and mean.high is not None:
        axes.plot([mean.low, mean.high], [row, row], color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot(mean.ratio, row, "o", color=PAPER, markeredgecolor=colour, markersize=6)
    if line.bound_s:
        axes.plot(line.bound_s, row, "|", color=INK, markersize=14)


def _labels(axes: Axes, labels: list[str], *, narrow: bool) -> None:
    if narrow:
        # Beside the axes they would take half of a phone's width.
        axes.set_yticks([])
        for row, label in enumerate(labels):
            axes.annotate(
                label, (0, row), xycoords=("axes fraction", "data"), xytext=(0, 8), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
        axes.set_ylim(len(labels) - 0.5, -0.8)
    else:
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)


def all_trials(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws every valid trial's time to ready over the blocks: drift and odd trials are seen, not averaged away."""
    shown = [line for line in group.lines if line.ready_by_block]
    if not shown:
        return None
    figure = canvas(3.4 if narrow else 2.8, narrow=narrow)
    (axes,) = axes_of(figure)
    for line in shown:
        blocks = sorted(line.ready_by_block)
        times = [line.ready_by_block[b] for b in blocks]
        style = line.style
        face = PAPER if style.hollow else style.colour
        axes.plot(
            [b + 1 for b in blocks], times, marker=style.marker, linestyle=style.line, color=style.colour,
            markerfacecolor=face, markersize=4, linewidth=0.7, label=line.label,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:.0e}"[0] in "25" else "")
    axes.grid(axis="y", color=LINE, linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block")
    axes.set_ylabel("seconds to ready")
    figure.legend(loc="outside lower center", ncols=2 if narrow else 5, fontsize=7)
    return figure
