"""This module finds the answer of a comparison: which mode to use, what it costs afterwards, and how sure that is.

A report is read for one decision, so the decision stands on top of terminal, page and JSON, in words and as data. Only
differences that survive the correction over everything a table shows enter it (``CaseLine.proven``,
``RuntimeLine.proven``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.report import faults, programs, wording
from harness.stats.paired import MIN_BLOCKS, PairedRatio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.comparison import CaseLine, Group, RuntimeLine

Sureness = Literal["sure", "unsure", "too few blocks"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Names one run-time workload that is proven to be slower than under the baseline."""

    workload: str
    temperature: str
    ratio: PairedRatio
    break_even_s: float
    """This is how many seconds of nothing but this workload use up the sooner start."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds the decision for one group of cases; ``sentences`` say it in words, the other fields as data.

    ``use`` is the label of the mode to use, None where nothing was ready. ``against`` is what one has now: Docker
    where it is measured, else the first full pull. ``first_touch`` and ``later`` are the worst proven costs with cold
    files and with files that were read before, None where none is proven.
    """

    group: str
    use: str | None
    ready_s: float | None
    against: str | None
    against_ready_s: float | None
    sooner: PairedRatio | None
    first_touch: Cost | None
    later: Cost | None
    break_even_s: float | None
    floor: str | None
    floor_ready_s: float | None
    over_floor: PairedRatio | None
    blocks: int
    sure: Sureness
    findings: tuple[str, ...]
    sentences: tuple[str, ...]


def answer(group: Group) -> Answer:
    """Decides what to tell the reader of this group of cases."""
    measured = [line for line in group.lines if line.ready is not None and not line.is_floor]
    findings = tuple(_findings(group))
    now = _now(group, measured)
    best = _best(group, measured)
    if best is None:
        said = (*findings, "No trial is valid, so there is no answer; what was left out stands below.")
        return Answer(
            group.key.title, None, None, None, None, None, None, None, None, None, None, None, 0, "too few blocks",
            findings, said,
        )  # fmt: skip
    sooner = group.ratio(best.label, now.label) if now and now is not best else None
    blocks = sooner.blocks if sooner else len(best.ready_by_block)
    proven = now is not None and now.label in best.proven
    if now is not None and now is not best and not proven and blocks >= MIN_BLOCKS:
        # Nothing is shown to be sooner: what one has is the answer.
        best, sooner = now, None
    costs = _costs(group, best)
    cold = [cost for cost in costs if cost.temperature == "cold"]
    later = [cost for cost in costs if cost.temperature != "cold"]
    floor = group.line(group.floor) if group.floor else None
    sure: Sureness = "too few blocks" if blocks < MIN_BLOCKS else "sure" if proven else "unsure"
    made = Answer(
        group=group.key.title,
        use=best.label,
        ready_s=_median(best),
        against=now.label if now else None,
        against_ready_s=_median(now) if now else None,
        sooner=sooner,
        first_touch=max(cold, key=_size, default=None),
        later=max(later, key=_size, default=None),
        break_even_s=_break_even(group, best, costs),
        floor=floor.label if floor else None,
        floor_ready_s=_median(floor) if floor else None,
        over_floor=group.ratio(best.label, floor.label) if floor else None,
        blocks=blocks,
        sure=sure,
        findings=findings,
        sentences=(),
    )
    return _said(made, group)


def _size(cost: Cost) -> float:
    return cost.ratio.ratio


def _now(group: Group, measured: Sequence[CaseLine]) -> CaseLine | None:
    """Returns what people have: Docker where it was measured, else the first baseline."""
    foreign = [line for line in measured if line.engine == "docker" and not line.lazy]
    if foreign:
        return foreign[0]
    return next((line for line in measured if line.label in group.baselines), None)


def _best(group: Group, measured: Sequence[CaseLine]) -> CaseLine | None:
    """Returns the soonest case; of those not shown to be later than it, the one that costs least afterwards."""
    offered = [line for line in measured if line.offered] or list(measured)
    if not offered:
        return None
    soonest = min(offered, key=_median)
    ties = [line for line in offered if line is soonest or not _later(group, line, soonest)]
    return min(ties, key=lambda line: (round(_burden(group, line), 3), _median(line)))


def _median(line: CaseLine) -> float:
    return line.ready.median if line.ready else math.inf


def _later(group: Group, line: CaseLine, soonest: CaseLine) -> bool:
    ratio = group.ratio(line.label, soonest.label)
    # Without an interval nothing is shown to be equal, either: then only the soonest itself remains.
    return ratio is None or ratio.low is None or ratio.low > 1


def _burden(group: Group, line: CaseLine) -> float:
    """Sums up the logarithms of all proven slow-downs."""
    return sum(math.log(cost.ratio.ratio) for cost in _costs(group, line))


def _costs(group: Group, line: CaseLine) -> list[Cost]:
    return [
        Cost(r.workload, r.temperature, r.ratio, r.break_even.seconds if r.break_even else math.inf)
        for r in group.runtime
        if r.label == line.label and r.proven and r.ratio is not None and r.ratio.ratio > 1
    ]


