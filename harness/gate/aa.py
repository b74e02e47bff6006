"""This module finds how often a design cries wolf on this host, how much it would miss, and what to set: same against
same.

An A/A session runs every case of a scenario twice in each block. Which of the two is "the candidate" is arbitrary, so
the sides of any block may be swapped and a subset of the blocks taken: each such draw is one more gate that must stay
quiet. The rate of draws with a wrong verdict is the false-alarm rate of the design on this host's noise; its
Clopper-Pearson interval is about the number of draws. The power is found the same way, with one side's times
multiplied. Blocks of one session are the only source: what differs between days is seen only by comparing kept
records.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import Field

from harness.gate.lines import Line, judge, primary, time_lines
from harness.model.metrics import METRICS, family, of_trial
from harness.model.observation import Frozen
from harness.stats.paired import MIN_BLOCKS, paired_ratio
from harness.stats.proportion import clopper_pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.sides import Pair
    from harness.model.scenario import Gate

DRAWS = 1000
#: The change whose detection is stated beside every verdict.
STATED_CHANGE = 0.15


class RatePart(Frozen):
    """Holds ``hits`` of ``draws``, and the 95 % interval of the rate (Clopper and Pearson)."""

    hits: int
    draws: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.hits / self.draws if self.draws else 0.0


class Noise(Frozen):
    """Holds the noise of one metric of one case: the spread of the blocks' log ratios, and the smallest change found 95
    times of 100.
    """

    case: str
    metric: str
    spread_log: float
    ratio: float
    """This is the ratio of the session itself: 1 but for noise."""
    low: float
    high: float
    detectable: float
    """This is the change as a factor above 1 that the blocks of the gate find with 95 % power."""
    median: float


class AaRecord(Frozen):
    """Holds what an A/A session has shown; it is kept per host class and scenario."""

    schema_version: int = 1
    coldbench_version: str
    created_at: str
    host_class: str
    host: str
    scenario: str
    session: str
    blocks: int
    """Counts the complete blocks of the A/A session."""
    block_minutes: float | None = None
    """This is what a block of an ordinary session takes: half of what a block with both sides took."""
    gate_blocks: int
    """Counts the blocks of the gates that were drawn from the session."""
    alpha: float
    margin: float
    metrics: tuple[str, ...]
    injected: float = 0.0
    """This is the share by which one side was slowed on purpose; it is 0 for same against same."""
    wrong: RatePart
    """Counts the draws in which any metric that decides says regression or improvement."""
    wrong_confirmed: RatePart
    """Counts the draws in which a first session says regression and a second one confirms it, which fails a build."""
    caught: RatePart | None = None
    """Counts the draws in which a slowdown of ``caught_change`` in time to ready is called a regression."""
    caught_change: float = STATED_CHANGE
    noise: tuple[Noise, ...] = ()
    scatter: dict[str, float] = Field(default_factory=dict)
    """Gives by counter the largest relative difference between the two equal sides of a block."""

    @property
    def steady(self) -> tuple[str, ...]:
        """Lists the counters that never differed."""
        return tuple(sorted(name for name, apart in self.scatter.items() if apart == 0))

    @property
    def margin_to_use(self) -> float:
        """Returns the largest change that could hide in the noise of a metric that decides, at these blocks."""
        decide = primary(self.metrics)
        found = [line.detectable - 1 for line in self.noise if decide(line.metric)]
        return max(found, default=self.margin)


def scatter(pairs: Sequence[Pair]) -> dict[str, float]:
    """Returns the largest relative difference of each counter inside a block of equal sides."""
    apart: dict[str, float] = defaultdict(float)
    for pair in pairs:
        theirs = {(o.host, o.block): of_trial(o) for o in pair.baseline if o.valid}
        for o in pair.candidate:
            other = theirs.get((o.host, o.block))
            if not o.valid or other is None:
                continue
            mine = of_trial(o)
            for metric in mine.keys() | other.keys():
                if METRICS[family(metric)].kind == "counter":
                    a, b = mine.get(metric, 0.0), other.get(metric, 0.0)
                    apart[metric] = max(apart[metric], abs(a - b) / max(a, b) if max(a, b) > 0 else 0.0)
    return dict(apart)


def noise_of(lines: Sequence[Line], gate_blocks: int, alpha: float) -> tuple[Noise, ...]:
    """Returns the spread of every line, and what it lets a gate of so many blocks detect."""
    from harness.stats.power import detectable_log
    from harness.stats.trimmed import kept, standard_error

    found = []
    for line in lines:
        spread, low, high = line.ratio.spread_log, line.ratio.low, line.ratio.high
        if spread is None or low is None or high is None:
            continue
        se = standard_error(spread, gate_blocks)
        detectable = math.exp(detectable_log(se, kept(gate_blocks) - 1, alpha=alpha, power=0.95))
        found.append(
            Noise(case=line.case, metric=line.metric, spread_log=spread, ratio=line.ratio.ratio, low=low, high=high,
                  detectable=detectable, median=line.baseline)
        )  # fmt: skip
    return tuple(found)


class Drawer:
    """Draws gates from the blocks of an A/A session."""

    def __init__(self, pairs: Sequence[Pair], gate: Gate, gate_blocks: int, seed: int = 1) -> None:
        self.gate = gate
        self.decide = primary(gate.metrics)
        self._random = random.Random(seed)
        self._values = [(pair.name, _both(pair)) for pair in pairs]
        self.blocks = sorted({block for _, of_pair in self._values for both in of_pair.values() for block in both})
        self.take = min(gate_blocks, len(self.blocks))

    def draw(self, blocks: Sequence[tuple[str, int]] | None = None, factor: float = 1.0) -> dict[tuple[str, str], str]:
        """Returns the verdicts of one drawn gate by case and metric; the candidate's times are multiplied by
        ``factor``.
        """
        chosen = self._random.sample(self.blocks, self.take) if blocks is None else list(blocks)
        swapped = {block: self._random.random() < 0.5 for block in chosen}
        lines = []
        for case, of_pair in self._values:
            for metric, both in of_pair.items():
                there = [block for block in chosen if block in both]
                if not self.decide(metric) or len(there) < MIN_BLOCKS:
                    continue
                sides = [both[block][::-1] if swapped[block] else both[block] for block in there]
                scale = factor if metric in {"time-to-ready", "cpu-to-ready"} else 1.0
                ratio = paired_ratio([scale * mine for mine, _ in sides], [theirs for _, theirs in sides])
                margin = self.gate.margin_of(metric)
                lines.append(Line(case, metric, ratio, 0.0, 0.0, margin))
        judged = judge(lines, self.decide, alpha=self.gate.alpha)
        return {(line.case, line.metric): str(line.verdict) for line in judged}

    def halves(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Draws two sessions, a first gate and its confirmation, that share no block where there are enough of them."""
        order = self._random.sample(self.blocks, len(self.blocks))
        if len(order) >= 2 * self.take:
            return order[: self.take], order[self.take : 2 * self.take]
        half = len(order) // 2
        return order[:half], order[half:]


