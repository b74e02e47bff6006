"""This module draws the timeline of a start, taken apart: bars per span of each case's median trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.figures.canvas import INK, axes_of, canvas, legend_below, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.model.observation import Observation
    from harness.report.comparison import Group

#: One colour per span name, in the order of the lanes.
SPAN_COLOURS = {
    "resolve": "#999999",
    "index": "#cc79a7",
    "wait": "#bbccee",
    "fetch": "#0072b2",
    "verify": "#7a4b9d",
    "inflate": "#56b4e9",
    "unpack": "#e69f00",
    "prefetch": "#009e73",
    "mount": "#882255",
    "create": "#f0e442",
    "start": "#d55e00",
    "ready": "#44aa66",
    "background": "#bbccee",
}
OTHER = "#8c5a2b"


def timelines(group: Group, *, lazy_only: bool = False, narrow: bool = False) -> Figure | None:
    """Draws bars per span of each case's median trial: download and unpack stand before start, or do not.

    Every span name has its lane, so that what ran in parallel is seen to overlap; a line marks readiness. With
    ``lazy_only`` the full pulls are left out, so that seconds are not lost on a scale of minutes.
    """
    shown = [
        (line.label, line.median_trial)
        for line in group.lines
        if line.median_trial is not None and (line.lazy or not lazy_only)
    ]
    if not shown or (lazy_only and len(shown) == len(group.lines)):
        return None
    lanes = [_lanes(trial) for _, trial in shown]
    rows = sum(len(names) + 1.4 for names in lanes)
    figure = canvas(1.0 + 0.16 * rows, narrow=narrow)
    (axes,) = axes_of(figure)
    horizon = max(trial.time_to_ready_s or 0 for _, trial in shown) * 1.08
    used: dict[str, str] = {}
    y = 0.0
    for (label, trial), names in zip(shown, lanes, strict=True):
        ready = trial.time_to_ready_s or 0
        axes.text(0, y, f"{label}  ready {seconds(ready)}", va="center", fontsize=8.5)
        y += 1
        top = y
        for name in names:
            used[name] = SPAN_COLOURS.get(name, OTHER)
            _bars(axes, y, trial, name, horizon)
            y += 1
        axes.plot([ready, ready], [top - 0.6, y - 0.4], color=INK, linewidth=1.5)
        y += 0.4
    axes.set_ylim(y - 0.5, -0.8)
    axes.set_xlim(0, horizon)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds after T0 (the median trial of each)", fontsize=8)
    order = [*SPAN_COLOURS, *sorted(used.keys() - SPAN_COLOURS.keys())]
    legend_below(figure, [(name, used[name]) for name in order if name in used], 3 if narrow else 9)
    return figure


def _bars(axes: Axes, y: float, trial: Observation, name: str, horizon: float) -> None:
    for span in trial.timeline:
        if span.name == name and span.start_s <= horizon:
            width = max(min(span.end_s, horizon) - span.start_s, horizon / 800)
            colour = SPAN_COLOURS.get(name, OTHER)
            axes.barh(y, width, left=span.start_s, height=0.9, color=colour, linewidth=0)


def _lanes(trial: Observation) -> list[str]:
    present = {span.name for span in trial.timeline}
    known = [name for name in SPAN_COLOURS if name in present]
    return [*known, *sorted(present - SPAN_COLOURS.keys())] or ["ready"]
