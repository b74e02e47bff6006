"""This module compares the same image with its layers compressed otherwise: the axis ``compression``.

The points of a scenario with that axis are trials of the same blocks, so each case is set against itself with the first
compression, paired inside blocks: what changed between the two is the compression and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.modes import Style
    from harness.report.comparison import CaseLine, Group
    from harness.stats.paired import PairedRatio


@dataclass(frozen=True, slots=True)
class PackedPoint:
    """Holds one case with one compression. ``ratio`` is its time to ready over that with the first;
    None for the first.
    """

    compression: str
    ready_s: float
    ratio: PairedRatio | None
    received_bytes: float
    cpu_s: float
    bound_s: float | None


@dataclass(frozen=True, slots=True)
class PackedCase:
    """Holds one case with every compression that it was ready with."""

    label: str
    style: Style
    points: tuple[PackedPoint, ...]


@dataclass(frozen=True, slots=True)
class Packing:
    """Holds all cases of one scenario in one place."""

    scenario: str
    shape: str
    distance: str
    place: str
    """Names shape, distance and values of other axes, as titles have them."""
    compressions: tuple[str, ...]
    """Lists the compressions in the order of the scenario."""
    cases: tuple[PackedCase, ...]

    @property
    def title(self) -> str:
        return f"{self.scenario} on {self.place}: how its layers are compressed"


def packings(groups: Sequence[Group]) -> list[Packing]:
    """Finds each scenario, shape, distance and share that has been measured with more than one compression."""
    by_place: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        key = group.key
        if key.compression:
            by_place.setdefault((key.family, key.place("compression")), []).append(group)
    found = []
    for (scenario, place), unordered in by_place.items():
        members = sorted(unordered, key=lambda g: _place(g.key.compression))
        cases = _cases(members) if len(members) > 1 else ()
        if cases:
            names = tuple(group.key.compression for group in members)
            key = members[0].key
            found.append(Packing(scenario, key.shape, key.distance, place, names, cases))
    return found


def _place(compression: str) -> tuple[int, str]:
    """Sorts gzip first, since it is what images are; plain tars last."""
    kind = compression.partition(":")[0]
    return ({"gzip": 0, "zstd": 1, "none": 2}.get(kind, 3), compression)


def _cases(groups: Sequence[Group]) -> tuple[PackedCase, ...]:
    labels = {line.label: line.style for group in groups for line in group.lines}
    made = []
    for label, style in labels.items():
        first = groups[0].line(label)
        lines = [(g.key.compression, line) for g in groups if (line := g.line(label)) is not None and line.ready]
        if lines:
            points = tuple(_point(compression, line, first) for compression, line in lines)
            made.append(PackedCase(label, style, points))
    return tuple(made)


def _point(compression: str, line: CaseLine, first: CaseLine | None) -> PackedPoint:
    assert line.ready is not None
    assert line.received is not None
    assert line.cpu is not None
    ratio = None if first is None or line is first else _ratio(line.ready_by_block, first.ready_by_block)
    return PackedPoint(compression, line.ready.median, ratio, line.received.median, line.cpu.median, line.bound_s)


def _ratio(mine: dict[int, float], first: dict[int, float]) -> PairedRatio | None:
    blocks = sorted(mine.keys() & first.keys())
    return paired_ratio([mine[b] for b in blocks], [first[b] for b in blocks]) if blocks else None
