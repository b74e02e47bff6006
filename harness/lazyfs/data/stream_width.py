"""This module says how many requests stream the layers at a time, and whether the link carries them fast enough to go
on.
"""

from __future__ import annotations

FIRST_WIDTH = 4
_FULL_WIDTH, _SHARED_WIDTH = 8, 2
"""Count the requests at a time: where more of them bring more, and where the link carries no more."""
_SLOWER = 0.7
"""Says below which part of the earlier rate a request only shares the link with others that would do without it."""

_MISSES = 100
"""Says for how many rounds a start waits in turn where nothing is streamed: 110 to 190 with 43 to 75 MB (an inference
runtime, ``import pandas``, 230 ms a round)."""
_READ_SHARE = 0.3
"""Says which part of the stored bytes a start reads, so that they come in any case (0.2 to 0.35 of large images)."""
_GROWS = 1.5
"""Says from which ratio to the lap before on the rate still grows, as that of connections in slow start does: 1.8 to 2
from lap to lap, where a link of 20 Mbit/s and 230 ms shows 1.3 between the first two and then 1."""


class Width:
    """Says how many requests may be under way at a time.

    The number doubles once; where that only slows each of them, it becomes small.
    """

    def __init__(self) -> None:
        self.now = FIRST_WIDTH
        self._rates: list[float] = []
        self._before: float | None = None

    def note(self, width: int, size: int, seconds: float) -> None:
        """Notes that a request that began while ``width`` were allowed brought ``size`` bytes in ``seconds``."""
        if width != self.now or self.now == _SHARED_WIDTH or seconds <= 0:
            return
        self._rates.append(size / seconds)
        if len(self._rates) < width:
            return
        rate = sum(self._rates) / len(self._rates)
        self._rates.clear()
        if self._before is None:
            self._before, self.now = rate, _FULL_WIDTH
        elif rate < _SLOWER * self._before:
            self.now = _SHARED_WIDTH


class Worth:
    """Says whether streaming the rest takes less time than it saves; times are in seconds of any one clock.

    Streamed bytes share the link with those that reads wait for. At 20 Mbit/s the layers of an inference runtime take a
    minute and a half, and a start that reads a fifth of them takes less, however far the registry is. What the link
    carries shows only once its connections have left slow start, so requests begin small and are judged lap by lap.
    """

    def __init__(self, left_bytes: int, latency_s: float, now: float) -> None:
        """``left_bytes`` are still to come, and a round takes ``latency_s``; streaming begins ``now``."""
        self._left_bytes = left_bytes
        self._saved_s = _MISSES * latency_s
        self._lap_began, self._lap_bytes, self._lap_requests = now, 0, 0
        self.rate_bytes_s = 0.0
        """Says what the last lap's requests brought together, in bytes per second; 0.0 before its end."""
        self.known = False
        """Says whether what the link carries is known."""
        self.given = True
        """Says whether to go on."""

    def note(self, width: int, size: int, now: float) -> None:
        """Notes that a request brought ``size`` bytes and ended ``now``; as many as may be under way make a lap."""
        self._left_bytes -= size
        self._lap_bytes += size
        self._lap_requests += 1
        if self._lap_requests < width or now <= self._lap_began:
            return
        before, self.rate_bytes_s = self.rate_bytes_s, self._lap_bytes / (now - self._lap_began)
        self._lap_began, self._lap_bytes, self._lap_requests = now, 0, 0
        if not before or self.rate_bytes_s >= _GROWS * before or not self.rate_bytes_s:
            return
        self.known = True
        self.given = (1.0 - _READ_SHARE) * self._left_bytes <= self._saved_s * self.rate_bytes_s
