"""One self-contained HTML file and one Markdown summary from a session's observations."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from harness import __version__
from harness.report import figures, wording

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.model.observation import Observation
    from harness.report.comparison import CaseLine, Group


@dataclass(frozen=True, slots=True)
class Context:
    """What a report says about its session besides the observations."""

    session: str
    created: str
    command: str
    facts: Mapping[str, Any]


def _row(group: Group, line: CaseLine) -> list[str]:
    ready = line.ready
    over = None if ready is None or not line.bound_s else ready.median / line.bound_s
    valid = 0 if ready is None else ready.n
    return [
        line.label,
        f"{valid} of {line.trials}",
        wording.seconds(ready.median if ready else None),
        wording.spread(ready),
        *("baseline" if b == line.label else wording.ratio(line.ratios.get(b)) for b in group.baselines),
        wording.seconds(line.bound_s),
        wording.NO_NUMBER if over is None else f"{over:.1f}x",
        wording.NO_NUMBER if line.cpu is None else f"{line.cpu.median:.2f}",
        wording.size(line.received.median if line.received else None),
        wording.count(line.requests.median if line.requests else None, measured=ready is not None),
        wording.seconds(line.throttled.median if line.throttled else None),
        wording.size(line.memory.median if line.memory else None),
    ]


def sentences(group: Group) -> list[str]:
    """What a reader should take away, in words; says nothing that has no interval."""
    said = []
    measured = [line for line in group.lines if line.ready is not None]
    for number, baseline in enumerate(group.baselines):
        base = next((line for line in measured if line.label == baseline), None)
        # The baselines before this one were compared with it from their side already.
        others = [m for m in measured if baseline in m.ratios and m.label not in group.baselines[:number]]
        if base is None or base.ready is None or not others:
            continue
        best = min(others, key=lambda line: line.ratios[baseline].ratio)
        assert best.ready is not None
        sooner = wording.times_sooner(best.ratios[baseline])
        if sooner:
            said.append(
                f"{best.label} is ready in {wording.seconds(best.ready.median)} where {baseline} takes "
                f"{wording.seconds(base.ready.median)}: {sooner}."
            )
        else:
            said.append(
                f"{best.label} was ready in {wording.seconds(best.ready.median)} where {baseline} took "
                f"{wording.seconds(base.ready.median)}; too few blocks for an interval, so this is no comparison yet."
            )
    return said


def _excluded(group: Group) -> list[str]:
    return [f"{line.label}: {reason}" for line in group.lines for reason in line.excluded]


def _runtime_rows(group: Group) -> list[list[str]]:
    return [
        [
            line.workload,
            line.temperature,
            line.label,
            wording.seconds(line.wall.median),
            "baseline" if group.baselines and line.label == group.baselines[0] else wording.ratio(line.ratio),
            f"{line.cpu.median:.3f}",
            "baseline" if group.baselines and line.label == group.baselines[0] else wording.ratio(line.cpu_ratio),
            wording.count(line.fuse.median if line.fuse else None),
            wording.meeting(line.break_even, line.ratio),
        ]
        for line in group.runtime
    ]


def _counts(observations: Sequence[Observation]) -> str:
    valid = sum(o.valid for o in observations)
    failed = sum(o.status == "failed" for o in observations)
    invalid = len(observations) - valid - failed
    return f"{len(observations)} trials: {valid} valid, {invalid} invalid, {failed} failed"


def _title(groups: Sequence[Group]) -> str:
    scenarios = list(dict.fromkeys(g.key.scenario for g in groups))
    return "Cold start of " + ", ".join(scenarios) if scenarios else "No trials yet"


def html(observations: Sequence[Observation], groups: Sequence[Group], context: Context) -> str:
    """The report as one self-contained page: no script, no request, figures as inline SVG; ``groups`` is their
    comparison."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = resources.files("harness.report").joinpath("templates/report.html").read_text()
    return environment.from_string(source).render(
        title=_title(groups),
        version=__version__,
        session=context.session,
        created=context.created,
        counts=_counts(observations),
        command=context.command,
        facts=[(name, value) for name, value in context.facts.items() if value not in (None, "", [], {})],
        groups=[
            {
                "title": g.key.title,
                "sentences": sentences(g),
                "baselines": g.baselines,
                "rows": [_row(g, line) for line in g.lines],
                "excluded": _excluded(g),
                "timeline": figures.timelines(g),
                "lazy_timeline": figures.timelines(g, lazy_only=True),
                "ready_times": figures.ready_times(g),
                "cpu": figures.cpu_by_phase(g),
                "credits": figures.credit_balance(g),
                "runtime_rows": _runtime_rows(g),
                "runtime_baseline": g.baselines[0] if g.baselines else "",
                "runtime_figure": figures.runtime_ratios(g),
                "break_even": figures.break_even_curves(g),
            }
            for g in groups
        ],
    )


def markdown(observations: Sequence[Observation], groups: Sequence[Group], context: Context) -> str:
    """The same tables as GitHub Markdown, for a pull request or a terminal."""
    out = [f"# {_title(groups)}", "", f"Session {context.session}, {context.created}. {_counts(observations)}.", ""]
    for g in groups:
        out += [f"## {g.key.title}", ""]
        out += [f"{s}\n" for s in sentences(g)]
        against = [f"against {b}" for b in g.baselines]
        header = ["mode", "valid", "ready, median", "middle half", *against, "bound", "over bound", "CPU s to ready"]
        header += ["received before ready", "requests", "throttled", "memory peak"]
        out += _table(header, [_row(g, line) for line in g.lines])
        out += [f"- left out: {reason}" for reason in _excluded(g)]
        if g.runtime:
            base = g.baselines[0] if g.baselines else "the baseline"
            out += ["", "### Run-time workloads", ""]
            header = ["workload", "temperature", "mode", "wall, median", f"against {base}", "CPU s", "CPU against it"]
            out += _table([*header, "FUSE requests", "break-even"], _runtime_rows(g))
        out.append("")
    return "\n".join(out)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(" --- " for _ in header) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
