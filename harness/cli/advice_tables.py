"""This module shows advice as tables on a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from harness.report.advice import Advice, Choice
    from harness.report.contents import Unread


def show(out: Console, advice: Advice, starts: float, builds: float, rows: int) -> None:
    """Prints one scenario's advice, ``rows`` lines of each list, for so many starts and builds a day."""
    out.print(f"[bold]{advice.scenario}[/bold]", highlight=False)
    out.print(advice.price, markup=False)
    _print_choices(out, advice.choices)
    if advice.contents is not None:
        _print_contents(out, advice, rows)
    _print_worth(out, advice, starts, builds)
    for note in advice.notes:
        out.print(f"note: {note}", markup=False)


def _table(out: Console, head: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Table

    out.print(f"\n{title}", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in head:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in line))
    out.print(table)


def _print_choices(out: Console, choices: Sequence[Choice]) -> None:
    from harness.report import wording

    lines = []
    for choice in choices:
        how = "measured" if choice.measured else f"predicted from {choice.measured_on}"
        if choice.use is None:
            lines.append([choice.shape, "not predicted", choice.why_not, "", "", ""])
            continue
        about = "" if choice.measured else "~"
        between = "" if choice.measured else f" ({choice.low_s:.3g} to {choice.high_s:.3g})"
        instead = f"{about}{wording.seconds(choice.against_ready_s)} ({choice.against})" if choice.against else ""
        lines.append(
            [
                choice.shape,
                how,
                choice.use,
                f"{about}{wording.seconds(choice.ready_s)}{between}",
                instead,
                ", ".join(choice.ties),
            ]
        )
    head = ("machine", "how", "use", "ready", "instead of", "as good")
    _table(out, head, lines, "Which mode (~: the middle of a predicted range, which is in parentheses):")


def _megabytes(size: float) -> str:
    from harness.report import wording

    return wording.size(size)


def _print_contents(out: Console, advice: Advice, rows: int) -> None:
    found = advice.contents
    assert found is not None
    out.print(
        f"\nOf {found.files} files ({_megabytes(found.bytes)}) {advice.read_in} read {found.files_read} "
        f"({_megabytes(found.bytes_read)}).",
        markup=False,
    )
    can_go = found.droppable
    if can_go:
        _unread(
            out, can_go, rows, f"Packages that could go: {len(can_go)}, {_megabytes(sum(p.bytes for p in can_go))}:"
        )
    kept = [package for package in found.packages if not package.can_go]
    if kept:
        _unread(
            out, kept, min(rows, 5), "Not read either, but needed by what was (as their packages say):", needed=True
        )
    if found.directories:
        _unread(out, found.directories, rows, "Directories never read:")
    layers = [
        [str(layer.number), _megabytes(layer.compressed_bytes), _megabytes(layer.bytes),
         f"{100 * layer.bytes_read / layer.bytes:.0f} %" if layer.bytes else "", layer.made_by[:70]]
        for layer in found.layers
    ]  # fmt: skip
    _table(out, ("layer", "stored", "shown", "read", "made by"), layers, "Layers, the lowest first:")
    order = advice.order
    if order is not None and order.is_best:
        out.print("Their order is good: the smallest lies on top, and changes alone.", markup=False)
    elif order is not None:
        said = ", ".join(str(number) for number in order.numbers)
        out.print(
            f"Better from below: {said}. A change of the smallest layer sends {_megabytes(order.resent_now_bytes)} "
            f"again now, {_megabytes(order.resent_then_bytes)} then (if it is the one that changes most).",
            markup=False,
        )


def _unread(out: Console, found: Sequence[Unread], rows: int, title: str, *, needed: bool = False) -> None:
    lines = [
        [u.name, _megabytes(u.bytes), str(u.files), str(u.layer), u.needed_by if needed else u.brought_by]
        for u in found[:rows]
    ]
    if len(found) > rows:
        rest = found[rows:]
        lines.append(
            [f"… {len(rest)} more", _megabytes(sum(u.bytes for u in rest)), str(sum(u.files for u in rest)), "", ""]
        )
    _table(out, ("name", "bytes", "files", "layer", "needed by" if needed else "brought by"), lines, title)


def _print_worth(out: Console, advice: Advice, starts: float, builds: float) -> None:
    from harness.report import wording

    lines = []
    for entry in advice.worth:
        built = "not timed (it was kept)" if entry.build_s is None else wording.seconds(entry.build_s)
        pays = entry.pays_from_starts
        daily = entry.daily_s(starts, builds)
        lines.append(
            [
                entry.label, f"+{_megabytes(entry.extra_bytes)} ({100 * entry.extra_bytes / entry.image_bytes:.0f} %)",
                built, wording.seconds(entry.saving_s) if entry.saving_s > 0 else "nothing",
                "not known" if pays is None else "never" if math.isinf(pays) else f"{pays:.0f}",
                "not known" if daily is None else f"{'' if daily >= 0 else '-'}{wording.seconds(abs(daily))}",
            ]
        )  # fmt: skip
    if lines:
        head = ("mode", "registry", "build", "saved a start", "pays from starts a build", "saved a day")
        title = (
            f"What a lazy form is worth beside the best full pull, at {starts:g} starts and {builds:g} builds a day:"
        )
        _table(out, head, lines, title)
    if not advice.repacked:
        return
    lines = [
        [r.label, r.variant.name, f"x{r.variant.growth:.2f}", wording.seconds(r.now_s), f"~{wording.seconds(r.then_s)}",
         "yes" if r.sooner else "no"]
        for r in advice.repacked
    ]  # fmt: skip
    head = ("mode", "layers", "size", "now", "predicted", "sooner")
    _table(out, head, lines, "Compressing less (the middle of what is predicted on the first machine measured):")
