"""This module says what a design can find: the smallest detectable change, the power, and the blocks that a change
needs.

All of it follows from the spread of the blocks' log ratios, which a session or an A/A run has shown on this host.
"""

from __future__ import annotations

import math

from scipy import special, stats

from harness.stats.trimmed import kept, standard_error

#: No plan longer than this is proposed.
MAX_BLOCKS = 2000


def detectable_log(se: float, degrees: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest change of the log ratio that a two-sided test at ``alpha`` finds with ``power``."""
    return float(special.stdtrit(degrees, 1 - alpha / 2) + special.stdtrit(degrees, power)) * se


def power_of(spread: float, blocks: int, change: float, *, alpha: float = 0.05, margin: float = 0.0) -> float:
    """Returns the probability that ``blocks`` blocks call a true ratio of 1+``change`` a regression.

    ``spread`` is the winsorised standard deviation of the log ratios. The verdict asks for significance and for an
    estimate above the margin; the statistic follows the noncentral t distribution.
    """
    degrees = kept(blocks) - 1
    if blocks < 3 or degrees < 1:
        return 0.0
    truth = math.log1p(change)
    if spread <= 0:
        return float(change > margin)
    se = standard_error(spread, blocks)
    threshold = max(float(stats.t.ppf(1 - alpha / 2, degrees)), math.log1p(margin) / se)
    found = float(stats.nct.sf(threshold, degrees, truth / se))
    # Far in the tail the library's series gives up; the normal approximation is exact enough there.
    return found if math.isfinite(found) else float(stats.norm.sf(threshold - truth / se))


def blocks_needed(
    spread: float, change: float, *, alpha: float = 0.05, power: float = 0.95, margin: float = 0.0, least: int = 6
) -> int | None:
    """Returns the fewest blocks that find a change with this power; None when ``MAX_BLOCKS`` do not, or no number can.

    A change that is not above the margin is never called a regression more than every other time.
    """
    if change <= margin:
        return None
    if power_of(spread, MAX_BLOCKS, change, alpha=alpha, margin=margin) < power:
        return None
    low, high = least, MAX_BLOCKS
    while low < high:
        middle = (low + high) // 2
        if power_of(spread, middle, change, alpha=alpha, margin=margin) >= power:
            high = middle
        else:
            low = middle + 1
    # Trimming makes the power uneven in n: a step up may cut one more value at each end.
    while low > least and power_of(spread, low - 1, change, alpha=alpha, margin=margin) >= power:
        low -= 1
    return low
