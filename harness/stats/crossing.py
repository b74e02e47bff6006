"""This module finds where a curve of ratios crosses 1: the share, size or time at which one way stops being the quicker
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.stats.paired import PairedRatio


@dataclass(frozen=True, slots=True)
class Crossing:
    """Says where the ratio first rises above 1: infinite where it never does, 0 where it begins above.

    ``low`` and ``high`` are where the upper and the lower ends of the ratios' intervals cross; None where a ratio has
    no interval. They say how far the place may be off, point by point, and are no joint interval.
    """

    at: float
    low: float | None
    high: float | None


def crossing(places: Sequence[float], ratios: Sequence[PairedRatio]) -> Crossing:
    """Finds the crossing of ratios measured at rising places; between two of them the log ratio is taken as straight.

    Raises ValueError for no places, or places that do not rise.
    """
    if not places or len(places) != len(ratios) or any(b <= a for a, b in pairwise(places)):
        raise ValueError("expected rising places, and one ratio for each")
    lows = [r.low for r in ratios if r.low is not None]
    highs = [r.high for r in ratios if r.high is not None]
    known = len(lows) == len(highs) == len(ratios)
    return Crossing(
        _first(places, [r.ratio for r in ratios]),
        _first(places, highs) if known else None,
        _first(places, lows) if known else None,
    )


def _first(places: Sequence[float], ratios: Sequence[float]) -> float:
    logs = [math.log(ratio) for ratio in ratios]
    if logs[0] > 0:
        return 0.0
    for k in range(1, len(logs)):
        if logs[k] > 0:
            share = -logs[k - 1] / (logs[k] - logs[k - 1])
            return places[k - 1] + share * (places[k] - places[k - 1])
    return math.inf
