"""Requests that waited for one another."""

from __future__ import annotations

import pytest

from harness.oci.registry.rounds import dependent_rounds


@pytest.mark.parametrize(
    ("asked", "rounds"),
    [
        ([], 0),
        ([(0, 10)], 1),
        ([(0, 10), (10, 20), (20, 30), (31, 40), (45, 50)], 5),
        ([(0, 10), (0, 12), (1, 11)], 1),
        ([(0, 10), (10, 20), (10, 21), (11, 25), (25, 30)], 3),
        ([(0, 10), (12, 20), (5, 100), (20, 30)], 3),
    ],
    ids=["none", "one", "one after the other", "at once", "three rounds of several", "one that takes long"],
)
def test_the_longest_chain_counts(asked: list[tuple[int, int]], rounds: int) -> None:
    """What was under way at the same time is one round, whatever the order in which it is told."""
    assert dependent_rounds(asked) == rounds
    assert dependent_rounds(reversed(asked)) == rounds
