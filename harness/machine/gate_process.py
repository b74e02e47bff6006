"""This module runs the gate in front of the registry as a process of its own, outside the machine's quota."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import MachineError
from harness.machine.side_process import SideProcess

State = Literal["pass", "refuse", "503", "401"]

_GATE = Path(__file__).with_name("gate.py")


class GateProcess(SideProcess):
    """Runs ``gate.py`` on ``address``; it ends when this object is stopped or the harness dies."""

    def __init__(self, address: str, upstream: tuple[str, int], *, tokens: bool = False) -> None:
        """Starts the gate. With ``tokens`` requests need one, which the gate's own token server gives. Raises
        MachineError.
        """
        arguments = [address, upstream[0], str(upstream[1]), "tokens" if tokens else "open"]
        super().__init__(_GATE, arguments, what=f"the gate in front of {upstream[0]}:{upstream[1]}")

    def become(self, state: State) -> None:
        """Goes over to another state; it is in force when this returns. Raises MachineError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{state}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise MachineError("the gate in front of the registry has ended") from None
        answer = self._line()
        if answer != "ok":
            raise MachineError(f"the gate in front of the registry did not become {state!r}: {answer or 'no answer'}")
