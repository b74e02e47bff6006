"""A started container seen from the harness: pidfd for its end, pipes for its output."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class EmbeddedContainer:
    """Implements ``harness.engines.protocol.Container``.

    The exit is *seen* through a pidfd in the harness, outside the machine's quota; the exit *code* comes from the
    agent, whose child the container is (``code`` waits for it), and may be a moment late.
    """

    def __init__(self, pid: int, output: tuple[int, int], root: str, code: Callable[[float], int | None]) -> None:
        self._pid = pid
        self._stdout, self._stderr = output
        self._root = root
        self._code = code
        self._pidfd = os.pidfd_open(pid)
        self._exited_ns: int | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def stdout(self) -> int:
        return self._stdout

    @property
    def stderr(self) -> int:
        return self._stderr

    @property
    def root(self) -> str:
        return self._root

    @property
    def pidfd(self) -> int:
        """Readable once the container's init has ended."""
        return self._pidfd

    def exited_at_ns(self) -> int | None:
        self._poll(0)
        return self._exited_ns

    def exit_code(self, timeout_s: float) -> int | None:
        deadline = time.monotonic() + timeout_s
        if not self._poll(timeout_s):
            return None
        return self._code(max(0.5, deadline - time.monotonic()))

    def _poll(self, timeout_s: float) -> bool:
        if self._exited_ns is not None:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(max(0, round(timeout_s * 1000))):
            return False
        with self._lock:
            if self._exited_ns is None:
                self._exited_ns = time.monotonic_ns()
        return True

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        for name in ("_stdout", "_stderr", "_pidfd"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)
