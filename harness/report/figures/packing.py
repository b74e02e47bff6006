"""This module draws what a layer's compression changes: seconds, bytes and CPU of each case, a mark for each
compression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.lines import Line2D

from harness.report.figures.canvas import INK, LINE, PAPER, axes_of, canvas

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.packing import PackedCase, PackedPoint, Packing

#: Marks of the compressions in the order of the axis; the first is hollow.
_MARKERS = ("o", "D", "s", "^", "v", "P", "X")


def packing_marks(packing: Packing, *, narrow: bool = False) -> Figure | None:
    """Draws three fields with one row per case: time to ready, bytes received before ready, CPU seconds to ready."""
    if not packing.cases:
        return None
    rows = len(packing.cases)
    figure = canvas((0.9 + 0.34 * rows) * (3 if narrow else 1) + 0.5, narrow=narrow)
    grid = axes_of(figure, 3 if narrow else 1, 1 if narrow else 3)
    fields: tuple[tuple[str, Callable[[PackedPoint], float]], ...] = (
        ("seconds to ready", lambda p: p.ready_s),
        ("MB received before ready", lambda p: p.received_bytes / 1e6),
        ("CPU seconds to ready", lambda p: p.cpu_s),
    )
    for axes, (name, figure_of) in zip(grid, fields, strict=True):
        for row, case in enumerate(packing.cases):
            _row(axes, row, case, packing, [(point, figure_of(point)) for point in case.points])
        axes.set_xlim(left=0)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_yticks(range(rows), [case.label for case in packing.cases], fontsize=7)
        axes.set_xlabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", color=LINE, linewidth=0.5)
    handles: list[Artist] = [
        Line2D([], [], color=INK, marker=_marker(packing, name), linestyle="", markersize=5,
               markerfacecolor=PAPER if name == packing.compressions[0] else INK, label=name)
        for name in packing.compressions
    ]  # fmt: skip
    with mpl.rc_context({"legend.frameon": False}):
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    return figure


def _marker(packing: Packing, compression: str) -> str:
    return _MARKERS[packing.compressions.index(compression) % len(_MARKERS)]


def _row(
    axes: Axes, row: int, case: PackedCase, packing: Packing, values: list[tuple[PackedPoint, float]]
) -> None:  # fmt: skip
    colour = case.style.colour
    ends = [value for _, value in values]
    axes.plot([min(ends), max(ends)], [row, row], color=colour, linewidth=1, alpha=0.6)
    for point, value in values:
        first = point.compression == packing.compressions[0]
        axes.plot(
            value, row, _marker(packing, point.compression), color=colour, markersize=6,
            markerfacecolor=PAPER if first else colour,
        )  # fmt: skip
