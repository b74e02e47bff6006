"""This module judges the first tier, what does not scatter: one block finds a change beyond its tolerance, without any
timing.

Image metrics come from the two images' inventories and are exact. Counters come from trials; how far each scatters on
this host is what an A/A run has shown, and one that scatters by more than ``UNSTEADY`` cannot decide. Where no A/A
run is kept, a counter has the tolerance of the table (``harness.model.metrics``).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.model.metrics import METRICS, family, of_trial, setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.gate.sides import Pair
    from harness.model.observation import Observation
    from harness.model.scenario import Gate
    from harness.session.inventory import Inventory

#: A counter that differs by more between two equal sides says nothing.
UNSTEADY = 0.25
#: Requests and the like below this count may differ by one without any meaning.
FEW = 20.0

Status = Literal["same", "regression", "improvement", "ignored", "unsteady", "for information"]


@dataclass(frozen=True, slots=True)
class CounterLine:
    """Holds one counter or image metric of one case; an empty ``case`` means the image itself."""

    case: str
    metric: str
    baseline: float
    candidate: float
    tolerance: float
    status: Status

    @property
    def change(self) -> float:
        """Returns the relative change; a counter that was zero and is not has grown without bound."""
        if self.baseline == 0:
            return 0.0 if self.candidate == 0 else float("inf")
        return self.candidate / self.baseline - 1


@dataclass(frozen=True, slots=True)
class Rules:
    """Says what decides: the scenario's gate, and the scatter of counters that an A/A run has shown
    (relative, by key).
    """

    gate: Gate
    scatter: Mapping[str, float] | None = None
    decide: bool = True
    """It is False where the sides differ by nature, as two modes do: counters are then shown only."""

    def tolerance(self, metric: str) -> float:
        """Returns the relative change that is let pass."""
        named = setting(metric, self.gate.thresholds)
        if named is not None:
            return named
        table = METRICS[family(metric)]
        if table.kind == "image" or self.scatter is None:
            return table.tolerance
        # Twice what was seen: the next run may scatter a little wider than the one that was kept.
        return max(table.tolerance, 2 * self.scatter.get(metric, 0.0))

    def status(self, metric: str, baseline: float, candidate: float) -> Status:
        """Says what to make of one pair of values."""
        if any(metric == name or family(metric) == name for name in self.gate.ignore):
            return "ignored"
        of_image = METRICS[family(metric)].kind == "image"
        if not of_image and not self.decide:
            return "for information"
        named = setting(metric, self.gate.thresholds) is not None
        if not named and self.scatter is not None and self.scatter.get(metric, 0.0) > UNSTEADY:
            return "unsteady"
        if not of_image and not named and METRICS[family(metric)].unit == "" and max(baseline, candidate) < FEW:
            slack = 1.0
        else:
            slack = 0.0
        allowed = self.tolerance(metric) * baseline + slack
        if candidate - baseline > allowed:
            return "regression"
        if baseline - candidate > allowed:
            return "improvement"
        return "same"


def image_lines(candidate: Inventory | None, baseline: Inventory | None, rules: Rules) -> list[CounterLine]:
    """Returns the image metrics that both sides know."""
    if candidate is None or baseline is None or candidate.digest == baseline.digest:
        return []
    mine, theirs = candidate.metrics(), baseline.metrics()
    return [
        CounterLine(
            "", name, theirs[name], mine[name], rules.tolerance(name), rules.status(name, theirs[name], mine[name])
        )
        for name in mine
        if name in theirs
    ]


def counter_lines(pairs: Sequence[Pair], rules: Rules) -> list[CounterLine]:
    """Compares the counters of every pair, by medians over the valid trials there are."""
    lines = []
    for pair in pairs:
        mine, theirs = counter_values(pair.candidate), counter_values(pair.baseline)
        for metric in dict.fromkeys([*theirs, *mine]):
            # An opcode that was never seen was seen zero times, if its side's trials were looked at.
            if not mine or not theirs or (family(metric) != "fuse" and (metric not in mine or metric not in theirs)):
                continue
            a, b = statistics.median(theirs.get(metric, [0.0])), statistics.median(mine.get(metric, [0.0]))
            status = rules.status(metric, a, b)
            lines.append(CounterLine(pair.name, metric, a, b, rules.tolerance(metric), status))
    return lines


def counter_values(observations: Iterable[Observation]) -> dict[str, list[float]]:
    """Returns the values of every counter of the valid trials."""
    found: dict[str, list[float]] = defaultdict(list)
    for o in observations:
        if o.valid:
            for metric, value in of_trial(o).items():
                if METRICS[family(metric)].kind == "counter":
                    found[metric].append(value)
    return found


def regressed(lines: Iterable[CounterLine]) -> set[tuple[str, str]]:
    """Returns case and metric of the lines that regressed."""
    return {(line.case, line.metric) for line in lines if line.status == "regression"}
