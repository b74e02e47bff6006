"""This module writes one self-contained HTML page from a session's observations, to be read in a minute.

The page has no script and makes no request.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from harness import __version__
from harness.report import faults, figures, tables
from harness.report.answer import answer
from harness.report.axes import sections
from harness.report.figures import canvas

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure

    from harness.model.observation import Observation
    from harness.report.axes import AxisSection
    from harness.report.comparison import Group


@dataclass(frozen=True, slots=True)
class Context:
    """Holds what a report says about its session besides the observations."""

    session: str
    created: str
    command: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Holds a figure as the page does: once for a wide screen and once for a phone, and what it shows in words."""

    title: str
    words: str
    wide: str
    narrow: str


def _draw(title: str, words: str, draw: Callable[..., Figure | None], group: Group, **options: Any) -> list[Drawn]:
    wide, narrow = draw(group, **options), draw(group, narrow=True, **options)
    if wide is None or narrow is None:
        return []
    alternative = f"{title}: {group.key.title}. {words} The numbers are in the tables."
    return [Drawn(title, words, canvas.svg(wide, alternative), canvas.svg(narrow, alternative))]


def _start_figures(group: Group) -> list[Drawn]:
    lazy = "The lazy starts on a scale of their own."
    return [
        *_draw(
            "Time to ready", "Mean and 95 % interval of each mode, every trial as a thin mark, the physical lower "
            "bound, and the same start with the image already on the machine.", figures.ready_times, group,
        ),
        *_draw(
            "The start, taken apart", "Spans as seen from where they happen; what runs in parallel overlaps. Until "
            "the upright line the workload is not ready.", figures.timelines, group,
        ),
        *_draw("Lazy starts, taken apart", lazy, figures.timelines, group, lazy_only=True),
    ]  # fmt: skip


def _runtime_figures(group: Group) -> list[Drawn]:
    base = group.baselines[0] if group.baselines else "the baseline"
    return [
        *_draw(
            "What it costs afterwards", f"Wall time of the same file system work after ready, as a ratio to {base}: "
            "above 1 is slower. A grey field is not proven to differ.", figures.runtime_heat, group,
        ),
        *_draw(
            "Break-even", f"Seconds ahead of {base} after that much time spent in nothing but the (warm) workload: "
            "where a curve crosses zero, the sooner start is used up.", figures.break_even_curves, group,
        ),
    ]  # fmt: skip


def _resource_figures(group: Group) -> list[Drawn]:
    return [
        *_draw("Bytes", "Received before ready, and in all.", figures.received_bytes, group),
        *_draw(
            "CPU", "Everything the engine, its daemons and the container used inside the machine until ready.",
            figures.cpu_by_phase, group,
        ),
        *_draw("CPU credits", "What the machine had left to spend above its baseline.", figures.credit_balance, group),
        *_draw("All trials", "Every valid trial, block by block.", figures.all_trials, group),
        *_draw(
            "Run-time ratios with their intervals", "The same as the heat map, with 95 % intervals; grey is not "
            "proven.", figures.runtime_ratios, group,
        ),
    ]  # fmt: skip


def _axis(section: AxisSection) -> dict[str, Any]:
    """Returns what the page shows of one axis."""
    drawn = []
    for figure in section.figures:
        wide, narrow = figure.draw(), figure.draw(narrow=True)
        if wide is not None and narrow is not None:
            words = f"{figure.title}: {section.scenario}. {figure.words} The numbers are in the tables."
            drawn.append(Drawn(figure.title, figure.words, canvas.svg(wide, words), canvas.svg(narrow, words)))
    return {"title": section.title, "tables": section.tables, "figures": drawn}


def html(observations: Sequence[Observation], groups: Sequence[Group], context: Context) -> str:
    """Writes the report as one page: no script, no request, figures as inline SVG; ``groups`` is their comparison."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    axes = sections(groups)
    on_axes = {s.scenario for s in axes if sum(g.key.family == s.scenario for g in groups) > 1}
    source = resources.files("harness.report").joinpath("templates/report.html").read_text()
    return environment.from_string(source).render(
        title=tables.title(groups),
        version=__version__,
        session=context.session,
        created=context.created,
        counts=tables.counts(observations),
        command=context.command,
        facts=[(name, value) for name, value in context.facts.items() if value not in (None, "", [], {})],
        light=canvas.scheme(dark=False),
        dark=canvas.scheme(dark=True),
        axes=[_axis(section) for section in axes],
        groups=[
            {
                "title": g.key.title,
                "answer": answer(g).sentences,
                "cold": tables.cold_start_parts(g)[0],
                "used": tables.cold_start_parts(g)[1],
                "runtime": tables.runtime(g),
                "faults": faults.matrix(g.faults) if g.faults else None,
                "faults_rest": faults.rest(g.faults),
                "excluded": tables.excluded(g),
                # A point of an axis is one of many: its table stands here, the axis has the figures.
                "start_figures": [] if g.key.family in on_axes else _start_figures(g),
                "runtime_figures": [] if g.key.family in on_axes else _runtime_figures(g),
                "resource_figures": [] if g.key.family in on_axes else _resource_figures(g),
            }
            for g in groups
        ],
    )
