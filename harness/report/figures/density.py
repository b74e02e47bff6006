"""This module draws where lazy stops paying: ratios to the full pull over the share of the image that a start reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.patches import Patch, Rectangle

from harness.report.figures.canvas import INK, LINE, PAPER, SOFT, axes_of, canvas
from harness.report.wording import NO_NUMBER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.density import Density, ShareCurve, SharePoint

#: A ratio this large or small has the full colour.
_FULL = math.log(4.0)
_LATER, _SOONER = "#d55e00", "#009e73"


def density_curves(densities: Sequence[Density], *, narrow: bool = False) -> Figure | None:
    """Draws one field per shape and distance: each case's ratio with its interval; dashed, the ratio of the lower
    bounds.
    """
    if not densities:
        return None
    across = 1 if narrow else min(2, len(densities))
    down = math.ceil(len(densities) / across)
    figure = canvas(2.5 * down + 0.7, narrow=narrow)
    grid = axes_of(figure, down, across, share_x=True)
    for axes, density in zip(grid, densities, strict=False):
        for curve in density.curves:
            _curve(axes, curve)
        axes.axhline(1, color=SOFT, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(density.place, fontsize=8, loc="left")
        shares = sorted({p.percent for c in density.curves for p in c.points})
        axes.set_xticks(shares, [str(share) for share in shares])
        axes.xaxis.set_minor_formatter(lambda _x, _: "")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}x" if f"{y:.0e}"[0] in "25" else "")
        axes.tick_params(which="both", labelsize=7)
        axes.grid(axis="y", which="major", color=LINE, linewidth=0.5)
    for axes in grid[len(densities) :]:
        axes.set_visible(False)
    break_ = "\n" if narrow else "   "
    words = f"% of the image's bytes that the start reads{break_}(dashed: ratio of the lower bounds)"
    figure.supxlabel(words, fontsize=8)
    figure.supylabel(f"time to ready over {densities[0].against}", fontsize=8)
    cases = {curve.label: curve.style.colour for density in densities for curve in density.curves}
    handles: list[Artist] = [Patch(color=colour, label=label) for label, colour in cases.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if narrow else 5, fontsize=8, frameon=False)
    return figure


def _curve(axes: Axes, curve: ShareCurve) -> None:
    style = curve.style
    shares = [point.percent for point in curve.points]
    ratios = [point.ratio for point in curve.points]
    axes.plot(
        shares, [ratio.ratio for ratio in ratios], marker=style.marker, linestyle=style.line, color=style.colour,
        markerfacecolor=PAPER if style.hollow else style.colour, markersize=4, linewidth=1.2,
    )  # fmt: skip
    for share, ratio in zip(shares, ratios, strict=True):
        if ratio.low is not None and ratio.high is not None:
            axes.plot([share, share], [ratio.low, ratio.high], color=style.colour, linewidth=2, alpha=0.6)
    bounds = [(point.percent, point.bound_ratio) for point in curve.points if point.bound_ratio is not None]
    axes.plot([x for x, _ in bounds], [y for _, y in bounds], "--", color=style.colour, linewidth=0.8, alpha=0.8)


def density_surface(densities: Sequence[Density], *, narrow: bool = False) -> Figure | None:
    """Draws share by shape and distance, a field per case: measured ratios above, the ratios of the lower bounds below.

    Green is sooner than the full pull; a measured ratio whose interval holds 1, or that has none, is grey.
    """
    if len(densities) < 2:
        return None
    cases = {curve.label: curve.style for density in densities for curve in density.curves}
    shares = sorted({p.percent for d in densities for c in d.curves for p in c.points})
    rows = _row_names(densities)
    panels = [(label, bound) for bound in (False, True) for label in cases]
    across = 1 if narrow else len(cases)
    figure = canvas(math.ceil(len(panels) / across) * (0.55 + 0.3 * len(rows)) + 0.4, narrow=narrow)
    for axes, (label, bound) in zip(axes_of(figure, math.ceil(len(panels) / across), across), panels, strict=True):
        for y, density in enumerate(densities):
            curve = next((c for c in density.curves if c.label == label), None)
            at = {point.percent: point for point in curve.points} if curve else {}
            for x, share in enumerate(shares):
                _field(axes, x, y, at.get(share), bound=bound)
        axes.set_xlim(-0.5, len(shares) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(f"{label}{', bounds' if bound else ''}", fontsize=8, loc="left")
        axes.set_xticks(range(len(shares)), [str(share) for share in shares], fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    break_ = "\n" if narrow else ";  "
    words = f"% of the image's bytes that the start reads{break_}time to ready over {densities[0].against}"
    figure.supxlabel(words, fontsize=8)
    return figure


def _row_names(densities: Sequence[Density]) -> list[str]:
    """Returns what tells the rows apart: the parts of shape and distance that not all of them have."""
    parts = [d.place.replace(", ", ",").split(",") for d in densities]
    common = set(parts[0]).intersection(*map(set, parts[1:]))
    return ["\n".join(part for part in own if part not in common) or "as before" for own in parts]


def _field(axes: Axes, x: int, y: int, point: SharePoint | None, *, bound: bool) -> None:
    ratio = None if point is None else point.bound_ratio if bound else point.ratio.ratio
    if point is None or ratio is None:
        axes.text(x, y, NO_NUMBER, ha="center", va="center", fontsize=7, color=SOFT)
        return
    low, high = (ratio, ratio) if bound else (point.ratio.low, point.ratio.high)
    sure = low is not None and high is not None and not low <= 1 <= high
    strength = min(abs(math.log(ratio)) / _FULL, 1.0)
    colour, alpha = (_LATER if ratio > 1 else _SOONER, 0.15 + 0.55 * strength) if sure else (LINE, 0.5)
    axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=alpha, lw=0))
    said = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    axes.text(x, y, said, ha="center", va="center", fontsize=7, color=INK if sure else SOFT)
