"""This module holds a table of a report as cells; page, Markdown and terminal each show the same ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """Holds what stands in a cell; ``proven`` is False for a ratio that may be chance."""

    text: str
    proven: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Holds column heads and rows; the first cell of a row says what it is about."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def cells(*said: str | Cell) -> tuple[Cell, ...]:
    """Makes one row; plain text is what needs no proof."""
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in said)
