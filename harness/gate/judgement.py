"""This module makes the judgement of a gate: which lines and counters decide, what they say, and why a regression is
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gate import counters, reasons
from harness.gate.lines import Line, judge, primary, time_lines
from harness.gate.result import Regression
from harness.gate.wording import change, percent, value
from harness.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.baseline import Baseline
    from harness.gate.counters import CounterLine
    from harness.gate.sides import Pair, Side
    from harness.model.observation import Observation
    from harness.model.scenario import Gate
    from harness.session.inventory import Inventory
    from harness.stats.stopping import Stopping


def _candidate(pair: Pair) -> tuple[Observation, ...]:
    return pair.candidate


def _baseline(pair: Pair) -> tuple[Observation, ...]:
    return pair.baseline


@dataclass(frozen=True)
class Judgement:
    """Judges pairs by a scenario's ``[gate]``; ``rules`` are those of counters, ``stopping`` is the design of looks."""

    gate: Gate
    baseline: Baseline
    rules: counters.Rules
    stopping: Stopping
    timed: bool = True
    """It is False where only what does not scatter is looked at."""

    def goes_on(self, block: int, pairs: Sequence[Pair], side: Side) -> bool:
        """Says whether the block with this number is needed, so many being there."""
        found = self.counters(pairs, side)
        bad = counters.regressed(found)
        of_images = {line for line in bad if not line[0]}
        enough = 1 if of_images or not self.gate.confirm else 2
        if bad and block <= 2:
            return block < enough
        if not self.timed:
            return False
        return self.stopping.goes_on(
            block, lambda: all(line.verdict != "inconclusive" for line in self.lines(pairs, block))
        )

    def lines(self, pairs: Sequence[Pair], blocks: int) -> list[Line]:
        """Returns all lines, judged at the look that so many blocks are."""
        gate = self.gate
        decide = primary(gate.metrics)
        return judge(
            time_lines(pairs, gate.margin_of), lambda m: decide(m) and self.decides(m), alpha=gate.alpha,
            level=lambda rate: self.stopping.level(blocks, rate),
        )  # fmt: skip

    def decides(self, metric: str) -> bool:
        """Says whether a metric counts: the scenario does not ignore it or its family."""
        return not any(metric == name or metric.startswith(f"{name}/") for name in self.gate.ignore)

    def counters(self, pairs: Sequence[Pair], side: Side) -> list[CounterLine]:
        """Compares the images and the counters of all pairs."""
        mine, theirs = self._inventories(pairs, side)
        return counters.image_lines(mine, theirs, self.rules) + counters.counter_lines(pairs, self.rules)

    def _inventories(self, pairs: Sequence[Pair], side: Side) -> tuple[Inventory | None, Inventory | None]:
        digests = [
            next((o.image_digest for pair in pairs for o in trials(pair) if o.image_digest), "")
            for trials in (_candidate, _baseline)
        ]
        other = self.baseline.side or side
        if not all(digests):
            return None, None
        return side.inventory(digests[0]), other.inventory(digests[1])

    def counter_regressions(self, found: Sequence[CounterLine], pairs: Sequence[Pair], side: Side) -> list[Regression]:
        """Explains every counter that regressed; the paths are named with the first one."""
        mine, theirs = self._inventories(pairs, side)
        named = reasons.paths(mine, theirs) if mine is not None and theirs is not None else []
        out = []
        for line in found:
            if line.status == "regression":
                grew = "from none" if line.baseline == 0 else change(1 + line.change)
                sentence = (
                    f"{line.metric} grew from {value(line.metric, line.baseline)} to "
                    f"{value(line.metric, line.candidate)} ({grew}, {percent(line.tolerance)} is let pass)"
                )
                out.append(Regression(line.case, line.metric, sentence, tuple(named)))
                named = []  # once is enough
        return out

    def time_regression(self, line: Line, pairs: Sequence[Pair], side: Side) -> Regression:
        """Explains a regression in time: the phases that grew, counters, and paths."""
        pair = next(pair for pair in pairs if pair.name == line.case)
        why = reasons.phases(pair) + reasons.counters(pair)
        mine, theirs = self._inventories([pair], side)
        if mine is not None and theirs is not None:
            why += reasons.paths(mine, theirs)
        sentence = (
            f"{line.metric} grew from {value(line.metric, line.baseline)} to {value(line.metric, line.candidate)}: "
            f"{wording.ratio(line.ratio)}, {percent(line.margin)} is let pass"
        )
        return Regression(line.case, line.metric, sentence, tuple(why))
