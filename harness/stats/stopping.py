"""This module holds the one rule of when a session has enough blocks; ``gate`` and ``try`` both stop by it.

Whoever looks after some blocks and stops at the first difference finds one too often. The looks share the error rate by
alpha spending (``harness.stats.sequential``), and so do the hypotheses of one look by Holm's procedure, each step of
which spends its own rate over the looks (``harness.stats.correction``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from harness.stats.correction import holm_rejections
from harness.stats.sequential import looks, nominal_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Stopping:
    """Says at which numbers of blocks a session looks at its answer, and what p-value each look allows.

    ``at`` is increasing and ends at the most blocks there may be.
    """

    at: tuple[int, ...]

    @classmethod
    def extended(cls, blocks: int, most: int) -> Stopping:
        """Looks first at ``blocks``, then at half as many again each time, up to ``most``."""
        return cls(looks(blocks, most))

    @classmethod
    def each_block(cls, first: int, most: int) -> Stopping:
        """Looks after every block from the number ``first`` on; where there are fewer, only at the last one."""
        return cls(tuple(range(first, most + 1)) or (most,))

    @property
    def most(self) -> int:
        """Returns the last look."""
        return self.at[-1]

    def level(self, blocks: int, rate: float) -> float:
        """Returns the p-value that the look at ``blocks`` allows a hypothesis whose looks spend ``rate`` together.

        Between two looks the earlier one counts; before the first, what has been spent until then.
        """
        if len(self.at) == 1:
            return rate
        taken = [look for look in self.at if look <= blocks] or [blocks]
        return nominal_levels(tuple(look / self.most for look in taken), rate)[-1]

    def proven(self, p_values: Mapping[K, float], blocks: int, alpha: float) -> frozenset[K]:
        """Returns the names that are significant at this look, ``alpha`` being shared by all names and all looks."""
        return holm_rejections(p_values, alpha, lambda rate: self.level(blocks, rate))

    def goes_on(self, blocks: int, decided: Callable[[], bool]) -> bool:
        """Says whether another block is needed when ``blocks`` are there; ``decided`` is asked at looks only."""
        if blocks in self.at:
            return not decided()
        return blocks < self.most
