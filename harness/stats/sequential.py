"""This module lets an inconclusive comparison go on without more false alarms, by alpha spending in groups of blocks.

Whoever looks again after every few blocks and stops at the first significant result raises far more false alarms than
the level says. Lan and DeMets (1983) spend the error rate over the looks instead. This module uses their spending
function of the O'Brien-Fleming type for each of the two sides: alpha(t) = 4 - 4 Phi(z / sqrt t) at the fraction t of
the most blocks there may be, z being the normal quantile of 1 - alpha/4. It spends little early and leaves nearly the
whole rate for the last look. Bounds follow by integrating the density of the statistic from look to look (Armitage,
McPherson and Rowe 1969); they are applied as p-values, so that Student's t takes the place of the normal (Jennison
and Turnbull 2000, section 3.8).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

#: Points of the grid on which a density is kept; doubling them changes no level by more than 1e-7.
POINTS = 801


def spent(alpha: float, fraction: float) -> float:
    """Returns the error rate spent when ``fraction`` (0 to 1) of the blocks is there."""
    if fraction <= 0:
        return 0.0
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(min(fraction, 1.0))))


@lru_cache(maxsize=4096)
def nominal_levels(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Returns the p-value each look allows: a two-sided result at or below it is significant at ``alpha`` over all
    looks.

    ``fractions`` are the looks, increasing, each the part of the most blocks there may be; looks not yet taken do not
    change the ones before.
    """
    if any(b <= a for a, b in zip((0.0, *fractions), fractions, strict=False)) or fractions[-1] > 1:
        raise ValueError("looks must be increasing fractions of at most 1")
    levels: list[float] = []
    grid = np.zeros(1)
    density = np.ones(1)
    weights = np.ones(1)
    before = spent_before = 0.0
    for fraction in fractions:
        step = math.sqrt(fraction - before)
        share = spent(alpha, fraction) - spent_before
        root = math.sqrt(fraction)
        mass = density * weights

        def beyond(
            bound: float, grid: np.ndarray = grid, mass: np.ndarray = mass, step: float = step, root: float = root
        ) -> float:
            tails = stats.norm.sf((bound * root - grid) / step) + stats.norm.cdf((-bound * root - grid) / step)
            return float((mass * tails).sum())

        # A look that comes right after another one has next to nothing to spend.
        bound = 38.0 if share < 1e-300 or beyond(38.0) > share else _solve(beyond, share)
        levels.append(float(2 * stats.norm.sf(bound)))
        reach = min(bound, 12.0) * root
        after = np.linspace(-reach, reach, POINTS)
        kernel = stats.norm.pdf((after[:, None] - grid[None, :]) / step) / step
        density = kernel @ mass
        weights = np.full(POINTS, after[1] - after[0])
        weights[[0, -1]] /= 2
        grid, before, spent_before = after, fraction, spent(alpha, fraction)
    return tuple(levels)


def _solve(beyond: object, share: float) -> float:
    assert callable(beyond)
    return float(optimize.brentq(lambda bound: beyond(bound) - share, 0.0, 38.0, xtol=1e-10))


def looks(blocks: int, most: int, step: int | None = None) -> tuple[int, ...]:
    """Returns numbers of blocks at which a gate looks: first ``blocks``, then every ``step`` (half of them) up to
    ``most``.
    """
    step = step or max(2, blocks // 2)
    return tuple(dict.fromkeys([*range(blocks, most, step), most])) if most > blocks else (blocks,)
