"""This module makes the report's tables, and the whole report as Markdown and as text for a terminal.

A table is made once, as cells; page, Markdown and terminal each show the same cells. A ratio that does not survive the
correction over everything its table shows is *not proven*, and each output says so in its way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.report import faults, wording
from harness.report.answer import answer, worst_first
from harness.report.cells import Cell, Table, cells
from harness.report.density import densities
from harness.report.packing import packings
from harness.report.storms import storms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.observation import Observation
    from harness.report.comparison import CaseLine, Group
    from harness.report.density import Density, ShareCurve
    from harness.report.packing import Packing
    from harness.report.page import Context
    from harness.report.storms import StormSweep
    from harness.stats.paired import PairedRatio


def cold_start(group: Group) -> Table:
    """Makes one row per mode, the soonest first."""
    floor = (f"of {group.floor}",) if group.floor else ()
    supply = ("registry may go", "daemon may die") if group.faults else ()
    head = (
        "mode", "valid", "ready, median", *supply, *(f"against {b}" for b in group.baselines), *floor, "CPU s to ready",
        "received before ready", "requests", "throttled", "memory peak", "page cache at ready", "over bound",
    )  # fmt: skip
    lines = sorted(group.lines, key=lambda line: line.ready.median if line.ready else float("inf"))
    return Table(head, tuple(_cold_row(group, line) for line in lines))


#: What of the cold starts explains them; the first table answers, this one stands further down.
_USED = ("requests", "throttled", "memory peak", "page cache at ready", "over bound")


def cold_start_parts(group: Group) -> tuple[Table, Table]:
    """Splits the table of cold starts in two that fit a page: the comparison, and what each start used."""
    whole = cold_start(group)
    used = [number for number, head in enumerate(whole.head) if number == 0 or head in _USED]
    answers = [number for number, head in enumerate(whole.head) if head not in _USED]

    def part(columns: list[int]) -> Table:
        rows = tuple(tuple(row[number] for number in columns) for row in whole.rows)
        return Table(tuple(whole.head[number] for number in columns), rows)

    return part(answers), part(used)


def _against(group: Group, line: CaseLine, baseline: str) -> Cell:
    if line.label == baseline:
        return Cell("baseline")
    ratio = line.ratios.get(baseline)
    return Cell(wording.ratio(ratio), proven=ratio is None or baseline in line.proven)


def _of_floor(group: Group, line: CaseLine) -> tuple[Cell, ...]:
    if not group.floor:
        return ()
    if line.label == group.floor:
        return (Cell("floor"),)
    return (Cell(wording.ratio(group.ratio(line.label, group.floor))),)


def _supply(group: Group, line: CaseLine) -> tuple[str, ...]:
    """Says from when on after ready the case needs nobody; nothing where no fault trial was run."""
    if not group.faults:
        return ()
    found = next((one.independent for one in group.faults if one.label == line.label), {})
    return tuple(faults.independent(found.get(side)) for side in faults.SIDES)


def _valid(line: CaseLine) -> str:
    """Says how many trials count, and whether daemons had to be replaced in them."""
    counted = f"{0 if line.ready is None else line.ready.n} of {line.trials}"
    return f"{counted}; daemon replaced {line.restarts}x" if line.restarts else counted


def _cold_row(group: Group, line: CaseLine) -> tuple[Cell, ...]:
    ready = line.ready
    over = None if ready is None or not line.bound_s else ready.median / line.bound_s
    return cells(
        line.label,
        _valid(line),
        wording.seconds(ready.median if ready else None),
        *_supply(group, line),
        *(_against(group, line, b) for b in group.baselines),
        *_of_floor(group, line),
        wording.NO_NUMBER if line.cpu is None else f"{line.cpu.median:.2f}",
        _received(line),
        wording.count(line.requests.median if line.requests else None, measured=ready is not None),
        wording.seconds(line.throttled.median if line.throttled else None),
        wording.size(line.memory.median if line.memory else None),
        _cache(line),
        wording.NO_NUMBER if over is None else f"{over:.1f}x",
    )


def _cache(line: CaseLine) -> str:
    """Writes ``105 of 162 MB``: what of the memory at readiness the kernel gives back when it is wanted."""
    if line.cache_ready is None or line.memory_ready is None:
        return wording.NO_NUMBER
    return f"{wording.size(line.cache_ready.median)} of {wording.size(line.memory_ready.median)}"


def _received(line: CaseLine) -> str:
    """Says what came before readiness, and how much of it a lazy mode streamed: that is said wherever the sum is."""
    received = wording.size(line.received.median if line.received else None)
    return f"{received}, {wording.size(line.streamed.median)} streamed" if line.streamed else received


def _ratio(ratio: PairedRatio | None, *, baseline: bool, proven: bool) -> Cell:
    if baseline:
        return Cell("baseline")
    return Cell(wording.ratio(ratio), proven=ratio is None or proven)


def runtime(group: Group) -> Table:
    """Makes one row per run-time workload, temperature and mode: proven slow-downs first."""
    base = group.baselines[0] if group.baselines else "the baseline"
    head = (
        "workload", "temperature", "mode", "wall, median", f"against {base}", "CPU s", "CPU against it",
        "FUSE requests", "break-even",
    )  # fmt: skip
    rows = []
    for line in worst_first(group.runtime):
        is_base = bool(group.baselines) and line.label == group.baselines[0]
        rows.append(
            cells(
                line.workload,
                line.temperature,
                line.label,
                wording.seconds(line.wall.median),
                _ratio(line.ratio, baseline=is_base, proven=line.proven),
                f"{line.cpu.median:.3f}",
                _ratio(line.cpu_ratio, baseline=is_base, proven=line.proven),
                wording.count(line.fuse.median if line.fuse else None),
                wording.meeting(line.break_even, line.ratio) if line.proven or is_base else wording.NO_NUMBER,
            )
        )
    return Table(head, tuple(rows))


def density(found: Density) -> Table:
    """Makes one row per case: where it stops paying, then its ratio at each share."""
    shares = sorted({point.percent for curve in found.curves for point in curve.points})
    head = ("mode", f"sooner than {found.against} up to", *(f"{share} % read" for share in shares))
    rows = []
    for curve in found.curves:
        at = {point.percent: point for point in curve.points}
        cells = [Cell(wording.ratio(at[share].ratio) if share in at else wording.NO_NUMBER) for share in shares]
        rows.append((Cell(curve.label), Cell(pays_until(curve)), *cells))
    return Table(head, tuple(rows))


def pays_until(curve: ShareCurve) -> str:
    """Says in words where a curve crosses 1: ``37 % [30, 44]``."""
    until, last = curve.pays_until, curve.points[-1].percent
    first = curve.points[0].percent

    def said(place: float) -> str:
        return f"below {first}" if place == 0 else f"above {last}" if math.isinf(place) else f"{place:.0f}"

    text = f"{said(until.at)} %"
    if until.low is None or until.high is None:
        return f"{text} (no interval)"
    return text if until.low == until.high else f"{text} [{said(until.low)}, {said(until.high)}]"


def packing(found: Packing) -> Table:
    """Makes one row per case: seconds with the first compression, the others' ratios to it, bytes and CPU of each."""
    first, *others = found.compressions
    head = (
        "mode", f"{first}: ready", *(f"{name}: against {first}" for name in others),
        *(f"{name}: received" for name in found.compressions), *(f"{name}: CPU s" for name in found.compressions),
    )  # fmt: skip
    rows = []
    for case in found.cases:
        at = {point.compression: point for point in case.points}
        rows.append(
            cells(
                case.label,
                wording.seconds(at[first].ready_s if first in at else None),
                *(wording.ratio(at[name].ratio if name in at else None) for name in others),
                *(wording.size(at[name].received_bytes if name in at else None) for name in found.compressions),
                *(f"{at[name].cpu_s:.2f}" if name in at else wording.NO_NUMBER for name in found.compressions),
            )
        )
    return Table(head, tuple(rows))


