"""This module shows how long storms take until all machines are ready, as their number grows, and what arithmetic says
of more.

The points of a scenario with the axis ``machines`` are trials of the same blocks. Beyond what was measured stands the
least time that one machine's bytes and CPU allow (``harness.model.storm.all_ready_s``), never a measured one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.details import StormUse
from harness.model.storm import all_ready_s
from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.modes import Style
    from harness.report.comparison import CaseLine, Group
    from harness.stats.paired import PairedRatio

#: Numbers of machines that arithmetic speaks of, as far as they are above the measured ones.
BEYOND = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class StormPoint:
    """Holds one case with so many machines; figures are medians over trials, those of single machines come from the
    median trial.

    ``ratio`` is the time until all are ready over the same with the fewest machines; None for those. ``host_share`` is
    how busy the host's processors were, with whatever; None where it was not seen.
    """

    machines: int
    ready_s: float
    ratio: PairedRatio | None
    each_s: tuple[float, ...]
    """Holds the seconds to ready of each machine of the median trial, the soonest first."""
    received_bytes: float
    cpu_s: float
    disk_written_bytes: int
    host_share: float | None
    model_s: float
    """This is the least time that the fewest machines' bytes and CPU allow for this number."""


@dataclass(frozen=True, slots=True)
class StormCase:
    """Holds one case over the numbers of machines, and the least times beyond them."""

    label: str
    style: Style
    points: tuple[StormPoint, ...]
    beyond: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StormSweep:
    """Holds all cases of one scenario's storms on one shape at one distance."""

    scenario: str
    shape: str
    distance: str
    at: str
    """Names shape, distance and values of other axes, as titles have them."""
    images: str
    """It is ``same`` or ``distinct``."""
    uplink_bytes_s: int | None
    host_cores: int
    cases: tuple[StormCase, ...]

    @property
    def place(self) -> str:
        """Says where it was, with images and uplink, as titles have it."""
        line = "" if self.uplink_bytes_s is None else f", {self.uplink_bytes_s * 8 / 1e6:g} Mbit/s for all"
        return f"{self.at}, {self.images} images{line}"

    @property
    def title(self) -> str:
        return f"{self.scenario} on {self.place}: machines started together"


def storms(groups: Sequence[Group]) -> list[StormSweep]:
    """Finds the storms of each scenario, shape and distance; one number of machines is enough."""
    by_place: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        key = group.key
        if key.machines is not None:
            by_place.setdefault((key.family, key.place("machines")), []).append(group)
    found = []
    for (scenario, place), unordered in by_place.items():
        members = sorted(unordered, key=lambda g: g.key.machines or 0)
        shared = _shared(members)
        cases = _cases(members, shared)
        if cases:
            key = members[0].key
            found.append(
                StormSweep(
                    scenario, key.shape, key.distance, place, shared.images or "",
                    shared.uplink_bytes_s, shared.host_cores or 0, cases,
                )
            )  # fmt: skip
    return found


def _shared(groups: Sequence[Group]) -> StormUse:
    """Returns what the machines of these storms shared, as any valid trial says it."""
    for group in groups:
        for line in group.lines:
            if line.median_trial is not None and line.median_trial.details.storm is not None:
                return line.median_trial.details.storm
    return StormUse()


def _cases(groups: Sequence[Group], shared: StormUse) -> tuple[StormCase, ...]:
    labels = {line.label: line.style for group in groups for line in group.lines}
    made = []
    for label, style in labels.items():
        lines = [(g.key.machines or 0, line) for g in groups if (line := g.line(label)) is not None and line.ready]
        if lines:
            made.append(_case(label, style, lines, shared))
    return tuple(made)


def _case(label: str, style: Style, lines: Sequence[tuple[int, CaseLine]], shared: StormUse) -> StormCase:
    first = lines[0][1]
    # What one machine takes is the least that was seen of any number, or noise would set a least time above a measured.
    alone_s = min(line.ready.median for _, line in lines if line.ready is not None)
    bytes_each = min(line.received.median / n for n, line in lines if line.received is not None)
    core_each = min(line.cpu.median / n for n, line in lines if line.cpu is not None)

    def least(machines: int) -> float:
        return all_ready_s(
            machines, alone_s=alone_s, received_bytes=bytes_each, core_s=core_each,
            host_cores=float(shared.host_cores or 1), uplink_bytes_s=shared.uplink_bytes_s,
        )  # fmt: skip

    points = tuple(_point(machines, line, first, least(machines)) for machines, line in lines)
    beyond = tuple((n, least(n)) for n in BEYOND if n > lines[-1][0])
    return StormCase(label, style, points, beyond)


def _point(machines: int, line: CaseLine, first: CaseLine, model_s: float) -> StormPoint:
    assert line.ready is not None
    assert line.received is not None
    assert line.cpu is not None
    trial = line.median_trial
    assert trial is not None
    busy = trial.details.storm.host_share if trial.details.storm is not None else None
    blocks = sorted(line.ready_by_block.keys() & first.ready_by_block.keys())
    ratio = None
    if line is not first and blocks:
        ratio = paired_ratio([line.ready_by_block[b] for b in blocks], [first.ready_by_block[b] for b in blocks])
    return StormPoint(
        machines,
        line.ready.median,
        ratio,
        tuple(sorted(machine.ready_s for machine in trial.storm if machine.ready_s is not None)),
        line.received.median,
        line.cpu.median,
        trial.disk_written_bytes or 0,
        busy,
        model_s,
    )
