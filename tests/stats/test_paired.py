"""The paired ratio, its interval and verdicts, against values worked out by hand or by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.stats.breakeven import advantage_curve, break_even
from harness.stats.correction import holm
from harness.stats.paired import paired_ratio, verdict
from harness.stats.summary import summarise


def test_ratio_of_constant_factor_is_exact() -> None:
    """Values that differ by one factor in every block give that factor and an interval of zero width."""
    base = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    result = paired_ratio([2 * x for x in base], base)
    assert result.ratio == pytest.approx(2)
    assert result.low == pytest.approx(2)
    assert result.high == pytest.approx(2)
    assert verdict(result) == "regression"


def test_interval_matches_yuen_by_hand() -> None:
    """Ten blocks: trimmed mean of the middle six, Yuen's error from the winsorised variance, t at five degrees."""
    d = np.array([-0.5, -0.1, 0.0, 0.02, 0.04, 0.05, 0.07, 0.1, 0.3, 2.0])
    result = paired_ratio(list(np.exp(d)), [1.0] * 10)
    middle = d[2:8]
    wins = np.array([0.0] * 3 + [0.02, 0.04, 0.05, 0.07] + [0.1] * 3)
    se = math.sqrt(9 * wins.var(ddof=1) / (6 * 5))
    t = stats.t.ppf(0.975, 5)
    assert result.ratio == pytest.approx(math.exp(middle.mean()))
    assert result.low == pytest.approx(math.exp(middle.mean() - t * se))
    assert result.high == pytest.approx(math.exp(middle.mean() + t * se))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """On 2 000 simulated comparisons of twelve noisy blocks the 95 % interval covers the true ratio 93-97.5 %."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(2000):
        noise = rng.normal(0, 0.1, 12)
        result = paired_ratio(list(np.exp(0.2 + noise)), [1.0] * 12)
        assert result.low is not None
        assert result.high is not None
        hits += result.low <= math.exp(0.2) <= result.high
    assert 0.93 <= hits / 2000 <= 0.975


def test_two_blocks_have_no_interval_and_no_verdict() -> None:
    """A ratio of two blocks is shown without an interval and decides nothing."""
    result = paired_ratio([2.0, 2.0], [1.0, 1.0])
    assert not result.has_interval
    assert verdict(result) == "inconclusive"


def test_five_blocks_are_always_inconclusive() -> None:
    """Below six blocks even a clear difference is inconclusive."""
    assert verdict(paired_ratio([2.0] * 5, [1.0] * 5)) == "inconclusive"


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.2, "regression"), (0.8, "improvement"), (1.0, "equivalent"), (1.04, "equivalent")]
)
def test_verdicts(factor: float, expected: str) -> None:
    """Small noise around a factor gives the verdict of that factor under the 5 % margin."""
    noise = [0.999, 1.001, 1.0, 1.002, 0.998, 1.0, 1.0, 1.0]
    assert verdict(paired_ratio([factor * n for n in noise], [1.0] * 8)) == expected


def test_bad_pairs_are_refused() -> None:
    """Unequal lengths, nothing at all and non-positive values raise ValueError."""
    for candidate, baseline in (([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0])):
        with pytest.raises(ValueError, match=r"pairs|block|positive"):
            paired_ratio(candidate, baseline)


def test_holm_is_monotone_and_bounded() -> None:
    """Adjusted values keep the order, never exceed one, and the smallest is multiplied by the count."""
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert adjusted["a"] == pytest.approx(0.04)
    assert adjusted["c"] == pytest.approx(0.09)
    assert adjusted["b"] == pytest.approx(0.09)
    assert adjusted["d"] == pytest.approx(0.9)


def test_break_even_is_where_the_curve_crosses_zero() -> None:
    """At the break-even time the advantage is zero; without overhead it is never reached; without saving at once."""
    point = break_even(60, 1.5, 1.2, 2.0)
    assert advantage_curve(60, 1.5, [point.seconds]) == (0.0,)
    assert point.low == pytest.approx(300)
    assert point.high == 60
    assert break_even(60, 0.99, None, None).seconds == math.inf
    assert break_even(-1, 1.5, None, None).seconds == 0


def test_summary_of_nothing_is_nothing() -> None:
    """A case without valid trials has no number."""
    assert summarise([]) is None
    summary = summarise([1.0, 2.0, 3.0])
    assert summary is not None
    assert summary.median == 2