def _break_even(group: Group, best: CaseLine, costs: Sequence[Cost]) -> float | None:
    """Returns the earliest break-even of the repeatable workloads.

    It is infinite where none is proven slower, None if that is not known: a first touch is no repeatable workload.
    """
    if len(best.ready_by_block) < MIN_BLOCKS or _temperatures(group, best.label) <= {"cold"}:
        return None
    return min((c.break_even_s for c in costs if c.temperature != "cold"), default=math.inf)


def _temperatures(group: Group, label: str) -> set[str]:
    """Returns the temperatures of files at which run-time workloads of a mode were compared."""
    return {r.temperature for r in group.runtime if r.label == label and r.ratio is not None}


def _findings(group: Group) -> list[str]:
    """Names workloads that fail under some modes only, and modes under which nothing was ready: said before all
    numbers.
    """
    said = []
    for name, failed in group.failed_workloads.items():
        others = [line.label for line in group.lines if line.ready is not None and line.label not in failed]
        where = ", ".join(failed)
        only = f" and works under {', '.join(others)}" if others else ""
        said.append(f"Workload {name} fails under {where}{only}: {next(iter(failed.values()))}.")
    never = [line for line in group.lines if line.ready is None]
    if len(never) < len(group.lines):
        said += [f"{line.label} was never ready: {'; '.join(line.excluded)}." for line in never]
    return said


def _said(made: Answer, group: Group) -> Answer:
    first = _decision(made, group)
    lines = [*made.findings, first]
    if made.over_floor is not None and made.floor_ready_s is not None:
        lines.append(
            f"With the image already on the machine ({made.floor}) the start takes "
            f"{wording.seconds(made.floor_ready_s)}: {made.use} takes {wording.ratio(made.over_floor)} of that."
        )
    if told := programs.sentence(group):
        lines.append(told)
    if needs := faults.sentence(group.faults, made.use):
        lines.append(needs)
    lines.append(_sureness(made, group))
    return replace(made, sentences=tuple(lines))


def _decision(made: Answer, group: Group) -> str:
    ready = wording.seconds(made.ready_s)
    if made.against is None or made.against == made.use:
        if made.blocks < MIN_BLOCKS or made.against is None:
            return f"{made.use} is ready in {ready}."
        return f"Keep {made.use}, ready in {ready}: no other mode is shown to be sooner."
    against = wording.seconds(made.against_ready_s)
    sooner = wording.times_sooner(made.sooner)
    verb = "Use" if made.sure == "sure" else "Soonest so far:"
    start = f"{verb} {made.use}: ready in {ready} where {made.against} takes {against}"
    start += f", {sooner}" if sooner else ""
    return f"{start}; {_price(made, group)}."


_UNKNOWN_LATER = "what it costs with files read before was not measured"


def _price(made: Answer, group: Group) -> str:
    """Says what the sooner start costs afterwards, for the same sentence."""
    if made.blocks < MIN_BLOCKS:
        return "too few blocks to say what it costs afterwards"
    unknown = made.break_even_s is None
    if unknown and not _temperatures(group, made.use or ""):
        return "what it costs afterwards was not measured"
    if unknown and made.first_touch is None:
        return f"no workload is shown to be slower when files are first touched; {_UNKNOWN_LATER}"
    if made.first_touch is None and made.later is None:
        return "afterwards no workload is shown to be slower, so it never costs more than it saved"
    # Run-time costs are ratios to the first baseline, which need not be what one has.
    base = group.baselines[0] if group.baselines else ""
    said = "afterwards " if base in {"", made.against} else f"afterwards, beside {base}, "
    if made.first_touch is not None:
        said += f"{made.first_touch.workload} takes {_times(made.first_touch)} as long when files are first touched"
        said += ", and " if made.later is not None else ""
    if made.break_even_s is None:
        return f"{said}; {_UNKNOWN_LATER}"
    if made.later is None:
        return f"{said} and no longer than before after that, so it never costs more than it saved"
    said += f"{made.later.workload} takes {_times(made.later)} as long with {made.later.temperature} files"
    if math.isinf(made.break_even_s):
        return f"{said}; it never costs more than it saved"
    return f"{said}; after {wording.seconds(made.break_even_s)} of nothing but that it has cost more than it saved"


def _times(cost: Cost) -> str:
    return wording.ratio(cost.ratio)


def _sureness(made: Answer, group: Group) -> str:
    if made.blocks < MIN_BLOCKS:
        blocks = f"{made.blocks} block" + ("" if made.blocks == 1 else "s")
        return f"{blocks}: no verdict (one needs {MIN_BLOCKS})."
    shown = sum(len(line.ratios) for line in group.lines) + sum(r.ratio is not None for r in group.runtime)
    if made.sure == "sure":
        return (
            f"How sure: {made.blocks} paired blocks, 95 % intervals; each difference named here survives Holm's "
            f"correction over the {shown} ratios of its tables."
        )
    return f"How sure: {made.blocks} paired blocks do not prove a difference; see the smallest detectable change below."


def worst_first(lines: Sequence[RuntimeLine]) -> list[RuntimeLine]:
    """Sorts run-time lines as a reader needs them: proven slow-downs first, the largest on top, then what is not
    proven.
    """
    return sorted(lines, key=lambda r: (not r.proven, -(r.ratio.ratio if r.ratio else 0.0)))
