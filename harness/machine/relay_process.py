"""This module runs the delaying relay as a process of its own, outside the machine's quota."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import MachineError

if TYPE_CHECKING:
    from harness.model.shape import Distance

STOP_TIMEOUT_S = 5.0

_RELAY = Path(__file__).with_name("relay.py")


class RelayProcess:
    """Runs ``relay.py`` on ``address``; it ends when this object is stopped or the harness dies."""

    def __init__(
        self, address: str, upstream: tuple[str, int], distance: Distance, *, uplink_bytes_s: int | None = None
    ) -> None:
        """``uplink_bytes_s`` is what all connections together get."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-S", "-E", str(_RELAY), address, upstream[0], str(upstream[1]),
                str(distance.rtt_ms / 1e3), str(distance.first_byte_ms / 1e3),
                str(distance.per_connection_bytes_s or 0), str(uplink_bytes_s or 0),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer.isdigit():
            self.stop()
            raise MachineError(f"the delaying relay in front of {upstream[0]}:{upstream[1]} did not start")
        self.port = int(answer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

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
