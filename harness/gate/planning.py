"""This module says how many blocks a change needs, and how long they take, from the spread that a session has shown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.errors import NothingToCompare
from harness.model.metrics import family, of_trial
from harness.stats.paired import paired_ratio
from harness.stats.power import blocks_needed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.aa import AaRecord
    from harness.model.observation import Observation

POWER = 0.95


@dataclass(frozen=True, slots=True)
class Need:
    """Says how many blocks one metric of one case needs; ``blocks`` is None where no number is enough."""

    case: str
    metric: str
    spread_log: float
    blocks: int | None
    minutes: float | None


def spreads_of_session(observations: Sequence[Observation]) -> dict[tuple[str, str], float]:
    """Returns the spread of a block's log ratio by case and metric, from any session: each case against each other one.

    Two cases of one block differ by a factor that is the same in every block; the spread around it is what equal
    sides would show. Each case gets the median of its pairs.
    """
    values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for o in observations:
        if o.valid:
            for metric, value in of_trial(o).items():
                if value > 0:
                    values[metric][o.case.key][o.block] = value
    found: dict[tuple[str, str], float] = {}
    for metric, of_metric in values.items():
        for case, mine in of_metric.items():
            spreads = []
            for other, theirs in of_metric.items():
                common = sorted(mine.keys() & theirs.keys())
                if other != case and len(common) >= 3:
                    ratio = paired_ratio([mine[b] for b in common], [theirs[b] for b in common])
                    spreads += [ratio.spread_log] if ratio.spread_log is not None else []
            if spreads:
                found[case, metric] = statistics.median(spreads)
    return found


def spreads_of_record(record: AaRecord) -> dict[tuple[str, str], float]:
    """Returns the spread of a block's log ratio by case and metric, from a kept A/A record."""
    return {(line.case, line.metric): line.spread_log for line in record.noise}


def block_minutes(observations: Sequence[Observation]) -> float | None:
    """Returns the minutes that one block took, from when its trials began; None with fewer than two blocks."""
    begins: dict[int, datetime] = {}
    for o in observations:
        at = datetime.fromisoformat(o.started_at)
        begins[o.block] = min(begins.get(o.block, at), at)
    ordered = sorted(begins.values())
    gaps = [(b - a).total_seconds() / 60 for a, b in pairwise(ordered)]
    # A session that was resumed has one gap that is none of its blocks'.
    return statistics.median(gaps) if gaps else None


def needs(
    spreads: dict[tuple[str, str], float],
    change: float,
    metrics: Sequence[str],
    *,
    alpha: float,
    tests: int,
    minutes: float | None,
) -> list[Need]:
    """Returns the blocks that every metric that decides needs, so that ``change`` is found 95 times of 100.

    ``tests`` is how many verdicts are corrected together: the plan assumes that the others find nothing, the worst
    case. The margin is half of the change.

    Raises:
        NothingToCompare: no spread is known for any of the metrics.
    """
    out = []
    for (case, metric), spread in spreads.items():
        if metric in metrics or family(metric) in metrics:
            blocks = blocks_needed(spread, change, alpha=alpha / max(1, tests), power=POWER, margin=change / 2)
            out.append(
                Need(case, metric, spread, blocks, None if blocks is None or minutes is None else blocks * minutes)
            )
    if not out:
        raise NothingToCompare(
            "no spread is known for what decides (three blocks of two cases are needed); run: coldbench aa SCENARIO"
        )
    return out
