"""This module sums up one case's values in one line: median, spread, count; tail values are shown, never gated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Summary:
    """Holds median, quartiles and extremes of n values; ``spread`` is the quartile distance over the median."""

    n: int
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float

    @property
    def spread(self) -> float:
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary | None:
    """Sums up the values; None when there are none (a case without a valid trial has no number)."""
    if not values:
        return None
    a = np.asarray(values, float)
    q1, median, q3 = (float(x) for x in np.percentile(a, [25, 50, 75]))
    return Summary(len(values), median, q1, q3, float(a.min()), float(a.max()))
