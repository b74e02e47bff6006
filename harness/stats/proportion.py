"""This module gives rates counted in trials Clopper and Pearson's exact interval (1934): no rate goes out as a bare
percentage.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, slots=True)
class Rate:
    """Holds ``hits`` of ``trials``, and the interval that covers the true rate at least as often as it says."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.hits / self.trials if self.trials else 0.0


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> Rate:
    """Returns the rate of ``hits`` in ``trials``; without a trial anything is possible."""
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} of {trials} is no rate")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.ppf(1 - tail, hits + 1, trials - hits))
    return Rate(hits, trials, low, high)
