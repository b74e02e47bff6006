"""This module kills what outlasts its time, so that whoever waits for it notices."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.machine.machine import Machine


@contextmanager
def killing_after(seconds: float, machine: Machine) -> Iterator[threading.Event]:
    """Kills every process of the machine when the block takes longer; the event says whether that happened."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for pid in machine.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
