"""Time to ready on a machine that was not measured, out of the parts of starts that were.

A start is CPU work, bytes over a link, and waits that neither explains (a container that is made, answers that are
waited for). On another machine the work takes what that machine's CPU gives, by the same budget as the physical bound
(``harness.model.bound``), the bytes take its link, and the waits stay as long as they were::

    T = max(cpu(X), wire(B)) + waits,    waits = T measured - max(cpu(X), wire(B)) where it was measured

Waits grow with the distance to the registry, and a machine with less memory than a start used may not start at all, so
neither is predicted: ``predict`` says what stands in the way. ``tests/report/test_prediction.py`` holds predictions
against starts measured on the predicted machines; ``ERROR`` is what it allows.
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

ERROR = 0.35
"""Predictions are trusted within this share of themselves; two modes closer than that are a tie."""
#: One core runs a start's longest chain: the container's own program, and most of each engine's steps.
_CORES_OF_A_START = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Medians of a case's valid trials, and the machine they were measured on."""

    shape: Shape
    distance: str
    ready_s: float
    cpu_core_s: float
    received_bytes: float
    memory_bytes: float
    """What the machine held at readiness without its page cache; 0 where it was not recorded."""
    inflate_core_s: float
    """What inflating it took at this host's best rate; 0 where it is not known."""
    per_byte_core_s: float = 0.0
    """What receiving and hashing its bytes took at the best rates."""

    @property
    def waits_s(self) -> float:
        """What neither CPU nor link explains."""
        return max(0.0, self.ready_s - _busy_s(self.shape, self.cpu_core_s, self.received_bytes))


def parts_of(case: PlannedCase, trials: Sequence[Observation]) -> Parts | None:
    """The parts of a case's starts; None where no trial is valid."""
    valid = [o for o in trials if o.valid and o.case == case.case]
    if not valid:
        return None
    return Parts(
        shape=case.shape,
        distance=case.case.distance,
        ready_s=median(o.time_to_ready_s or 0.0 for o in valid),
        cpu_core_s=median(o.cpu_to_ready_s for o in valid),
        received_bytes=median(float(o.wire_before_ready.received_bytes) for o in valid),
        memory_bytes=median(float((o.memory_ready_bytes or 0) - (o.memory_ready_cache_bytes or 0)) for o in valid),
        inflate_core_s=_term(valid, "inflate_core_s"),
        per_byte_core_s=_term(valid, "receive_core_s") + _term(valid, "hash_core_s"),
    )


def _term(valid: Sequence[Observation], name: str) -> float:
    return median([o.bound.terms.get(name, 0.0) for o in valid if o.bound] or [0.0])


def _busy_s(shape: Shape, cpu_core_s: float, received_bytes: float) -> float:
    # With one core as the host: what a start does is a chain, and more cores do not shorten it.
    cpu_s = CpuBudget(shape, int(_CORES_OF_A_START)).seconds(cpu_core_s)
    return max(cpu_s, transfer_seconds(received_bytes, shape.network))


def obstacle(parts: Parts, shape: Shape) -> str:
    """Why a start on this machine cannot be predicted from these parts; empty where it can."""
    there = shape.distance.name if shape.distance else parts.distance
    if there != parts.distance:
        return f"measured at distance {parts.distance}"
    if shape.memory_bytes is not None and shape.memory_bytes < parts.memory_bytes:
        return f"a start holds {parts.memory_bytes / 2**20:.0f} MiB of memory without its page cache"
    return ""


def predict(
    parts: Parts, shape: Shape, *, cpu_core_s: float | None = None, received_bytes: float | None = None
) -> float:
    """Seconds to ready on ``shape``; ``cpu_core_s`` and ``received_bytes`` are of another image, else as measured.

    Not a number where ``obstacle`` says why.
    """
    if obstacle(parts, shape):
        return math.nan
    core_s = parts.cpu_core_s if cpu_core_s is None else cpu_core_s
    size = parts.received_bytes if received_bytes is None else received_bytes
    return parts.waits_s + _busy_s(shape, core_s, size)