def storm(sweep: StormSweep) -> Table:
    """Makes one row per case and number of machines, then one for each least time beyond, which nobody measured."""
    head = (
        "mode", "machines", "first ready", "all ready", "against the fewest", "by arithmetic", "registry bytes",
        "CPU s", "written to disks", "host busy",
    )  # fmt: skip
    rows = []
    for case in sweep.cases:
        for p in case.points:
            rows.append(
                cells(
                    case.label, str(p.machines), wording.seconds(p.each_s[0] if p.each_s else None),
                    wording.seconds(p.ready_s), wording.ratio(p.ratio), f"at least {wording.seconds(p.model_s)}",
                    wording.size(p.received_bytes), f"{p.cpu_s:.2f}", wording.size(p.disk_written_bytes),
                    wording.NO_NUMBER if p.host_share is None else f"{p.host_share:.0%}",
                )
            )  # fmt: skip
        for machines, least_s in case.beyond:
            none = (wording.NO_NUMBER,) * 3
            least = f"at least {wording.seconds(least_s)}"
            rows.append(cells(case.label, f"{machines}, not measured", *none, least, *none, wording.NO_NUMBER))
    return Table(head, tuple(rows))


def excluded(group: Group) -> list[str]:
    """Says what is in no number, and why."""
    starts = [f"{line.label}: {reason}" for line in group.lines for reason in line.excluded]
    return [*starts, *faults.excluded(group.faults)]


