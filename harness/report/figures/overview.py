"""This module draws several comparisons in one picture: time to ready of each mode, a panel per scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report import wording
from harness.report.figures.canvas import INK, LINE, PAPER, SOFT, axes_of, canvas
from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.comparison import CaseLine, Group


def overview(groups: Sequence[Group], *, narrow: bool = False) -> Figure | None:
    """Draws a panel per group with a bar per mode, from 0 to the trimmed mean of its time to ready, with its 95 %
    interval.

    Beside the bar stands the time, and how it compares with the first baseline. The floor (the image is already on the
    machine) is drawn as a line through its panel. A mode without a valid trial is left out.
    """
    shown = [(group, [line for line in group.lines if line.ready_by_block]) for group in groups]
    shown = [(group, lines) for group, lines in shown if lines]
    if not shown:
        return None
    across = 1 if narrow or len(shown) == 1 else 2
    down = -(-len(shown) // across)
    most = max(len(lines) for _, lines in shown)
    figure = canvas(down * (0.75 + 0.25 * most), narrow=narrow)
    grid = axes_of(figure, down, across, share_y=False)
    for axes, (group, lines) in zip(grid, shown, strict=False):
        _panel(axes, group, lines)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, group: Group, lines: Sequence[CaseLine]) -> None:
    longest = 0.0
    for row, line in enumerate(lines):
        times = list(line.ready_by_block.values())
        mean = paired_ratio(times, [1.0] * len(times))
        colour = line.style.colour
        face = PAPER if line.is_floor else colour
        axes.barh(row, mean.ratio, height=0.62, color=face, edgecolor=colour, alpha=0.85, linewidth=0.8)
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [row, row], color=INK, linewidth=1.2)
        longest = max(longest, mean.high or mean.ratio)
    for row, line in enumerate(lines):
        times = list(line.ready_by_block.values())
        mean = paired_ratio(times, [1.0] * len(times))
        axes.annotate(
            _said(group, line, mean.ratio), (mean.high or mean.ratio, row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    floor = group.line(group.floor) if group.floor else None
    if floor is not None and floor.ready is not None:
        axes.axvline(floor.ready.median, color=SOFT, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.42)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title(group.key.title, fontsize=9, loc="left")
    axes.set_xlabel("seconds to ready", fontsize=8)


def _said(group: Group, line: CaseLine, mean_s: float) -> str:
    """Writes ``1.94 s, 0.36x``: the ratio only where it is proven."""
    text = f"{mean_s:.2f} s" if mean_s < 10 else f"{mean_s:.0f} s"
    first = group.baselines[0] if group.baselines else ""
    ratio = line.ratios.get(first)
    if ratio is None or line.is_floor or first not in line.proven:
        return text
    return f"{text}, {wording.figures(ratio.ratio, 2)}x"
