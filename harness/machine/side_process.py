"""This module runs a small program of ours beside a machine, outside its quota: a delaying relay, a registry gate."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from typing import TYPE_CHECKING

from harness.errors import MachineError

if TYPE_CHECKING:
    from pathlib import Path

STOP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0


class SideProcess:
    """Runs ``program`` and takes the port from its first line; it ends when it is stopped or the harness dies.

    Attributes:
        port: where the program listens.
    """

    def __init__(self, program: Path, arguments: list[str], *, what: str) -> None:
        """Takes ``what``, which names the program in errors. Raises MachineError when it does not start."""
        self._what = what
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(program), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        answer = self._line()
        if not answer.isdigit():
            self.stop()
            raise MachineError(f"{what} did not start")
        self.port = int(answer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        return self._process.stdout.readline().decode().strip() if ready else ""

    def stop(self) -> None:
        """Ends it; idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
