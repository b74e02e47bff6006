"""This module predicts time to ready, as a range and its middle, on a machine that was not measured, from the parts of
starts that were.

A start is CPU work, bytes over a link, and waits that neither explains. On another machine the work takes what that
machine's CPU gives, by the same budget as the physical bound (``harness.model.bound``), and the bytes take its link.
What cannot be known is how much of the rest runs beside them: a quota hides waits, since a throttled program waits for
its disk and its registry meanwhile. So both are said. With C the CPU's seconds, N the link's, T what was measured::

    high = T + max(0, C' - C) + max(0, N' - N)              nothing that got faster was in the way
    low  = max(C', N', T - max(0, C - C') - max(0, N - N'))   all of it was

The middle is their geometric mean. Waits grow with the distance to the registry, and a machine with less memory than a
start holds may not start at all, so neither is predicted: ``obstacle`` says what stands in the way.
``tests/report/test_prediction.py`` holds ranges against starts measured on the predicted machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from harness.model.bound import CpuBudget, transfer_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.observation import Observation
    from harness.model.plan import PlannedCase
    from harness.model.shape import Shape

TOLERANCE = 0.25
"""Measured starts lay at most so far beyond a range's ends, as a share of them."""
#: One core runs a start's longest chain: the container's own program, and most of each engine's steps.
_CORES_OF_A_START = 1


@dataclass(frozen=True, slots=True)
class Parts:
    """Holds medians of a case's valid trials, and the machine they were measured on."""

    shape: Shape
    distance: str
    ready_s: float
    cpu_core_s: float
    received_bytes: float
    memory_bytes: float
    """This is what the machine held at readiness without its page cache; 0 where it was not recorded."""
    inflate_core_s: float
    """This is what inflating it took at this host's best rate; 0 where it is not known."""
    per_byte_core_s: float = 0.0
    """This is what receiving and hashing its bytes took at the best rates."""

    @property
    def cpu_s(self) -> float:
        """Returns what its CPU alone takes where it was measured."""
        return cpu_seconds(self.shape, self.cpu_core_s)

    @property
    def wire_s(self) -> float:
        """Returns what its link alone takes where it was measured."""
        return transfer_seconds(self.received_bytes, self.shape.network)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Holds seconds to ready, between ``low_s`` and ``high_s``; they are not numbers where it cannot be predicted."""

    low_s: float
    high_s: float

    @property
    def middle_s(self) -> float:
        return math.sqrt(self.low_s * self.high_s)


def cpu_seconds(shape: Shape, core_s: float) -> float:
    """Returns the least time for so much work that is one chain: more cores do not shorten it."""
    return CpuBudget(shape, _CORES_OF_A_START).seconds(core_s)


def parts_of(case: PlannedCase, trials: Sequence[Observation]) -> Parts | None:
    """Returns the parts of a case's starts; None where no trial is valid, or its machine does not see what they are."""
    valid = [o for o in trials if o.valid and o.case == case.case and not case.outside]
    if not valid:
        return None
    return Parts(
        shape=case.shape,
        distance=case.case.distance,
        ready_s=median(o.time_to_ready_s or 0.0 for o in valid),
        cpu_core_s=median(o.cpu_to_ready_s or 0.0 for o in valid),
        received_bytes=median(float(o.wire_before_ready.received_bytes or 0) for o in valid),
        memory_bytes=median(float((o.memory_ready_bytes or 0) - (o.memory_ready_cache_bytes or 0)) for o in valid),
        inflate_core_s=_term(valid, "inflate_core_s"),
        per_byte_core_s=_term(valid, "receive_core_s") + _term(valid, "hash_core_s"),
    )


def _term(valid: Sequence[Observation], name: str) -> float:
    return median([o.bound.terms.get(name, 0.0) for o in valid if o.bound] or [0.0])


def obstacle(parts: Parts, shape: Shape) -> str:
    """Says why a start on this machine cannot be predicted from these parts; empty where it can."""
    there = shape.distance.name if shape.distance else parts.distance
    if there != parts.distance:
        return f"measured at distance {parts.distance}"
    if shape.memory_bytes is not None and shape.memory_bytes < parts.memory_bytes:
        return f"a start holds {parts.memory_bytes / 2**20:.0f} MiB of memory without its page cache"
    return ""


def predict(
    parts: Parts, shape: Shape, *, cpu_core_s: float | None = None, received_bytes: float | None = None
) -> Prediction:
    """Predicts the range on ``shape``; ``cpu_core_s`` and ``received_bytes`` are of another image, else as measured."""
    if obstacle(parts, shape):
        return Prediction(math.nan, math.nan)
    cpu_s = cpu_seconds(shape, parts.cpu_core_s if cpu_core_s is None else cpu_core_s)
    wire_s = transfer_seconds(parts.received_bytes if received_bytes is None else received_bytes, shape.network)
    more = max(0.0, cpu_s - parts.cpu_s) + max(0.0, wire_s - parts.wire_s)
    less = max(0.0, parts.cpu_s - cpu_s) + max(0.0, parts.wire_s - wire_s)
    low = max(cpu_s, wire_s, parts.ready_s - less)
    return Prediction(low, max(low, parts.ready_s + more))
