"""This module watches, from the harness and outside the machine's CPU quota, for when a container is ready.

The exit comes through a pidfd, lines through the container's pipes, ports by knocking from the machine's network
namespace; each is seen within 5 ms. Nothing runs inside the machine for it, except that a server answers the knocks.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from harness.errors import (
    ColdbenchError,
    DiskFull,
    MachineError,
    NotReady,
    OutOfMemory,
    WorkloadExited,
)
from harness.probes.knocking import Knocker
from harness.probes.listening import described, listeners
from harness.probes.output import OutputReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engines.protocol import Container
    from harness.machine.machine import Machine
    from harness.model.workload import Readiness

_TICK_S = 0.25
_CODE_TIMEOUT_S = 10.0
_OUTPUT_TIMEOUT_S = 0.5
_FULL_BLOCKS = 16
_NO_SPACE = "No space left on device"
#: What stands before the quotation in a message.
LAST_WORDS = "; its last words: "


class ReadinessProbe:
    """Watches one container until it is ready, and drains its output until ``close``.

    Create it when the container is made, before its process runs: ``timeout_s`` of the readiness counts from then.
    ``daemons_alive`` tells whether what serves the root file system still lives.
    """

    def __init__(
        self,
        readiness: Readiness,
        container: Container,
        machine: Machine,
        daemons_alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._readiness = readiness
        self._container = container
        self._machine = machine
        self._daemons_alive = daemons_alive
        self._deadline = time.monotonic() + readiness.timeout_s
        self._ready_ns: int | None = None
        self._failure: OSError | None = None
        self._exited = False
        self._code: int | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._knocker: Knocker | None = None
        line = readiness.kind in ("stdout", "stderr")
        self._output = OutputReader(
            container.stdout,
            container.stderr,
            stream=readiness.kind if line else "",
            pattern=getattr(readiness, "pattern", ""),
            matched=self._ready,
        )
        if readiness.kind in ("tcp", "http"):
            self._knocker = Knocker(
                lambda: container.pid if container.own_network else machine.namespace_pid,
                ("127.0.0.1", machine.address),
                readiness.port,
                self._ready,
                self._fail,
                path=getattr(readiness, "path", "/"),
                status=getattr(readiness, "status", None),
            )
        self._watcher = threading.Thread(target=self._watch_exit, name="container-exit", daemon=True)
        self._watcher.start()

    def wait(self) -> int:
        """Waits for readiness and returns it in CLOCK_MONOTONIC nanoseconds.

        Raises WorkloadExited (ended before it was ready, or with another code), OutOfMemory or DiskFull where that is
        why, NotReady after the timeout, MachineError when a daemon died or the machine's network cannot be entered.
        """
        while True:
            left_s = self._deadline - time.monotonic()
            self._changed.wait(max(0.0, min(left_s, _TICK_S)))
            if self._ready_ns is not None:
                return self._ready_ns
            if self._exited:
                return self._after_exit()
            if self._failure is not None:
                raise MachineError(f"cannot look into the machine's network: {self._failure.strerror}")
            if not self._daemons_alive():
                raise MachineError("a daemon that serves the container's root file system has ended")
            if left_s <= 0:
                raise NotReady(self._not_ready())

    def output_tail(self) -> str:
        """Returns the last 4 KiB of what the container has written to stdout and stderr."""
        return self._output.tail()

    def close(self) -> None:
        """Stops watching and reading; idempotent."""
        self._closing.set()
        if self._knocker is not None:
            self._knocker.close()
        self._output.close()
        self._watcher.join()

    def _ready(self, at_ns: int) -> None:
        if self._ready_ns is None:
            self._ready_ns = at_ns
        self._changed.set()

    def _fail(self, error: OSError) -> None:
        self._failure = error
        self._changed.set()

    def _watch_exit(self) -> None:
        """Watches the exit: ``exited_at_ns`` times it; the code may come later, through the throttled machine."""
        container = self._container
        while not self._closing.is_set():
            code = container.exit_code(_TICK_S)
            if container.exited_at_ns() is None:
                continue
            deadline = time.monotonic() + _CODE_TIMEOUT_S
            while code is None and time.monotonic() < deadline and not self._closing.is_set():
                code = container.exit_code(_TICK_S)
            self._code = code
            self._exited = True
            self._changed.set()
            return

    def _after_exit(self) -> int:
        """Judges an exit: the wanted one, a line that was still in the pipe, or a failure."""
        self._output.await_end(_OUTPUT_TIMEOUT_S)
        if self._ready_ns is not None:
            return self._ready_ns
        readiness, code = self._readiness, self._code
        if readiness.kind == "exit" and code == readiness.code:
            at_ns = self._container.exited_at_ns()
            assert at_ns is not None
            return at_ns
        expected = f"instead of {readiness.code}" if readiness.kind == "exit" else "before it was ready"
        text = f"the container ended with {_describe(code)} {expected}{self._said()}"
        raise self._exhaustion(text) or WorkloadExited(text)

    def _exhaustion(self, text: str) -> ColdbenchError | None:
        """Says whether the machine ran out of something, which is then the reason."""
        try:
            if self._machine.counters().oom_kills:
                return OutOfMemory(f"the machine ran out of memory; {text}")
            status = os.statvfs(self._machine.outside(self._machine.scratch))
        except (OSError, MachineError):
            return None
        if status.f_bfree < _FULL_BLOCKS or _NO_SPACE in self.output_tail():
            return DiskFull(f"the machine's disk is full; {text}")
        return None

    def _said(self) -> str:
        """Returns the end of a message: what the container said last, if it said anything."""
        words = "".join(c for c in self._output.last_words() if c.isprintable())
        return f"{LAST_WORDS}{words}" if words else ""

    def _not_ready(self) -> str:
        readiness = self._readiness
        wanted = {
            "exit": "its process to end",
            "stdout": f"a line on stdout that matches {getattr(readiness, 'pattern', '')!r}",
            "stderr": f"a line on stderr that matches {getattr(readiness, 'pattern', '')!r}",
            "tcp": f"port {getattr(readiness, 'port', 0)} to accept a connection",
            "http": f"GET {getattr(readiness, 'path', '/')} on port {getattr(readiness, 'port', 0)} to answer "
            f"{getattr(readiness, 'status', 0)}",
        }[readiness.kind]
        found = f" (last answer: {self._knocker.last_answer})" if self._knocker and self._knocker.last_answer else ""
        there = described(listeners(self._machine.namespace_pid))
        return f"not ready within {readiness.timeout_s:g} s: waited for {wanted}{found}; {there}{self._said()}"


def _describe(code: int | None) -> str:
    if code is None:
        return "an unknown exit code"
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def make_probe(
    readiness: Readiness, container: Container, machine: Machine, daemons_alive: Callable[[], bool]
) -> ReadinessProbe:
    """Makes the probe that a trial is set up with (``harness.session.trial``)."""
    return ReadinessProbe(readiness, container, machine, daemons_alive)
