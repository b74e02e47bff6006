"""This module finds the break-even: the running time after which lazy pulling has cost more than it saved.

A start that is S seconds sooner buys time; a run-time ratio r > 1 on the share s of the running time that the file
system workload makes up spends it: after T seconds of work (measured on the full-pull mode's clock) the lazy mode has
lost (r - 1) * s * T. The two meet at T = S / ((r - 1) * s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Holds a break-even: ``seconds`` is infinite when the lazy mode never loses what it saved, 0 when it saved
    nothing.

    ``low`` is the break-even at the lower end of the run-time ratio's interval (the late one, infinite where the
    interval reaches 1), ``high`` at its upper end (the early one).
    """

    seconds: float
    low: float
    high: float
    saving_s: float
    ratio: float


def break_even(
    saving_s: float, ratio: float, low: float | None, high: float | None, *, share: float = 1.0
) -> BreakEven:
    """Returns the break-even of a workload that spends ``share`` (0 < share <= 1) of its time in what ``ratio``
    measured.
    """
    if not 0 < share <= 1:
        raise ValueError("share must be in (0, 1]")

    def meet(r: float) -> float:
        if saving_s <= 0:
            return 0.0
        return math.inf if r <= 1 else saving_s / ((r - 1) * share)

    return BreakEven(
        meet(ratio), meet(ratio if low is None else low), meet(ratio if high is None else high), saving_s, ratio
    )


def advantage_curve(
    saving_s: float, ratio: float, times_s: Sequence[float], *, share: float = 1.0
) -> tuple[float, ...]:
    """Returns the seconds the lazy mode is ahead (positive) or behind after each running time."""
    return tuple(saving_s - (ratio - 1) * share * t for t in times_s)
