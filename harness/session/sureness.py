"""This module says when a session has seen enough: it looks at the answer between blocks, and false alarms grow no
likelier.

It looks after every block by the one rule of ``harness.stats.stopping``, so a session that stops early is as
trustworthy as one that does not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.stats.paired import MIN_BLOCKS, paired_ratio
from harness.stats.stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model.observation import Observation

ALPHA = 0.05


@dataclass
class Enough:
    """Is asked between blocks, and goes on until every case differs provably from the full pull, or time is over.

    ``most`` blocks are planned and ``until_s`` is the end by ``clock_s``; ``tell`` is called before each block with
    what is recorded so far.
    """

    most: int
    until_s: float
    tell: Callable[[Sequence[Observation]], None] = lambda _seen: None
    clock_s: Callable[[], float] = time.monotonic
    stopping: Stopping = field(init=False)

    def __post_init__(self) -> None:
        self.stopping = Stopping.each_block(MIN_BLOCKS, self.most)

    def goes_on(self, block: int, seen: tuple[Observation, ...]) -> bool:
        """Says whether the block is to run; ``block`` counts from 0, so it is how many are done."""
        self.tell(seen)
        if self.clock_s() >= self.until_s or not any(o.valid for o in seen):
            # Where nothing was ready in a whole block, further ones would say the same.
            return False
        return self.stopping.goes_on(block, lambda: self._all_differ(block, seen))

    def _all_differ(self, block: int, seen: Sequence[Observation]) -> bool:
        """Says whether each case's time to ready differs from the slowest one's, corrected over cases and looks."""
        times: dict[str, dict[int, float]] = {}
        for o in seen:
            if o.valid and o.time_to_ready_s:
                times.setdefault(o.case.key, {})[o.block] = o.time_to_ready_s
        if len(times) < 2:
            return False
        # The slowest is the full pull, in all but the oddest cases; what matters is that it is fixed within a look.
        slowest = max(times, key=lambda key: sum(times[key].values()) / len(times[key]))
        others = [key for key in times if key != slowest]
        p_values: dict[str, float] = {}
        for key in others:
            blocks = sorted(times[key].keys() & times[slowest].keys())
            if len(blocks) < MIN_BLOCKS:
                return False
            ratio = paired_ratio([times[key][b] for b in blocks], [times[slowest][b] for b in blocks])
            if ratio.p_value is None:
                return False
            p_values[key] = ratio.p_value
        return self.stopping.proven(p_values, block, ALPHA) == set(others)
