"""What the design promises, counted on simulated sessions: coverage, false alarms and power inside binomial bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.stats.paired import independent_ratio, paired_ratio, verdict
from harness.stats.power import blocks_needed, detectable_log, power_of
from tests.stats import noise

ROUNDS = 1000

positive = st.floats(min_value=0.01, max_value=100.0, allow_nan=False)
pairs = st.lists(st.tuples(positive, positive), min_size=3, max_size=30)


@given(pairs, st.floats(min_value=0.001, max_value=1000.0))
@settings(max_examples=60, deadline=None)
def test_units_do_not_matter(values: list[tuple[float, float]], unit: float) -> None:
    """Seconds or milliseconds, ratio, interval and p-value are the same: scale invariance."""
    one, other = [a for a, _ in values], [b for _, b in values]
    plain, scaled = paired_ratio(one, other), paired_ratio([unit * a for a in one], [unit * b for b in other])
    assert scaled.ratio == pytest.approx(plain.ratio, rel=1e-9)
    assert scaled.low == pytest.approx(plain.low, rel=1e-6)
    assert scaled.high == pytest.approx(plain.high, rel=1e-6)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_swapped_sides_give_the_reciprocal(values: list[tuple[float, float]]) -> None:
    """Candidate and baseline swapped give 1/ratio, mirrored ends and the mirrored verdict: antisymmetry."""
    one, other = [a for a, _ in values], [b for _, b in values]
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert there.low is not None
    assert back.low is not None
    assert back.ratio == pytest.approx(1 / there.ratio, rel=1e-9)
    assert back.high == pytest.approx(1 / there.low, rel=1e-6)
    assert back.p_value == pytest.approx(there.p_value, rel=1e-6, abs=1e-12)
    mirrored = {"regression": "improvement", "improvement": "regression"}
    assert verdict(back) == mirrored.get(verdict(there), verdict(there))


def at_most(rate: float, rounds: int) -> int:
    """Hits that a true rate this high exceeds once in ten thousand tries."""
    return int(stats.binom.ppf(0.9999, rounds, rate))


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("blocks", [8, 12, 20])
def test_interval_covers_one(kind: str, blocks: int) -> None:
    """The 95 % interval of an A/A session misses 1 no more often than one time in twenty, whatever the noise."""
    rng = np.random.default_rng([1, blocks])
    missed = 0
    for _ in range(ROUNDS):
        result = paired_ratio(*noise.session(kind, rng, blocks))
        assert result.low is not None
        assert result.high is not None
        missed += not result.low <= 1 <= result.high
    assert missed <= at_most(0.05, ROUNDS)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_wrong_verdicts_of_a_session_stay_below_the_level(kind: str) -> None:
    """At a level of 1 % at most one A/A session of twelve blocks in a hundred says regression or improvement."""
    rng = np.random.default_rng(2)
    wrong = sum(
        verdict(paired_ratio(*noise.session(kind, rng, 12)), alpha=0.01) in {"regression", "improvement"}
        for _ in range(ROUNDS)
    )
    assert wrong <= at_most(0.01, ROUNDS)


def test_noise_wider_than_the_margin_is_inconclusive() -> None:
    """On a host whose trials scatter by 20 % six blocks say "inconclusive", not "regression" and not "equivalent"."""
    rng = np.random.default_rng(3)
    said = [
        verdict(
            paired_ratio(np.exp(rng.normal(0, 0.2, 6)).tolist(), np.exp(rng.normal(0, 0.2, 6)).tolist()), alpha=0.01
        )
        for _ in range(400)
    ]
    assert said.count("inconclusive") >= 390


def test_a_slowdown_of_fifteen_percent_is_caught() -> None:
    """Twenty blocks at this noise (8 % a trial) find 15 % at the 1 % level at least 90 times of 100, as planned."""
    rng = np.random.default_rng(4)
    results = [paired_ratio(*noise.session("steady", rng, 20, factor=1.15)) for _ in range(600)]
    caught = sum(verdict(r, alpha=0.01) == "regression" for r in results)
    spread = float(np.median([r.spread_log or 0.0 for r in results]))
    promised = power_of(spread, 20, 0.15, alpha=0.01, margin=0.05)
    assert abs(caught / 600 - promised) <= 0.05


@pytest.mark.parametrize("change", [0.05, 0.15])
def test_planned_blocks_reach_their_power(change: float) -> None:
    """The number of blocks that a plan names catches the change about as often as it says."""
    rng = np.random.default_rng(5)
    spread = float(np.median([paired_ratio(*noise.session("steady", rng, 30)).spread_log or 0.0 for _ in range(300)]))
    blocks = blocks_needed(spread, change, power=0.9, margin=change / 2)
    assert blocks is not None
    caught = sum(
        verdict(paired_ratio(*noise.session("steady", rng, blocks, factor=1 + change)), margin=change / 2)
        == "regression"
        for _ in range(400)
    )
    assert caught >= stats.binom.ppf(0.0001, 400, 0.85)


def test_blocks_needed_is_the_fewest() -> None:
    """One block fewer has less power than asked; a change at the margin has no number at all."""
    blocks = blocks_needed(0.1, 0.1, power=0.95, margin=0.05)
    assert blocks is not None
    assert power_of(0.1, blocks, 0.1, margin=0.05) >= 0.95 > power_of(0.1, blocks - 1, 0.1, margin=0.05)
    assert blocks_needed(0.1, 0.05, margin=0.05) is None
    assert blocks_needed(50.0, 0.01) is None


def test_detectable_change_is_found_with_its_power() -> None:
    """The minimum detectable effect at 80 % power has about that power by the noncentral distribution."""
    from harness.stats.trimmed import kept, standard_error

    se = standard_error(0.1, 20)
    change = np.expm1(detectable_log(se, kept(20) - 1))
    assert power_of(0.1, 20, float(change)) == pytest.approx(0.8, abs=0.02)


def test_unpaired_values_have_a_wider_interval_under_drift() -> None:
    """What a block has in common is taken out by pairing and stays in the interval of two separate sessions."""
    rng = np.random.default_rng(6)
    candidate, baseline = noise.session("drifting", rng, 20)
    paired, apart = paired_ratio(candidate, baseline), independent_ratio(candidate, baseline)
    assert paired.se_log is not None
    assert apart.se_log is not None
    assert apart.se_log > paired.se_log
    assert apart.ratio == pytest.approx(paired.ratio, rel=0.1)


def test_unpaired_interval_covers_one() -> None:
    """Two separate samples of unequal size and noise: the interval misses the truth one time in twenty at most."""
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(ROUNDS):
        result = independent_ratio(np.exp(rng.normal(0, 0.1, 10)).tolist(), np.exp(rng.normal(0, 0.03, 18)).tolist())
        assert result.low is not None
        assert result.high is not None
        missed += not result.low <= 1 <= result.high
    assert missed <= at_most(0.055, ROUNDS)
