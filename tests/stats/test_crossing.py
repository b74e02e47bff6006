"""Where a curve of ratios crosses 1."""

from __future__ import annotations

import math

import pytest

from harness.stats.crossing import crossing
from harness.stats.paired import PairedRatio


def ratio(value: float, half: float | None = None) -> PairedRatio:
    low, high = (None, None) if half is None else (value / half, value * half)
    return PairedRatio(value, low, high, 6, None, None)


def test_between_two_places_the_log_is_straight() -> None:
    """0.5 at 10 and 2 at 30: half way."""
    found = crossing([1, 10, 30], [ratio(0.2), ratio(0.5), ratio(2.0)])
    assert found.at == pytest.approx(20.0)
    assert (found.low, found.high) == (None, None)


def test_ends() -> None:
    """Never above 1 is infinite, above from the beginning is 0."""
    assert crossing([1, 100], [ratio(0.2), ratio(0.9)]).at == math.inf
    assert crossing([1, 100], [ratio(1.2), ratio(3.0)]).at == 0.0


def test_intervals_say_how_far_it_may_be_off() -> None:
    """The upper ends cross sooner, the lower ends later, perhaps never."""
    found = crossing([0, 100], [ratio(0.5, 1.4), ratio(2.0, 1.4)])
    assert found.low is not None
    assert found.high is not None
    assert found.at == pytest.approx(50)
    assert 0 < found.low < found.at < found.high < 100
    wide = crossing([0, 100], [ratio(0.5, 3.0), ratio(2.0, 3.0)])
    assert (wide.low, wide.high) == (0.0, math.inf)


def test_places_must_rise() -> None:
    """A curve that goes back is no curve."""
    with pytest.raises(ValueError, match="rising places"):
        crossing([2, 1], [ratio(1.0), ratio(1.0)])
    with pytest.raises(ValueError, match="rising places"):
        crossing([], [])
