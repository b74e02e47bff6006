"""This module tells how far a registry is, from the requests themselves: seconds to the first byte, and the rate behind
it.
"""

from __future__ import annotations

from collections import deque

FAR_S = 0.01
"""From this latency on a round trip is dearer than what it takes to save one."""
_KEPT = 32
"""So many requests count: enough for a floor among them, few enough to forget a way that has changed."""
_FEWEST = 2
"""A single request may have waited for its CPU quota and not for the network."""
_TELLING_BYTES = 64 << 10
"""Shorter answers come whole in the first segments and tell nothing of the rate."""
_FASTEST_BYTES_S = 1e9
_FULL_BODIES = 2.0
"""Says from how many times the latency on an answer's bytes take so long that the link carries no more: at 100 Mbit/s
and 10 ms the layers streamed beside reads made an inference runtime ready after 15.6 s, where it takes 6.0 without."""


class Link:
    """Notes answered requests; safe to write from many threads, and cheap.

    Waiting for a CPU quota, a busy server or a queue only ever adds to the time to the first byte, so the least of the
    latest is the link's own. The rate is the bytes of the longer answers over the time they took: slow start counts, as
    it does for the requests that are to be planned. Times are in seconds.
    """

    def __init__(self) -> None:
        self._first_bytes: deque[float] = deque(maxlen=_KEPT)
        self._bodies: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def note(self, first_byte_s: float, size: int, body_s: float) -> None:
        """Notes a request whose answer began after ``first_byte_s``, its ``size`` bytes taking ``body_s`` more."""
        self._first_bytes.append(first_byte_s)
        if size >= _TELLING_BYTES:
            self._bodies.append((size, body_s))

    def hint(self, latency_s: float) -> None:
        """Takes another client's ``latency_s`` on the same link (0: it knows nothing)."""
        if latency_s > 0:
            self._first_bytes.extend([latency_s] * _FEWEST)

    @property
    def latency_s(self) -> float:
        """Returns seconds from a request to the first byte of its answer, connection made; 0.0
        while too few were seen.
        """
        known = list(self._first_bytes)
        return max(0.0, min(known)) if len(known) >= _FEWEST else 0.0

    @property
    def far(self) -> bool:
        """Says whether requests are dear: ``latency_s`` is known and at least ``FAR_S``."""
        return self.latency_s >= FAR_S

    @property
    def perhaps_far(self) -> bool:
        """Says whether requests are dear by a single answer, where being wrong costs little."""
        known = list(self._first_bytes)
        return bool(known) and min(known) >= FAR_S

    @property
    def is_unknown(self) -> bool:
        """Says that no answer has come yet."""
        return not self._first_bytes

    @property
    def is_full(self) -> bool:
        """Says whether answers take long to come rather than to begin: more requests would only share the link."""
        bodies = list(self._bodies)
        return bool(bodies) and sum(seconds for _, seconds in bodies) / len(bodies) > _FULL_BODIES * self.latency_s

    def rate(self, default_bytes_s: float) -> float:
        """Returns bytes per second of one connection; ``default_bytes_s`` while no answer was long enough to tell."""
        bodies = list(self._bodies)
        size, seconds = sum(size for size, _ in bodies), sum(seconds for _, seconds in bodies)
        return min(size / seconds, _FASTEST_BYTES_S) if size and seconds > 0 else default_bytes_s
