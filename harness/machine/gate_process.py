"""This module runs the gate in front of the registry as a process of its own, outside the machine's quota."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from pathlib import Path
from typing import Literal

from harness.errors import MachineError

STOP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0

State = Literal["pass", "refuse", "503", "401"]

_GATE = Path(__file__).with_name("gate.py")


class GateProcess:
    """Runs ``gate.py`` on ``address``; it ends when this object is stopped or the harness dies."""

    def __init__(self, address: str, upstream: tuple[str, int], *, tokens: bool = False) -> None:
        """With ``tokens`` requests need one, which the gate's own token server gives. Raises MachineError."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-S", "-E", str(_GATE), address, upstream[0], str(upstream[1]),
                "tokens" if tokens else "open",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        answer = self._line()
        if not answer.isdigit():
            self.stop()
            raise MachineError(f"the gate in front of {upstream[0]}:{upstream[1]} did not start")
        self.port = int(answer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def become(self, state: State) -> None:
        """Go over to another state; it is in force when this returns. Raises MachineError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{state}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise MachineError("the gate in front of the registry has ended") from None
        answer = self._line()
        if answer != "ok":
            raise MachineError(f"the gate in front of the registry did not become {state!r}: {answer or 'no answer'}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        return self._process.stdout.readline().decode().strip() if ready else ""

    def stop(self) -> None:
        """End it; idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
