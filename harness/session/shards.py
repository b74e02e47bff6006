"""This module cuts one plan into shards of whole blocks, so that several machines each run a part of one session.

The same scenarios, selection and seed give the same plan everywhere. Shard k of n runs the blocks whose number leaves
k - 1 when divided by n: a block stays whole on one host, since its trials are compared with each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.model.plan import Plan, PlannedTrial


@dataclass(frozen=True, slots=True)
class Shard:
    """Names one shard; ``index`` counts from 1 to ``count``."""

    index: int
    count: int

    def takes(self, trial: PlannedTrial) -> bool:
        """Says whether this shard runs the trial."""
        return trial.block % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse(text: str) -> Shard:
    """Reads ``2/5``. Raises UsageError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: expected K/N with K from 1 to N, as 2/5")
    return Shard(int(found[1]), int(found[2]))


def check(shard: Shard, plan: Plan) -> None:
    """Raises UsageError for a shard without a block."""
    if not any(shard.takes(trial) for trial in plan.trials):
        blocks = len({trial.block for trial in plan.trials})
        raise UsageError(
            f"--shard {shard}: the plan has {blocks} blocks, none of them is this shard's; use fewer shards"
        )
