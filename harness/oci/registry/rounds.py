"""This module counts how many requests of a start waited for one another: the round trips no
bandwidth makes shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT = 64
"""A client keeps the times of so many of its first requests: those before a mount are far fewer."""


def dependent_rounds(asked: Iterable[tuple[int, int]]) -> int:
    """Returns the longest chain of requests, given as (begun, ended), each of which began after the one before had
    ended.

    A request that only happened to be late counts as dependent, so the figure errs upwards.
    """
    rounds, free_from = 0, -1
    for begun, ended in sorted(asked, key=lambda times: times[1]):
        if begun >= free_from:
            rounds += 1
            free_from = ended
    return rounds
