"""This module turns Ctrl-C and SIGTERM into an exception where work may stop, and into a note where it may not.

Work may not stop while a machine is made or unmade.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupts:
    """Installs itself for SIGINT and SIGTERM while entered (main thread only), and restores what was there.

    A signal raises ``Interrupted`` at once inside ``allowed()``, and otherwise when the next ``allowed()`` begins, so
    that tear-down is never cut short, however often the user presses Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._allowed = False
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: object) -> None:
        if os.getpid() != self._owner:
            # A forked child (pyroute2 enters namespaces in one and ends it with SIGTERM) must not unwind our stack:
            # it would take the machine away under its parent.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = signal.Signals(number).name
        if self._allowed:
            self._allowed = False  # from here on the way out is open, and nothing may stop it again
            raise Interrupted(self._message())

    def _message(self) -> str:
        return f"interrupted by {self.requested}"

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Lets the code inside be stopped anywhere; its callers' ``finally`` must release whatever it holds."""
        if self.requested:
            raise Interrupted(self._message())
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
