"""Paired ratio of two cases with its confidence interval, and the verdict drawn from it.

Blocks pair the cases: d_i = ln(candidate_i / baseline_i). The 20 % trimmed mean of d with Yuen's standard error (from
the winsorised variance) and Student's t at h-1 degrees of freedom gives the ratio and its interval. Trimming keeps one
stolen trial from deciding; pairing removes what a whole block had in common.

Source: R. R. Wilcox, "Introduction to Robust Estimation and Hypothesis Testing", section 4.3 (trimmed mean,
Tukey-McLaughlin interval); Yuen 1974.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TRIM = 0.2
#: Fewer complete blocks than this never give a verdict.
MIN_BLOCKS = 6

Verdict = Literal["regression", "equivalent", "improvement", "inconclusive"]


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """Candidate over baseline: below 1 the candidate is the smaller (faster) one.

    ``low`` and ``high`` bound the 95 % interval; they are None with fewer than three blocks, where no spread can be
    estimated: such a ratio must be shown as "no interval". ``p_value`` tests ratio = 1. ``detectable`` is the smallest
    ratio change (as a factor above 1) that this spread and number of blocks finds with 80 % power.
    """

    ratio: float
    low: float | None
    high: float | None
    blocks: int
    p_value: float | None
    detectable: float | None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def paired_ratio(
    candidate: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95, trim: float = TRIM
) -> PairedRatio:
    """Ratio of paired positive values, one pair per block; raises ValueError on unequal lengths or values <= 0."""
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} candidate values against {len(baseline)} baseline values: pairs are needed")
    if not candidate:
        raise ValueError("no complete block")
    if min(*candidate, *baseline) <= 0:
        raise ValueError("values must be positive")
    d = np.sort(np.log(np.asarray(candidate, float) / np.asarray(baseline, float)))
    n = len(d)
    cut = int(trim * n)
    h = n - 2 * cut
    center = float(d[cut : n - cut].mean())
    if n < 3:
        return PairedRatio(math.exp(center), None, None, n, None, None)
    winsorised = d.copy()
    winsorised[:cut] = d[cut]
    winsorised[n - cut :] = d[n - cut - 1]
    se = math.sqrt((n - 1) * float(winsorised.var(ddof=1)) / (h * (h - 1)))
    t = float(stats.t.ppf(0.5 + confidence / 2, h - 1))
    p = 1.0 if se == 0 and center == 0 else 0.0 if se == 0 else float(2 * stats.t.sf(abs(center) / se, h - 1))
    power_t = float(stats.t.ppf(0.8, h - 1))
    return PairedRatio(
        math.exp(center), math.exp(center - t * se), math.exp(center + t * se), n, p, math.exp((t + power_t) * se)
    )


def verdict(result: PairedRatio, *, margin: float = 0.05, min_blocks: int = MIN_BLOCKS) -> Verdict:
    """What a paired ratio of times says: a regression when the interval lies above 1 and the estimate above 1+margin.

    Improvement is its mirror; equivalent when the whole interval is inside the margin; else inconclusive. With fewer
    than ``min_blocks`` blocks the verdict is always inconclusive.
    """
    if result.blocks < min_blocks or result.low is None or result.high is None:
        return "inconclusive"
    if result.low > 1 and result.ratio > 1 + margin:
        return "regression"
    if result.high < 1 and result.ratio < 1 / (1 + margin):
        return "improvement"
    if result.low > 1 / (1 + margin) and result.high < 1 + margin:
        return "equivalent"
    return "inconclusive"


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-Bonferroni adjusted p-values of the primary metrics (Holm 1979), by name."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = running
    return adjusted
