"""When a session has enough blocks: where it looks, what each look allows, and how often equal sides seem unequal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.stats.paired import paired_ratio
from harness.stats.sequential import nominal_levels
from harness.stats.stopping import Stopping
from tests.stats import noise


def test_it_asks_at_looks_only() -> None:
    """Between looks a session goes on without being judged; at a look it ends where all is decided."""
    rule = Stopping.extended(10, 22)
    asked: list[int] = []

    def decided(at: int) -> bool:
        asked.append(at)
        return at == 15

    assert [n for n in range(1, 22) if not rule.goes_on(n, lambda n=n: decided(n))] == [15]  # type: ignore[misc]
    assert asked == [10, 15, 20]


def test_looks_of_both_kinds() -> None:
    """Every block from the first that may decide; with fewer blocks than that, the last one alone."""
    assert Stopping.each_block(6, 9).at == (6, 7, 8, 9)
    assert Stopping.each_block(6, 4).at == (4,)
    assert Stopping.extended(8, 8).at == (8,)


def test_levels_are_those_of_the_looks_taken() -> None:
    """A single look has the whole rate; else alpha spending, of the last look that was reached."""
    assert Stopping.extended(8, 8).level(3, 0.01) == 0.01
    rule = Stopping.extended(8, 16)
    assert rule.at == (8, 12, 16)
    levels = nominal_levels((0.5, 0.75, 1.0), 0.05)
    assert [rule.level(n, 0.05) for n in (8, 11, 12, 16)] == pytest.approx([levels[0], levels[0], *levels[1:]])
    assert rule.level(4, 0.05) == pytest.approx(nominal_levels((0.25,), 0.05)[0])


def test_hypotheses_share_the_rate_as_well() -> None:
    """Of four p-values just below the level of one, none is proven; far below it, all are."""
    rule = Stopping.each_block(6, 12)
    level = rule.level(9, 0.05)
    assert rule.proven(dict.fromkeys("abcd", 0.9 * level), 9, 0.05) == set()
    assert rule.proven({"a": 0.9 * level}, 9, 0.05) == {"a"}
    assert rule.proven(dict.fromkeys("abcd", level / 1e6), 9, 0.05) == set("abcd")


@pytest.mark.parametrize("rule", [Stopping.extended(8, 20), Stopping.each_block(6, 12)], ids=["gate", "try"])
def test_equal_sides_are_rarely_called_unequal(rule: Stopping) -> None:
    """Sessions of three equal pairs of cases: any of them is called different in at most 5 % of sessions."""
    rng = np.random.default_rng(21)
    rounds = 400
    alarms = 0
    for _ in range(rounds):
        pairs = [noise.session("steady", rng, rule.most) for _ in range(3)]
        alarms += any(
            rule.proven({i: paired_ratio(a[:n], b[:n]).p_value or 1.0 for i, (a, b) in enumerate(pairs)}, n, 0.05)
            for n in rule.at
        )
    assert alarms <= stats.binom.ppf(0.9999, rounds, 0.05)
