"""This package draws the report's figures: each is a function that takes a group of cases and returns a matplotlib
figure, or None.

Figures of an axis take what ``harness.report.axes`` found on it. None means that there is nothing to show.
``narrow`` draws for a phone's width. A notebook shows the figure as it is; the report turns it into inline SVG
(``harness.report.figures.canvas``).
"""

from __future__ import annotations

from harness.report.figures.breakeven import break_even_curves
from harness.report.figures.density import density_curves, density_surface
from harness.report.figures.overview import overview
from harness.report.figures.packing import packing_marks
from harness.report.figures.ready import all_trials, ready_times
from harness.report.figures.resources import cpu_by_phase, credit_balance, received_bytes
from harness.report.figures.runtime import runtime_heat, runtime_ratios
from harness.report.figures.storms import storm_times
from harness.report.figures.timeline import timelines

__all__ = [
    "all_trials",
    "break_even_curves",
    "cpu_by_phase",
    "credit_balance",
    "density_curves",
    "density_surface",
    "overview",
    "packing_marks",
    "ready_times",
    "received_bytes",
    "runtime_heat",
    "runtime_ratios",
    "storm_times",
    "timelines",
]
