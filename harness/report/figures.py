"""The report's figures, drawn by matplotlib without a display, as SVG text to put into a self-contained page."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.model.observation import BEFORE_READY
from harness.stats.breakeven import advantage_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.model.modes import Style
    from harness.model.observation import Observation
    from harness.report.comparison import Group, RuntimeLine

mpl.rcParams.update(
    {
        "svg.hashsalt": "coldbench",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

#: Colour-blind safe (Okabe & Ito), one per span name.
SPAN_COLOURS = {
    "resolve": "#999999",
    "wait": "#DDDDDD",
    "index": "#CC79A7",
    "fetch": "#0072B2",
    "verify": "#332288",
    "inflate": "#56B4E9",
    "unpack": "#E69F00",
    "prefetch": "#009E73",
    "mount": "#882255",
    "create": "#F0E442",
    "start": "#D55E00",
    "ready": "#44AA66",
    "background": "#BBCCEE",
}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def timelines(group: Group, *, lazy_only: bool = False) -> str:
    """Bars per span of each case's median trial: download and unpack stand before start, or do not.

    Every span name has its lane, so that what ran in parallel is seen to overlap; a line marks readiness. With
    ``lazy_only`` the full pulls are left out, so that seconds are not lost on a scale of minutes.
    """
    shown = [
        (line.label, line.median_trial)
        for line in group.lines
        if line.median_trial is not None and (line.lazy or not lazy_only)
    ]
    if not shown or (lazy_only and len(shown) == len(group.lines)):
        return ""
    lanes = [_lanes(trial) for _, trial in shown]
    rows = sum(len(names) + 1 for names in lanes)
    figure = Figure(figsize=(8, 0.6 + 0.2 * rows))
    axes = figure.subplots()
    y = 0.0
    ticks, labels = [], []
    used: dict[str, str] = {}
    horizon = max(trial.time_to_ready_s or 0 for _, trial in shown) * 1.08
    for (label, trial), names in zip(shown, lanes, strict=True):
        top = y
        for name in names:
            for span in trial.timeline:
                if span.name != name or span.start_s > horizon:
                    continue
                used[name] = SPAN_COLOURS.get(name, "#000000")
                width = max(min(span.end_s, horizon) - span.start_s, horizon / 800)
                axes.barh(y, width, left=span.start_s, height=0.9, color=used[name], linewidth=0)
            y += 1
        ready = trial.time_to_ready_s or 0
        axes.plot([ready, ready], [top - 0.6, y - 0.4], color="black", linewidth=1.5)
        axes.annotate(
            f"ready {_seconds(ready)}", (ready, top - 0.5), xytext=(3, 0), textcoords="offset points", va="top"
        )
        ticks.append((top + y - 1) / 2)
        labels.append(label)
        y += 1
    axes.set_ylim(y - 0.5, -1)
    axes.set_xlim(0, horizon * 1.1)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("seconds after T0 (the median trial of each)")
    _legend(axes, [(n, c) for n, c in SPAN_COLOURS.items() if n in used])
    return _svg(figure)


def _lanes(trial: Observation) -> list[str]:
    present = {span.name for span in trial.timeline}
    return [name for name in SPAN_COLOURS if name in present] or ["ready"]


def _legend(axes: Axes, entries: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    figure = axes.get_figure()
    below = -0.12 - 0.4 / max(figure.get_figheight() if isinstance(figure, Figure) else 4.0, 1.0)
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in entries],
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        ncols=6,
        frameon=False,
        fontsize=8,
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def cpu_by_phase(group: Group) -> str:
    """CPU seconds charged to the machine by phase, user and system apart, of each case's median trial."""
    shown = [(line.label, line.median_trial) for line in group.lines if line.median_trial is not None]
    if not shown:
        return ""
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(shown)))
    axes = figure.subplots()
    parts = [(phase, kind) for phase in BEFORE_READY for kind in ("user", "system")]
    colours = ["#0072B2", "#56B4E9", "#999933", "#DDCC77", "#D55E00", "#E69F00"]
    for row, (_, trial) in enumerate(shown):
        left = 0.0
        for (phase, kind), colour in zip(parts, colours, strict=True):
            value = sum(p.cpu_user_s if kind == "user" else p.cpu_system_s for p in trial.phases if p.phase == phase)
            axes.barh(row, value, left=left, color=colour, height=0.7)
            left += value
        axes.annotate(f"{left:.2f}", (left, row), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(shown)), [label for label, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds until ready (the median trial of each)")
    _legend(axes, [(f"{phase} {kind}", colour) for (phase, kind), colour in zip(parts, colours, strict=True)])
    return _svg(figure)


def ready_times(group: Group) -> str:
    """Every valid trial's time to ready as a dot, the physical lower bound as a mark below which nothing can lie."""
    shown = [line for line in group.lines if line.ready is not None]
    if not shown:
        return ""
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(shown)))
    axes = figure.subplots()
    for row, line in enumerate(shown):
        assert line.ready is not None
        colour = line.style.colour
        axes.plot([line.ready.minimum, line.ready.maximum], [row, row], color=colour, linewidth=1)
        axes.plot([line.ready.q1, line.ready.q3], [row, row], color=colour, linewidth=5, solid_capstyle="butt")
        axes.plot(line.ready.median, row, line.style.marker, color="white", markeredgecolor=colour, markersize=6)
        if line.bound_s:
            axes.plot(line.bound_s, row, "|", color="black", markersize=14)
    axes.set_yticks(range(len(shown)), [line.label for line in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.set_xlabel("seconds to ready, log scale: median, quartiles, extremes; | is the physical lower bound")
    return _svg(figure)


def runtime_ratios(group: Group) -> str:
    """Run-time overhead per workload and temperature as ratio to the baseline with its 95 % interval, log scale."""
    lines = [line for line in group.runtime if line.ratio is not None]
    if not lines:
        return ""
    temperatures = [t for t in ("cold", "warm", "stale", "evicted") if any(r.temperature == t for r in lines)]
    workloads = list(dict.fromkeys(line.workload for line in lines))
    labels = list(dict.fromkeys(line.label for line in lines))
    styles = {line.label: line.style for line in group.lines}
    figure = Figure(figsize=(8, 0.9 + 0.16 * len(workloads) * (len(labels) + 1)))
    all_axes = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(all_axes, temperatures, strict=True):
        for row, workload in enumerate(workloads):
            for number, label in enumerate(labels):
                found = [r for r in lines if (r.workload, r.temperature, r.label) == (workload, temperature, label)]
                if not found or found[0].ratio is None:
                    continue
                _ratio_mark(axes, row + (number + 0.5) / (len(labels) + 1) - 0.5, found[0], styles[label])
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high / low < 10:
            # Less than a decade holds one power of ten at the most.
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
        axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_title(temperature, fontsize=9)
        axes.set_yticks(range(len(workloads)), workloads)
        axes.set_ylim(len(workloads) - 0.5, -0.6)
    _legend(all_axes[0], [(label, styles[label].colour) for label in labels])
    return _svg(figure)


def _ratio_mark(axes: Axes, y: float, line: RuntimeLine, style: Style) -> None:
    ratio = line.ratio
    assert ratio is not None
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [y, y], color=style.colour, linewidth=1)
    inside = "white" if style.hollow else style.colour
    axes.plot(ratio.ratio, y, style.marker, markersize=4, color=inside, markeredgecolor=style.colour)


def break_even_curves(group: Group, temperature: str = "warm") -> str:
    """Seconds ahead of the baseline over running time, per workload; a curve that crosses zero has lost its saving."""
    lines = [
        r for r in group.runtime if r.break_even is not None and r.temperature == temperature and r.ratio is not None
    ]
    if not lines:
        return ""
    finite = [r.break_even.seconds for r in lines if r.break_even and math.isfinite(r.break_even.seconds)]
    saving = max(r.break_even.saving_s for r in lines if r.break_even)
    horizon = min(max([*finite, saving * 2, 1.0]) * 1.3, 40 * max(saving, 1.0))
    times = np.linspace(0, horizon, 50)
    labels = list(dict.fromkeys(r.label for r in lines))
    figure = Figure(figsize=(8, 2.6 * math.ceil(len(labels) / 2)))
    grid = figure.subplots(math.ceil(len(labels) / 2), min(2, len(labels)), squeeze=False, sharex=True, sharey=True)
    styles = ["-", "--", ":", "-."]
    for axes, label in zip(grid.flat, labels, strict=False):
        for number, line in enumerate(r for r in lines if r.label == label):
            assert line.break_even is not None
            curve = advantage_curve(line.break_even.saving_s, line.break_even.ratio, list(times))
            axes.plot(times, curve, styles[number % 4], linewidth=1.1, label=line.workload, color=f"C{number % 10}")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(label, fontsize=9)
        axes.set_ylim(-max(saving, 0.1) * 1.2, max(saving, 0.1) * 1.2)
        axes.set_xlabel("seconds of work after ready")
        axes.set_ylabel("seconds ahead")
    for axes in list(grid.flat)[len(labels) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=6, ncols=2, frameon=False, loc="lower left")
    figure.tight_layout()
    return _svg(figure)


def credit_balance(group: Group) -> str:
    """CPU-credit balance over time of the median trials; empty where the shape has no credits."""
    shown = [(line, line.median_trial) for line in group.lines if line.median_trial is not None]
    shown = [(line, trial) for line, trial in shown if trial.credits]
    if not shown:
        return ""
    figure = Figure(figsize=(8, 2.2))
    axes = figure.subplots()
    for line, trial in shown:
        axes.plot(
            [c.t_s for c in trial.credits],
            [c.balance_core_s for c in trial.credits],
            line.style.line,
            label=line.label,
            color=line.style.colour,
        )
    axes.set_xlabel("seconds after T0")
    axes.set_ylabel("credit balance, core-seconds")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)
