"""The host's end of the simulated network: an address for the registry, there for as long as the session."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from harness.machine import addresses, leftovers, shaping
from harness.machine.host import require_root
from harness.machine.records import Record, host_lock

if TYPE_CHECKING:
    from types import TracebackType


class SimulatedNetwork:
    """Gives this host one address of 198.18.0.0/15 that every machine reaches through its own link.

    ``address`` is what a registry server binds to. The address sits on the loopback interface under a label of its
    own, so several sessions have several.
    """

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._record: Record | None = None
        self.address = ""

    def __enter__(self) -> SimulatedNetwork:
        """Raises ``NotRoot`` or ``MachineError``."""
        require_root("the simulated network")
        leftovers.sweep()
        record = Record.new("network", self._label)
        with host_lock():
            self.address = addresses.choose_block(shaping.used_addresses(), random.Random()).host
            record.addresses.append(self.address)
            record.save()
            self._record = record
            shaping.add_loopback_address(self.address, record.interface("n"))
        return self

    def add_process(self, pid: int) -> None:
        """Note a server of this session (the registry), so that ``coldbench clean`` ends it after a kill."""
        if self._record is not None:
            self._record.add_process(pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record is not None:
            shaping.remove_loopback_address(self.address)
            self._record.remove()
            self._record = None
