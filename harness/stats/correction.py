"""This module corrects by Holm's procedure: verdicts that are drawn together share one error rate.

A table with fifty ratios at 95 % each promises two or three false marks. Holm's step-down procedure keeps the
probability of *any* false one at the stated level, whatever the dependence between the ratios (Holm 1979).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

K = TypeVar("K", bound="Hashable")


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Returns Holm-Bonferroni adjusted p-values by name: at most alpha means significant at family-wise level alpha."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    adjusted: dict[K, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = running
    return adjusted


def holm_rejections(p_values: Mapping[K, float], alpha: float, level: Callable[[float], float]) -> frozenset[K]:
    """Returns names that stay significant when the looks of a sequential design are corrected for as well.

    ``level`` turns an overall error rate into the p-value this look allows for it. Step r of Holm's procedure gives its
    hypothesis alpha/(m-r), and that rate is what its looks spend (Ye, Li, Liu and Yao 2013).
    """
    rejected: set[K] = set()
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (name, p) in enumerate(ordered):
        if p > level(alpha / (len(ordered) - rank)):
            break
        rejected.add(name)
    return frozenset(rejected)
