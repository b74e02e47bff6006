"""This module computes the ratio of two cases with its confidence interval, and the verdict drawn from it.

Blocks pair the cases: d_i = ln(candidate_i / baseline_i), and the trimmed mean of d (``harness.stats.trimmed``) gives
the ratio and its interval. Pairing removes what a whole block had in common: drift, a slow host, a busy neighbour.
Values that were not measured side by side have no blocks in common; ``independent_ratio`` compares them by Yuen's
two-sample statistic with Welch's degrees of freedom, and cannot take out what changed on the host between the two.

Source: R. R. Wilcox, "Introduction to Robust Estimation and Hypothesis Testing", sections 4.3 and 5.3; Yuen 1974.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.stats.power import detectable_log
from harness.stats.trimmed import TRIM, half_width, kept, trimmed, two_sided_p

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Fewer complete blocks than this never give a verdict.
MIN_BLOCKS = 6

Verdict = Literal["regression", "equivalent", "improvement", "inconclusive"]


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """Holds candidate over baseline: below 1 the candidate is the smaller (faster) one.

    ``low`` and ``high`` bound the interval (95 % unless asked otherwise); they are None with fewer than three blocks,
    where no spread can be estimated: such a ratio must be shown as "no interval". ``p_value`` tests ratio = 1.
    ``detectable`` is the smallest ratio change (as a factor above 1) that this spread and number of blocks finds with
    80 % power. ``spread_log`` is the winsorised standard deviation of the blocks' log ratios, ``se_log`` the standard
    error of their mean, ``degrees`` its degrees of freedom.
    """

    ratio: float
    low: float | None
    high: float | None
    blocks: int
    p_value: float | None
    detectable: float | None
    spread_log: float | None = None
    se_log: float | None = None
    degrees: float = 0.0

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """Returns the interval that misses the truth with probability ``alpha``; None where there is no spread."""
        if self.se_log is None:
            return None
        half = half_width(self.se_log, self.degrees, alpha)
        return self.ratio * math.exp(-half), self.ratio * math.exp(half)


def from_log(
    center: float, se: float | None, degrees: float, n: int, *, spread: float | None = None, alpha: float = 0.05
) -> PairedRatio:
    """Makes a ratio from a mean log ratio with its standard error."""
    if se is None:
        return PairedRatio(math.exp(center), None, None, n, None, None)
    half = half_width(se, degrees, alpha)
    p = two_sided_p(center, se, degrees)
    detectable = math.exp(detectable_log(se, degrees, alpha=alpha, power=0.8))
    low, high = math.exp(center - half), math.exp(center + half)
    return PairedRatio(math.exp(center), low, high, n, p, detectable, spread, se, degrees)


def paired_ratio(
    candidate: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95, trim: float = TRIM
) -> PairedRatio:
    """Returns the ratio of paired positive values, one pair per block; ValueError on unequal lengths or values <= 0."""
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} candidate values against {len(baseline)} baseline values: pairs are needed")
    _check(candidate, baseline)
    mean = trimmed(_log_ratios(candidate, baseline), trim)
    degrees = kept(mean.n, trim) - 1
    return from_log(mean.center, mean.se, degrees, mean.n, spread=mean.spread, alpha=1 - confidence)


def independent_ratio(
    candidate: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95
) -> PairedRatio:
    """Returns the ratio of positive values that are not paired; ``blocks`` is the smaller number of values."""
    _check(candidate, baseline)
    one, other = trimmed(np.log(candidate).tolist()), trimmed(np.log(baseline).tolist())
    center, n = one.center - other.center, min(one.n, other.n)
    if one.se is None or other.se is None or one.spread is None or other.spread is None:
        return from_log(center, None, 0.0, n)
    mine, theirs = one.se**2, other.se**2
    total = mine + theirs
    shares = mine**2 / one.degrees + theirs**2 / other.degrees
    degrees = total**2 / shares if shares > 0 else float(one.degrees + other.degrees)
    spread = math.hypot(one.spread, other.spread)
    return from_log(center, math.sqrt(total), degrees, n, spread=spread, alpha=1 - confidence)


def _check(candidate: Sequence[float], baseline: Sequence[float]) -> None:
    if not candidate or not baseline:
        raise ValueError("no complete block")
    if min(*candidate, *baseline) <= 0:
        raise ValueError("values must be positive")


def _log_ratios(candidate: Sequence[float], baseline: Sequence[float]) -> list[float]:
    ratios: list[float] = np.log(np.asarray(candidate, float) / np.asarray(baseline, float)).tolist()
    return ratios


def verdict(
    result: PairedRatio,
    *,
    margin: float = 0.05,
    min_blocks: int = MIN_BLOCKS,
    adjusted_p: float | None = None,
    alpha: float = 0.05,
    equivalence_alpha: float = 0.05,
) -> Verdict:
    """Says what a ratio of times means, with a margin below which a change does not matter.

    A regression is a ratio above 1+margin whose p-value, corrected for all that was tested with it (``adjusted_p``; its
    own where it was tested alone), is at most ``alpha``. Improvement is its mirror. Equivalent means that the whole
    interval at ``equivalence_alpha`` lies inside the margin. All else is inconclusive, and so is everything below
    ``min_blocks`` blocks: noise wider than the margin does not raise an alarm.
    """
    p = result.p_value if adjusted_p is None else adjusted_p
    inside = result.interval(equivalence_alpha)
    if result.blocks < min_blocks or p is None or inside is None:
        return "inconclusive"
    if p <= alpha and result.ratio > 1 + margin:
        return "regression"
    if p <= alpha and result.ratio < 1 / (1 + margin):
        return "improvement"
    if inside[0] > 1 / (1 + margin) and inside[1] < 1 + margin:
        return "equivalent"
    return "inconclusive"
