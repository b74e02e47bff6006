"""This module sees a container from the harness, whichever engine made it: a pidfd tells its end, pipes give its
output.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING

from harness.kernel.namespaces import Namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

_MIN_CODE_WAIT_S = 0.05


class RunningContainer:
    """Implements ``harness.engines.protocol.Container``.

    The exit is *seen* through a pidfd by a thread of the harness, outside the machine's quota, from before the
    container starts; the exit *code* comes from the engine (``code`` waits for it), and may be a moment late. An engine
    that learns the pid after it has told of the container gives 0 at first, and the pid by ``watch`` then.
    """

    def __init__(
        self,
        pid: int,
        output: tuple[int, int],
        root: str,
        code: Callable[[float], int | None],
        namespaces: Namespaces | None = None,
        *,
        own_network: bool = False,
    ) -> None:
        """``namespaces`` are the process's, where the engine held them before it ran; else they are looked for now."""
        self.own_network = own_network
        self._pid = 0
        self._stdout, self._stderr = output
        self._root = root
        self._code = code
        self._exited_ns: int | None = None
        self._exited = threading.Event()
        self._pidfd = -1
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._watcher: threading.Thread | None = None
        self._namespaces = namespaces
        if pid:
            self.watch(pid)

    def watch(self, pid: int) -> None:
        """Watches this process as the container's, to see when it ends. Raises ProcessLookupError when it is gone
        already.
        """
        self._pidfd = os.pidfd_open(pid)
        self._pid = pid
        if self._namespaces is None:
            with contextlib.suppress(OSError):  # it has ended since, and its namespaces with it
                self._namespaces = Namespaces.of(pid)
        self._watcher = threading.Thread(target=self._watch, name="container-pidfd", daemon=True)
        self._watcher.start()

    def ended(self, at_ns: int) -> None:
        """Notes that the process ended at this CLOCK_MONOTONIC time, as the engine says: for one that no pidfd saw."""
        if self._exited_ns is None:
            self._exited_ns = at_ns
        self._exited.set()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def root(self) -> str:
        return self._root

    @property
    def namespaces(self) -> Namespaces | None:
        return self._namespaces

    @property
    def stdout(self) -> int:
        return self._stdout

    @property
    def stderr(self) -> int:
        return self._stderr

    def exited_at_ns(self) -> int | None:
        return self._exited_ns

    def exit_code(self, timeout_s: float) -> int | None:
        """Returns the exit code; None also where the process has ended and nobody can say how (``exited_at_ns`` is set
        then).
        """
        deadline = time.monotonic() + timeout_s
        if not self._exited.wait(timeout_s):
            return None
        return self._code(max(_MIN_CODE_WAIT_S, deadline - time.monotonic()))

    def close(self) -> None:
        """Stops watching and closes the descriptors; idempotent."""
        if self._stop_writer < 0:
            return
        os.close(self._stop_writer)
        if self._watcher is not None:
            self._watcher.join()
        for descriptor in (self._stop_reader, self._pidfd, self._stdout, self._stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self._stop_writer = self._stdout = self._stderr = -1
        if self._namespaces is not None:
            self._namespaces.close()

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        poller.register(self._stop_reader, 0)  # its hang-up is the signal
        if self._pidfd in {descriptor for descriptor, _event in poller.poll()}:
            self._exited_ns = time.monotonic_ns()
            self._exited.set()
