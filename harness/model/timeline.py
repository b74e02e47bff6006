"""This module keeps the timeline of a trial: named spans on CLOCK_MONOTONIC, as seen from where they happened.

Nothing here is inferred by subtraction: what ran in parallel overlaps (architecture: rules of measurement, 2).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable


class Span(BaseModel):
    """Holds one span; times are seconds after T0 on CLOCK_MONOTONIC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    start_s: float
    end_s: float
    layer: int | None = None
    """Holds the index of the layer (0 is the lowest) where the span belongs to one layer."""
    detail: str = ""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass
class Recorder:
    """Collects spans while a trial runs; processes report absolute monotonic nanoseconds, T0 is subtracted here."""

    t0_ns: int
    spans: list[Span] = field(default_factory=list)
    clock_ns: Callable[[], int] = time.monotonic_ns

    def add(self, name: str, start_ns: int, end_ns: int, layer: int | None = None, detail: str = "") -> None:
        """Records one finished span given in CLOCK_MONOTONIC nanoseconds."""
        self.spans.append(
            Span(
                name=name,
                start_s=(start_ns - self.t0_ns) / 1e9,
                end_s=(end_ns - self.t0_ns) / 1e9,
                layer=layer,
                detail=detail,
            )
        )

    def sorted(self) -> tuple[Span, ...]:
        """Returns all spans by start, then end."""
        return tuple(sorted(self.spans, key=lambda s: (s.start_s, s.end_s)))
