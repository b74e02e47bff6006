"""This module makes the host's end of the simulated network: an address for the registry, there for as long as the
session.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from harness.machine import addresses, leftovers, shaping
from harness.machine.host import require_root
from harness.machine.records import Record, host_lock, remove_directory

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
        """Adds the address to this host. Raises ``NotRoot`` or ``MachineError``."""
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

    def own_directory(self, parent: Path) -> Path:
        """Makes a new directory below ``parent`` for root alone; it goes with the network, or by
        ``coldbench clean``.
        """
        assert self._record is not None
        made = parent / self._record.name
        self._record.files.append(str(made))
        self._record.save()
        made.mkdir(mode=0o700, parents=True)
        return made

    def add_process(self, pid: int) -> None:
        """Notes a server of this session (the registry), so that ``coldbench clean`` ends it after a kill."""
        if self._record is not None:
            self._record.add_process(pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record is not None:
            shaping.remove_loopback_address(self.address)
            for made in self._record.files:
                remove_directory(Path(made))
            self._record.remove()
            self._record = None
