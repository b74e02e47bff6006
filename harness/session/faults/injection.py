"""This module makes things fail in a machine that works, and mends them: daemon, registry, and the disk below the
cache.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from harness.errors import MachineError

if TYPE_CHECKING:
    from harness.engines.protocol import Engine
    from harness.machine.gate_process import State
    from harness.machine.machine import Machine
    from harness.machine.ways import Gated
    from harness.model.faults import PlannedFault

_GATE: dict[str, State] = {"registry-refuses": "refuse", "registry-503": "503", "registry-401": "401"}
_FILLER = "coldbench-filler"
_PIECE_BYTES = 64 << 20


def gate_of(fault: str) -> Gated:
    """Returns the kind of gate that a trial of this fault needs in front of the registry, empty for none."""
    if not fault.startswith("registry-"):
        return ""
    return "tokens" if fault.startswith("registry-401") else "open"


class Injection:
    """Makes one fault of one machine. ``put_in`` begins it, ``mend`` ends it as far as it ends, ``clear`` ends the
    rest.
    """

    def __init__(self, fault: PlannedFault, machine: Machine, engine: Engine) -> None:
        self._fault = fault
        self._machine = machine
        self._engine = engine
        self._stopped: tuple[int, ...] = ()
        self._cut = False
        self._filled = False

    def put_in(self) -> tuple[str, ...]:
        """Makes it fail now; returns what was hit. Raises MachineError."""
        fault = self._fault.fault
        if fault in _GATE:
            self._machine.ways.gate.become(_GATE[fault])
            return ("registry",)
        if fault == "registry-blackhole":
            self._machine.ways.cut(True)
            self._cut = True
            return ("registry",)
        if fault == "nothing":
            return ()
        if fault == "disk-full":
            self._fill()
            return ("disk",)
        pids = self._engine.daemon_pids()
        number = signal.SIGSTOP if fault == "daemon-stopped" else signal.SIGKILL
        hit = tuple(f"daemon {_name(pid)}" for pid in pids)
        for pid in pids:
            os.kill(pid, number)
        if fault == "daemon-stopped":
            self._stopped = pids
        return hit

    def mend(self) -> None:
        """Ends it; daemons that were killed are started again only where the fault says so. Raises MachineError."""
        fault = self._fault.fault
        if fault in _GATE:
            self._machine.ways.gate.become("pass")
        elif fault == "daemon-restarted":
            self._engine.restart_daemons()
        else:
            self.clear()

    def clear(self) -> None:
        """Ends all that is stopped, cut or full, so that the machine can be taken away; idempotent."""
        stopped, self._stopped = self._stopped, ()
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self._cut:
            self._cut = False
            self._machine.ways.cut(False)
        if self._filled:
            self._filled = False
            with suppress(FileNotFoundError):
                self._machine.outside(self._machine.scratch / _FILLER).unlink()

    def _fill(self) -> None:
        """Fills all space that the machine's disk has left."""
        path = self._machine.outside(self._machine.scratch / _FILLER)
        self._filled = True
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = _PIECE_BYTES
                at = 0
                while size >= 4096:
                    try:
                        os.posix_fallocate(descriptor, at, size)
                        at += size
                    except OSError:
                        size //= 2
            finally:
                os.close(descriptor)
        except OSError as error:
            raise MachineError(f"the machine's disk could not be filled: {error}") from error


def _name(pid: int) -> str:
    """Returns the command of a process, as the kernel names it."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return str(pid)
