"""This module computes the trimmed mean with Yuen's standard error: the estimate under every ratio of this program.

A fifth of the values is cut at each end before the mean is taken, so that one stolen trial does not decide; the
standard error comes from the winsorised variance, where the cut values are set to the nearest kept one.

Source: R. R. Wilcox, "Introduction to Robust Estimation and Hypothesis Testing", sections 3.3 and 4.3; Yuen 1974.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Part of the values cut at each end.
TRIM = 0.2


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Holds a trimmed mean of ``n`` values: ``spread`` is the winsorised standard deviation, ``se`` the standard error.

    Both are None below three values, where no spread can be estimated.
    """

    center: float
    spread: float | None
    se: float | None
    n: int

    @property
    def degrees(self) -> int:
        """Returns the degrees of freedom: values that were kept, less one."""
        return kept(self.n) - 1


def kept(n: int, trim: float = TRIM) -> int:
    """Counts how many of ``n`` values are left after trimming."""
    return n - 2 * int(trim * n)


def standard_error(spread: float, n: int, trim: float = TRIM) -> float:
    """Returns Yuen's standard error of the trimmed mean of ``n`` values with this winsorised standard deviation."""
    h = kept(n, trim)
    return spread * math.sqrt((n - 1) / (h * (h - 1)))


def trimmed(values: Sequence[float], trim: float = TRIM) -> Trimmed:
    """Returns the trimmed mean of at least one value."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    cut = int(trim * n)
    center = float(ordered[cut : n - cut].mean())
    if n < 3:
        return Trimmed(center, None, None, n)
    ordered[:cut] = ordered[cut]
    ordered[n - cut :] = ordered[n - cut - 1]
    spread = float(ordered.std(ddof=1))
    return Trimmed(center, spread, standard_error(spread, n, trim), n)


def two_sided_p(center: float, se: float, degrees: float) -> float:
    """Returns the p-value of "the mean is zero" by Student's t."""
    if se == 0:
        return 1.0 if center == 0 else 0.0
    return 2 * float(special.stdtr(degrees, -abs(center) / se))


def half_width(se: float, degrees: float, alpha: float) -> float:
    """Returns half the width of the interval that misses the truth with probability ``alpha``."""
    return float(special.stdtrit(degrees, 1 - alpha / 2)) * se
