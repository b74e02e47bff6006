"""This module draws what a start uses: CPU by phase, bytes received, CPU credits over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.model.observation import BEFORE_READY
from harness.report.figures.canvas import axes_of, canvas, legend_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.report.comparison import Group

_PHASE_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#2f6f4f", "#d55e00", "#e69f00")
#: A balance that moves less than this, in core-seconds, shows the governor's rounding and nothing else.
CREDITS_WORTH_SHOWING_CORE_S = 1.0


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def cpu_by_phase(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws the CPU seconds charged to the machine by phase, user and system apart, of each case's median trial."""
    shown = [(line.label, line.median_trial) for line in group.lines if line.median_trial is not None]
    if not shown:
        return None
    parts = [(phase, kind) for phase in BEFORE_READY for kind in ("user", "system")]
    figure = canvas(1.1 + 0.3 * len(shown), narrow=narrow)
    (axes,) = axes_of(figure)
    for row, (_, trial) in enumerate(shown):
        left = 0.0
        for number, (phase, kind) in enumerate(parts):
            value = sum(p.cpu_user_s if kind == "user" else p.cpu_system_s for p in trial.phases if p.phase == phase)
            axes.barh(row, value, left=left, color=_PHASE_COLOURS[number % 6], height=0.7)
            left += value
        axes.annotate(f"{left:.2f}", (left, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    _rows(axes, [label for label, _ in shown])
    axes.margins(x=0.12)
    axes.set_xlabel("CPU seconds until ready (the median trial of each)", fontsize=8)
    entries = [(f"{phase} {kind}", _PHASE_COLOURS[n % 6]) for n, (phase, kind) in enumerate(parts)]
    legend_below(figure, entries, 2 if narrow else 6)
    return figure


def received_bytes(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws the bytes received before ready and in all, of each case's median trial: what lazy pulling puts off, or
    leaves.
    """
    shown = []
    for line in group.lines:
        if (trial := line.median_trial) is not None:
            first, in_all = trial.wire_before_ready.received_bytes, trial.wire.received_bytes
            if first is not None and in_all is not None:
                shown.append((line.label, first / 1e6, in_all / 1e6))
    if not shown:
        return None
    figure = canvas(1.1 + 0.3 * len(shown), narrow=narrow)
    (axes,) = axes_of(figure)
    for row, (_, before, whole) in enumerate(shown):
        axes.barh(row, before, color="#0072b2", height=0.7)
        axes.barh(row, max(whole - before, 0), left=before, color="#bbccee", height=0.7)
        axes.annotate(
            f"{before:.0f}", (before, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
        )
    _rows(axes, [label for label, *_ in shown])
    axes.margins(x=0.12)
    axes.set_xlabel("MB received (the median trial of each)", fontsize=8)
    legend_below(figure, [("before ready", "#0072b2"), ("after it", "#bbccee")], 2)
    return figure


def credit_balance(group: Group, *, narrow: bool = False) -> Figure | None:
    """Draws the CPU-credit balance of the median trials over time; None where no trial earns or
    spends any to speak of.
    """
    shown = [(line, line.median_trial) for line in group.lines if line.median_trial and line.median_trial.credits]
    moved = max((abs(c.balance_core_s) for _, trial in shown for c in trial.credits), default=0.0)
    if moved < CREDITS_WORTH_SHOWING_CORE_S:
        return None
    figure = canvas(3.0 if narrow else 2.4, narrow=narrow)
    (axes,) = axes_of(figure)
    for line, trial in shown:
        times, balances = [c.t_s for c in trial.credits], [c.balance_core_s for c in trial.credits]
        axes.plot(times, balances, line.style.line, label=line.label, color=line.style.colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds after T0")
    axes.set_ylabel("core-seconds of credit")
    figure.legend(loc="outside lower center", ncols=2 if narrow else 5, fontsize=7)
    return figure
