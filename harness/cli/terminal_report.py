"""This module prints the report on a terminal, the answer in a frame and tables in columns; into a pipe it prints
Markdown instead.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from harness.report.cells import Table
    from harness.report.publish import Published


def print_report(published: Published, out: Console | None = None) -> None:
    """Prints a published report: laid out for reading on a terminal, as Markdown elsewhere."""
    from harness.cli.tables import console

    if out is None and not sys.stdout.isatty():
        print(published.markdown)
        return
    _print(published, out or console())


def _print(published: Published, out: Console) -> None:
    from rich.panel import Panel
    from rich.text import Text

    from harness.report import faults, tables
    from harness.report.answer import answer
    from harness.report.density import densities
    from harness.report.packing import packings

    for group in published.groups:
        sentences = answer(group).sentences
        out.print(Panel(Text("\n".join(sentences)), title=group.key.title, title_align="left", border_style="green"))
        first, used = tables.cold_start_parts(group)
        _table(out, first, "Cold start")
        _table(out, used, "What each start used")
        if group.faults:
            _table(out, faults.matrix(group.faults), "When the supply fails")
            _table(out, faults.rest(group.faults), "")
        runtime = tables.runtime(group)
        if runtime.rows:
            _table(out, runtime, "After the start, proven slow-downs first")
        for reason in tables.excluded(group):
            out.print(f"left out: {reason}", style="yellow", markup=False, highlight=False)
    for found in densities(published.groups):
        _table(out, tables.density(found), found.title)
    for packed in packings(published.groups):
        _table(out, tables.packing(packed), packed.title)
    out.print("Dim ratios are not proven: they do not survive Holm's correction over their table.", style="dim")


def _table(out: Console, made: Table, title: str) -> None:
    """Prints one table; a ratio that is not proven is dim."""
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(title=title, title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(made.head):
        drawn.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in made.rows:
        drawn.add_row(*(Text(cell.text, style="" if cell.proven else "dim") for cell in row))
    out.print(drawn)
