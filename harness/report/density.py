"""This module finds how much of an image a start may read before a full pull is the sooner one: the axis
``read_percent``.

The points of a scenario with that axis are trials of the same blocks. At each point every case is set against one full
pull, the best of them over all points, with its paired interval; beside it stands the ratio of the two lower bounds,
which is what physics alone would give (``harness.model.bound``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from harness.stats.crossing import Crossing, crossing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.modes import Style
    from harness.report.comparison import Group
    from harness.stats.paired import PairedRatio


@dataclass(frozen=True, slots=True)
class SharePoint:
    """Holds one case at one share."""

    percent: int
    ratio: PairedRatio
    """This is the time to ready over the full pull's."""
    ready_s: float
    received_bytes: float
    bound_ratio: float | None
    """This is the case's lower bound over the full pull's; None where one has none."""


@dataclass(frozen=True, slots=True)
class ShareCurve:
    """Holds one case over the shares, in rising order; shares without a pair of valid trials are left out."""

    label: str
    style: Style
    points: tuple[SharePoint, ...]

    @property
    def pays_until(self) -> Crossing:
        """Returns the share at which the full pull becomes the sooner one."""
        return crossing([p.percent for p in self.points], [p.ratio for p in self.points])


@dataclass(frozen=True, slots=True)
class Density:
    """Holds all curves of one scenario on one shape at one distance, against one full pull."""

    scenario: str
    shape: str
    distance: str
    place: str
    """Names shape, distance and values of other axes, as titles have them."""
    against: str
    curves: tuple[ShareCurve, ...]

    @property
    def title(self) -> str:
        """Says what its table is called."""
        return f"{self.scenario} on {self.place}: where lazy stops paying"


def densities(groups: Sequence[Group]) -> list[Density]:
    """Measures the axis of each scenario, shape and distance that has trials at more than one share."""
    by_place: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        key = group.key
        if key.read_percent is not None:
            by_place.setdefault((key.family, key.place("read_percent")), []).append(group)
    found = []
    for (scenario, place), unordered in by_place.items():
        if len(unordered) > 1:
            members = sorted(unordered, key=lambda g: g.key.read_percent or 0)
            against = _against(members)
            curves = _curves(members, against) if against else ()
            if curves:
                key = members[0].key
                found.append(Density(scenario, key.shape, key.distance, place, against, curves))
    return found


def _against(groups: Sequence[Group]) -> str:
    """Returns the full pull with the least mean log time over all points; empty where none was valid at every point."""
    times: dict[str, list[float]] = {}
    for group in groups:
        for line in group.lines:
            if not line.lazy and not line.is_floor and line.ready is not None:
                times.setdefault(line.label, []).append(math.log(line.ready.median))
    whole = {label: fmean(logs) for label, logs in times.items() if len(logs) == len(groups)}
    return min(whole, key=lambda label: whole[label]) if whole else ""


def _curves(groups: Sequence[Group], against: str) -> tuple[ShareCurve, ...]:
    labels = {line.label: line.style for group in groups for line in group.lines if line.label != against}
    made = []
    for label, style in labels.items():
        points = [point for group in groups if (point := _point(group, label, against)) is not None]
        if points:
            made.append(ShareCurve(label, style, tuple(points)))
    return tuple(made)


def _point(group: Group, label: str, against: str) -> SharePoint | None:
    line, base, ratio = group.line(label), group.line(against), group.ratio(label, against)
    if line is None or base is None or ratio is None or line.ready is None or line.received is None:
        return None
    bound = line.bound_s / base.bound_s if line.bound_s and base.bound_s else None
    return SharePoint(group.key.read_percent or 0, ratio, line.ready.median, line.received.median, bound)
