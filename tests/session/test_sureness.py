"""A session that may stop between blocks stops when the answer is sure or time is over, and raises no false alarms."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from harness.session.sureness import Enough
from tests.report.observations import observation

if TYPE_CHECKING:
    from harness.model.observation import Observation

MOST = 12


def block(number: int, factor: float, rng: random.Random, noise: float = 0.05) -> list[Observation]:
    """One trial of two cases, the second so many times as long as the first."""
    first = observation("overlay2", "tuned", number)
    second = observation("erofs", "tuned", number)
    times = (10.0 * rng.lognormvariate(0, noise), 10.0 * factor * rng.lognormvariate(0, noise))
    return [o.model_copy(update={"time_to_ready_s": t}) for o, t in zip((first, second), times, strict=True)]


def blocks_run(factor: float, seed: int, until_s: float = 1e9) -> int:
    """How many blocks a session of the two cases runs."""
    rng = random.Random(seed)
    enough = Enough(MOST, until_s, clock_s=lambda: 0.0)
    seen: list[Observation] = []
    for number in range(MOST):
        if number and not enough.goes_on(number, tuple(seen)):
            return number
        seen += block(number, factor, rng)
    return MOST


def test_nothing_ready_ends_it_after_a_block() -> None:
    """A workload that cannot run fails in every block alike: one is enough to say so."""
    enough = Enough(MOST, 1e9, clock_s=lambda: 0.0)
    failed = [
        o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in block(0, 1.0, random.Random(1))
    ]
    assert not enough.goes_on(1, tuple(failed))


def test_a_clear_difference_ends_it_early() -> None:
    """A start three times sooner is sure after the fewest blocks a verdict takes, or soon after."""
    assert blocks_run(1 / 3, 1) <= 8


def test_no_difference_goes_on_to_the_end() -> None:
    """Of 100 sessions of a case against itself at most eleven stop early: 5 % with its binomial bound."""
    assert sum(blocks_run(1.0, seed) < MOST for seed in range(100)) <= 11


def test_time_that_is_over_ends_it() -> None:
    """However unsure the answer, no block begins after the end."""
    assert blocks_run(1.0, 3, until_s=0.0) == 1


def test_it_tells_after_each_block() -> None:
    """Whoever watches is told what is recorded, each time before the next block."""
    told: list[int] = []
    enough = Enough(MOST, 1e9, tell=lambda seen: told.append(len(seen)), clock_s=lambda: 0.0)
    seen = block(0, 1.0, random.Random(1))
    assert enough.goes_on(1, tuple(seen))
    assert told == [2]


def test_one_case_alone_makes_nothing_sure() -> None:
    """Where all other cases failed there is nothing to differ from: further blocks may still show them ready."""
    enough = Enough(6, 1e9, clock_s=lambda: 0.0)
    alone = [
        o if o.case.mode == "erofs" else o.model_copy(update={"status": "failed", "time_to_ready_s": None})
        for n in range(6)
        for o in block(n, 0.1, random.Random(n))
    ]
    assert enough.goes_on(6, tuple(alone))
