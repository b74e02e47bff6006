"""This module follows the daemon's event stream: when a container was created, started and ended, whatever a client
does.

Docker stamps its events with the wall clock (``timeNano``). It is converted to CLOCK_MONOTONIC when the event arrives,
by the distance of the two clocks at that moment, so that a step of the wall clock moves at most one event.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from harness.engines.docker.client import FAILURES

if TYPE_CHECKING:
    from harness.engines.docker.client import IsolatedClient

_KINDS = ("create", "start", "die")


class EventListener:
    """Listens from before T0 until ``close``; the times it gives are CLOCK_MONOTONIC nanoseconds."""

    def __init__(self, client: IsolatedClient) -> None:
        self._times: dict[tuple[str, str], int] = {}
        self._codes: dict[str, int] = {}
        self._changed = threading.Condition()
        self._ended = False
        # Returns once the daemon has answered, so that nothing that comes later can be missed.
        self._stream = client.events(filters={"type": "container", "event": list(_KINDS)}, decode=True)
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)
        self._thread.start()

    def await_time(self, event: str, container: str, timeout_s: float) -> int | None:
        """Waits for when this happened to the container; None if it has not within the time, or the daemon is gone."""
        with self._changed:
            self._changed.wait_for(lambda: (event, container) in self._times or self._ended, timeout_s)
            return self._times.get((event, container))

    def exit_code(self, container: str) -> int | None:
        """Returns the code the container's process ended with, as far as the daemon has told of it."""
        return self._codes.get(container)

    def close(self) -> None:
        """Stop listening; the daemon may be gone already."""
        try:
            self._stream.close()
        except FAILURES:
            pass
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            for event in self._stream:
                attributes = (event.get("Actor") or {}).get("Attributes") or {}
                container, kind = str((event.get("Actor") or {}).get("ID", "")), str(event.get("Action", ""))
                at_ns = int(event["timeNano"]) - time.time_ns() + time.monotonic_ns()
                with self._changed:
                    self._times.setdefault((kind, container), at_ns)
                    if kind == "die" and str(attributes.get("exitCode", "")).isdigit():
                        self._codes[container] = int(attributes["exitCode"])
                    self._changed.notify_all()
        except (*FAILURES, AttributeError, KeyError):  # the socket was closed under it: by ``close``, or by its end
            pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
