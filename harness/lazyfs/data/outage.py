"""This module is a circuit breaker around the registry: while that is away, requests fail at once instead of trying it.

It opens after one exhausted series of tries. From then on one request at a time may probe the registry, first after a
quarter of a second and then less and less often; the first that succeeds closes it. Every change of state is one line
in the log.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import trio

from harness.errors import ImageNotFound, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PROBE_S, LONGEST_PROBE_S = 0.25, 5.0


class Outage:
    """Knows whether the registry answers. Everything runs on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._told = ""
        self._cause = ""
        self._probing = False
        self._pause_s = FIRST_PROBE_S
        self._next_probe = 0.0
        self._over = trio.Event()

    @property
    def open(self) -> bool:
        """Says whether the registry is taken to be away."""
        return self._since is not None

    def admit(self) -> bool:
        """Says whether a request may be sent now; while the registry is away, that request is the probe."""
        if self._since is None:
            return True
        if self._probing or self._clock() < self._next_probe:
            return False
        self._probing = True
        return True

    def note_success(self) -> None:
        """Notes that a request was answered."""
        self._probing = False
        if self._since is not None:
            log.warning("the registry answers again, after %.0f s", self._clock() - self._since)
            self._since = None
            self._over.set()

    def note_failure(self, error: RegistryError) -> None:
        """Notes that a request failed for good, all its tries included; "there is no such blob" is an answer."""
        self._probing = False
        if isinstance(error, ImageNotFound):
            return
        now = self._clock()
        if self._since is None:
            self._since, self._pause_s, self._over = now, FIRST_PROBE_S, trio.Event()
            self._told, self._cause = time.strftime("%H:%M:%S"), str(error)
            log.warning("the registry is away since %s: %s", self._told, error)
        else:
            self._pause_s = min(2 * self._pause_s, LONGEST_PROBE_S)
        self._next_probe = now + self._pause_s

    def refusal(self) -> RegistryError:
        """Returns why a request is not sent, in the same words for the whole outage."""
        return RegistryError(f"the registry is away since {self._told} ({self._cause})")

    async def wait(self) -> None:
        """Wait until the registry answers again or may be probed."""
        with trio.move_on_after(max(0.01, self._next_probe - self._clock())):
            await self._over.wait()
