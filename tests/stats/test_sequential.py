"""Going on by blocks keeps the error rate: levels against published bounds, and counted on simulated sessions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.stats.correction import holm, holm_rejections
from harness.stats.paired import paired_ratio
from harness.stats.sequential import looks, nominal_levels, spent
from tests.stats import noise


def test_levels_are_the_published_ones() -> None:
    """Five equal looks at 5 %: z bounds 4.88, 3.36, 2.68, 2.29, 2.03 (Lan-DeMets, O'Brien-Fleming type)."""
    levels = nominal_levels((0.2, 0.4, 0.6, 0.8, 1.0), 0.05)
    bounds = [float(stats.norm.isf(level / 2)) for level in levels]
    assert bounds == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=0.01)


def test_one_look_has_the_whole_level() -> None:
    """A design with a single look is the fixed design."""
    assert nominal_levels((1.0,), 0.01) == pytest.approx((0.01,), rel=1e-3)
    assert spent(0.01, 1.0) == pytest.approx(0.01)
    assert spent(0.01, 0.0) == 0.0


@pytest.mark.parametrize("kind", noise.KINDS)
def test_false_alarms_over_all_looks_stay_below_the_level(kind: str) -> None:
    """Sessions of 8, 12, 16 and 20 blocks, stopped at the first significant look: at most 5 % of A/A sessions stop."""
    at = looks(8, 20, 4)
    assert at == (8, 12, 16, 20)
    levels = nominal_levels(tuple(n / 20 for n in at), 0.05)
    rng = np.random.default_rng(11)
    rounds = 800
    alarms = naive = 0
    for _ in range(rounds):
        candidate, baseline = noise.session(kind, rng, 20)
        p = [paired_ratio(candidate[:n], baseline[:n]).p_value or 0.0 for n in at]
        alarms += any(value <= level for value, level in zip(p, levels, strict=True))
        naive += any(value <= 0.05 for value in p)
    assert alarms <= stats.binom.ppf(0.9999, rounds, 0.05)
    assert naive > alarms


def test_looks_end_at_the_most_blocks() -> None:
    """Half as many blocks again at each look, the last one at the limit; no extension, one look."""
    assert looks(10, 22) == (10, 15, 20, 22)
    assert looks(10, 10) == (10,)


def test_looks_that_go_back_are_refused() -> None:
    """A look needs more blocks than the one before."""
    with pytest.raises(ValueError, match="increasing"):
        nominal_levels((0.5, 0.5), 0.05)


def test_holm_over_looks_is_holm_at_one_look() -> None:
    """With a single look the sequential procedure rejects exactly what adjusted p-values reject."""
    rng = np.random.default_rng(12)
    for _ in range(200):
        p = dict(enumerate((rng.random(6) ** 3).tolist()))
        adjusted = {name for name, value in holm(p).items() if value <= 0.05}
        assert holm_rejections(p, 0.05, lambda rate: rate) == adjusted
