"""This module runs the delaying relay as a process of its own, outside the machine's quota."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.machine.side_process import SideProcess

if TYPE_CHECKING:
    from harness.model.shape import Distance

_RELAY = Path(__file__).with_name("relay.py")


class RelayProcess(SideProcess):
    """Runs ``relay.py`` on ``address``; it ends when this object is stopped or the harness dies."""

    def __init__(
        self, address: str, upstream: tuple[str, int], distance: Distance, *, uplink_bytes_s: int | None = None
    ) -> None:
        """Takes ``uplink_bytes_s``, which is what all connections together get. Raises MachineError."""
        arguments = [
            address, upstream[0], str(upstream[1]), str(distance.rtt_ms / 1e3), str(distance.first_byte_ms / 1e3),
            str(distance.per_connection_bytes_s or 0), str(uplink_bytes_s or 0),
        ]  # fmt: skip
        super().__init__(_RELAY, arguments, what=f"the delaying relay in front of {upstream[0]}:{upstream[1]}")