def counts(observations: Sequence[Observation]) -> str:
    """Says how many trials there are, and how many of them count."""
    valid = sum(o.valid for o in observations)
    failed = sum(o.status == "failed" for o in observations)
    return f"{len(observations)} trials: {valid} valid, {len(observations) - valid - failed} invalid, {failed} failed"


def title(groups: Sequence[Group]) -> str:
    """Returns the report's title."""
    scenarios = list(dict.fromkeys(g.key.scenario for g in groups))
    return "Cold start of " + ", ".join(scenarios) if scenarios else "No trials yet"


def markdown(observations: Sequence[Observation], groups: Sequence[Group], context: Context) -> str:
    """Writes the answer and the tables as GitHub Markdown; what is not proven is in parentheses."""
    out = [f"# {title(groups)}", "", f"Session {context.session}, {context.created}. {counts(observations)}.", ""]
    for g in groups:
        out += [f"## {g.key.title}", "", *(f"{wording.markdown(s)}\n" for s in answer(g).sentences)]
        out += [*markdown_table(cold_start(g)), ""]
        out += [f"- left out: {wording.markdown(reason)}" for reason in excluded(g)]
        if g.faults:
            out += ["", "### When the supply fails", "", *markdown_table(faults.matrix(g.faults)), ""]
            out += [*markdown_table(faults.rest(g.faults)), ""]
        if g.runtime:
            out += ["", "### Run-time workloads", "", *markdown_table(runtime(g)), ""]
    for found in densities(groups):
        out += [f"## {found.title}", "", *markdown_table(density(found)), ""]
    for packed in packings(groups):
        out += [f"## {packed.title}", "", *markdown_table(packing(packed)), ""]
    for sweep in storms(groups):
        out += [f"## {sweep.title}", "", *markdown_table(storm(sweep)), ""]
    if any(not cell.proven for g in groups for t in (cold_start(g), runtime(g)) for row in t.rows for cell in row):
        out += ["Ratios in parentheses are not proven: they do not survive Holm's correction over their table.", ""]
    return "\n".join(out)


def markdown_table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(table.head) + " |", "|" + "|".join(" --- " for _ in table.head) + "|"]
    for row in table.rows:
        cells = (wording.markdown(cell.text if cell.proven else f"({cell.text})") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return lines
