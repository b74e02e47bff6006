"""This module says how many requests stream the layers at a time, and whether the link carries them fast enough to go
on.
"""

from __future__ import annotations

FIRST_WIDTH, FULL_WIDTH = 4, 8
"""Count the requests at a time: at first, and where more of them bring more."""
_SLOWER = 0.7
"""Says below which part of the earlier rate a request only shares the link with others that would do without it."""

_MISSES = 100
"""Says for how many rounds a start waits in turn where nothing is streamed: 110 to 190 with 43 to 75 MB (an inference
runtime, ``import pandas``, 230 ms a round)."""
_READ_SHARE = 0.3
"""Says which part of the stored bytes a start reads, so that they come in any case (0.2 to 0.35 of large images)."""
_GROWS = 1.5
"""Says from which ratio to the lap before on the rate still grows, as that of connections in slow start does."""
_LEAST_S = 1e-3
"""Stands in for what an answer took where the clock shows nothing beyond the latency."""


def pays(left_bytes: int, latency_s: float, rate_bytes_s: float) -> bool:
    """Says whether ``left_bytes``, less what a start reads of them anyway, come in less time than its misses take."""
    return (1.0 - _READ_SHARE) * left_bytes <= _MISSES * latency_s * rate_bytes_s


class Width:
    """Says how many requests may be under way at a time.

    The number doubles once; where that only slows each of them, it is halved again. Fewer would leave more of a narrow
    link to the reads; but a quota of CPU that is used up for a moment looks the same, and with two requests a start of
    python-data, far away at a quarter of a core, took 11 to 13 s instead of 9.
    """

    def __init__(self) -> None:
        self.now = FIRST_WIDTH
        self._rates: list[float] = []
        self._before: float | None = None
        self._tried = False

    def note(self, width: int, size: int, seconds: float) -> None:
        """Notes that a request that began while ``width`` were allowed brought ``size`` bytes in ``seconds``."""
        if width != self.now or self._tried or seconds <= 0:
            return
        self._rates.append(size / seconds)
        if len(self._rates) < width:
            return
        rate = sum(self._rates) / len(self._rates)
        self._rates.clear()
        if self._before is None:
            self._before, self.now = rate, FULL_WIDTH
        elif rate < _SLOWER * self._before:
            self.now, self._tried = FIRST_WIDTH, True


class Worth:
    """Says whether streaming the rest takes less time than it saves.

    Streamed bytes share the link with those that reads wait for. At 20 Mbit/s the layers of an inference runtime take a
    minute and a half, and a start that reads a fifth of them takes less, however far the registry is. What the link
    carries shows only once its connections have left slow start, so requests begin small and are judged lap by lap.
    """

    def __init__(self, left_bytes: int, latency_s: float) -> None:
        """``left_bytes`` are still to come, and an answer begins after ``latency_s``."""
        self._left_bytes = left_bytes
        self._latency_s = latency_s
        self._lap: list[float] = []
        self.rate_bytes_s = 0.0
        """Says what the last lap's requests brought together, in bytes per second; 0.0 before its end."""
        self.known = False
        """Says whether what the link carries is known."""
        self.given = True
        """Says whether to go on."""

    def note(self, width: int, size: int, seconds: float) -> None:
        """Notes that a request brought ``size`` bytes in ``seconds``; as many as may be under way make a lap.

        The link's share is what an answer takes from its first byte on: small requests would else show the latency.
        """
        self._left_bytes -= size
        if size:
            self._lap.append(size / max(seconds - self._latency_s, _LEAST_S))
        if len(self._lap) < width:
            return
        before, self.rate_bytes_s = self.rate_bytes_s, sum(self._lap)
        self._lap.clear()
        if not before or self.rate_bytes_s >= _GROWS * before:
            return
        self.known = True
        self.given = pays(self._left_bytes, self._latency_s, self.rate_bytes_s)