def _both(pair: Pair) -> dict[str, dict[tuple[str, int], tuple[float, float]]]:
    """Returns the values of both sides by metric and block."""
    theirs = {(o.host, o.block): of_trial(o) for o in pair.baseline if o.valid}
    found: dict[str, dict[tuple[str, int], tuple[float, float]]] = defaultdict(dict)
    for o in pair.candidate:
        other = theirs.get((o.host, o.block))
        if o.valid and other is not None:
            for metric, value in of_trial(o).items():
                if METRICS[family(metric)].kind == "time" and value > 0 and other.get(metric, 0.0) > 0:
                    found[metric][o.host, o.block] = (value, other[metric])
    return found


def _rate(hits: int, draws: int) -> RatePart:
    rate = clopper_pearson(hits, draws)
    return RatePart(hits=hits, draws=draws, low=rate.low, high=rate.high)


def false_alarms(drawer: Drawer, draws: int = DRAWS) -> tuple[RatePart, RatePart]:
    """Returns the rates of a wrong verdict in one session, and of a regression that a second session confirms."""
    wrong = confirmed = 0
    for _ in range(draws):
        said = drawer.draw().values()
        wrong += "regression" in said or "improvement" in said
        first, second = (drawer.draw(blocks) for blocks in drawer.halves())
        confirmed += any(v == "regression" and second.get(line) == "regression" for line, v in first.items())
    return _rate(wrong, draws), _rate(confirmed, draws)


def power(drawer: Drawer, change: float = STATED_CHANGE, draws: int = DRAWS) -> RatePart:
    """Says how often a slowdown of every start by ``change`` is called a regression in time to ready."""
    caught = 0
    for _ in range(draws):
        said = drawer.draw(factor=1 + change)
        caught += any(v == "regression" for (_case, metric), v in said.items() if metric == "time-to-ready")
    return _rate(caught, draws)


def caught_as_run(pairs: Sequence[Pair], gate: Gate, gate_blocks: int, draws: int = DRAWS) -> RatePart:
    """Says how often draws of an *injected* session, sides kept, call its time to ready a regression."""
    chooser = random.Random(2)
    values = [_both(pair).get("time-to-ready", {}) for pair in pairs]
    caught = 0
    for _ in range(draws):
        lines = []
        for i, both in enumerate(values):
            take = chooser.sample(sorted(both), min(gate_blocks, len(both)))
            if len(take) >= MIN_BLOCKS:
                ratio = paired_ratio([both[b][0] for b in take], [both[b][1] for b in take])
                lines.append(Line(str(i), "time-to-ready", ratio, 0.0, 0.0, gate.margin_of("time-to-ready")))
        judged = judge(lines, lambda _metric: True, alpha=gate.alpha)
        caught += any(line.verdict == "regression" for line in judged)
    return _rate(caught, draws)


def lines_of(pairs: Sequence[Pair], gate: Gate) -> list[Line]:
    """Returns all time lines of an A/A session, judged as its gate would."""
    return judge(time_lines(pairs, gate.margin_of), primary(gate.metrics), alpha=gate.alpha)
