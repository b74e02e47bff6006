"""One ratio from several hosts: what the interval speaks of, and that it covers the truth where hosts differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.stats.hosts import across_hosts
from harness.stats.paired import PairedRatio, paired_ratio
from harness.stats.proportion import clopper_pearson


def host(rng: np.random.Generator, truth: float, blocks: int = 10) -> PairedRatio:
    return paired_ratio(np.exp(truth + rng.normal(0, 0.05, blocks)).tolist(), [1.0] * blocks)


def test_interval_covers_the_mean_of_such_hosts() -> None:
    """Five hosts that differ by 8 %: the 95 % interval misses the mean over hosts one time in twenty at most."""
    rng = np.random.default_rng(21)
    rounds, missed = 800, 0
    for _ in range(rounds):
        hosts = {str(j): host(rng, 0.1 + rng.normal(0, 0.08)) for j in range(5)}
        result = across_hosts(hosts)
        assert result.model == "random effects over hosts"
        assert result.low is not None
        assert result.high is not None
        missed += not result.low <= math.exp(0.1) <= result.high
    assert missed <= stats.binom.ppf(0.9999, rounds, 0.055)


def test_blocks_of_one_host_do_not_stand_for_hosts() -> None:
    """Where hosts disagree the interval from hosts is far wider than the one that takes all blocks as equals."""
    rng = np.random.default_rng(22)
    hosts = {name: host(rng, truth) for name, truth in (("a", 0.0), ("b", 0.3), ("c", 0.1))}
    result = across_hosts(hosts)
    pooled = across_hosts({"a": hosts["a"], "b": hosts["b"]})
    assert result.inconsistency > 0.8
    assert result.heterogeneity_p is not None
    assert result.heterogeneity_p < 0.01
    assert result.low is not None
    assert result.high is not None
    assert pooled.low is not None
    assert pooled.high is not None
    assert math.log(result.high / result.low) > 3 * math.log(pooled.high / pooled.low)


def test_two_hosts_fall_back_and_say_so() -> None:
    """One or two hosts give an interval from their blocks, which speaks of these hosts only."""
    rng = np.random.default_rng(23)
    one = host(rng, 0.1)
    result = across_hosts({"a": one})
    assert result.model == "these hosts only"
    assert result.ratio == pytest.approx(one.ratio)
    assert result.low == pytest.approx(one.low)
    assert across_hosts({"a": one, "b": host(rng, 0.1)}).model == "these hosts only"


def test_hosts_without_spread_have_no_interval() -> None:
    """Two blocks on each host give a ratio and no interval."""
    short = paired_ratio([1.1, 1.2], [1.0, 1.0])
    result = across_hosts({"a": short, "b": short})
    assert result.low is None
    assert result.ratio == pytest.approx(short.ratio)


def test_exact_interval_of_a_rate() -> None:
    """Clopper and Pearson's interval by its definition: each end leaves 2.5 % beyond what was seen."""
    rate = clopper_pearson(2, 200)
    assert rate.rate == 0.01
    assert stats.binom.sf(1, 200, rate.low) == pytest.approx(0.025)
    assert stats.binom.cdf(2, 200, rate.high) == pytest.approx(0.025)
    assert clopper_pearson(0, 200).low == 0.0
    assert clopper_pearson(0, 0).high == 1.0
    with pytest.raises(ValueError, match="no rate"):
        clopper_pearson(3, 2)
