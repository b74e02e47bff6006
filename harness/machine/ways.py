"""This module gives a machine's processes their ways to the hosts outside that they may reach: relays, the gate, the
filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from harness.errors import MachineError
from harness.machine import addresses, network_filter
from harness.machine.gate_process import GateProcess
from harness.machine.relay_process import RelayProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.machine.records import Record
    from harness.model.shape import Distance

Gated = Literal["", "open", "tokens"]
"""It says whether a gate stands in front of the registry, and whether it asks for tokens (``harness.machine.gate``)."""


class Ways:
    """Makes the ways out of one machine. ``undo`` takes what has to be done when the machine goes."""

    def __init__(self, record: Record, undo: Callable[..., None], gated: Gated) -> None:
        self.relays: list[RelayProcess] = []
        self._record = record
        self._undo = undo
        self._gated = gated
        self._gate: GateProcess | None = None
        self._places: list[tuple[str, int]] = []

    def to(self, upstream: tuple[str, int], distance: Distance, host_address: str) -> str:
        """Returns ``host:port`` that stands for a host outside: itself, or a relay in front of it."""
        if not distance.delays and addresses.is_simulated(upstream[0]):
            return f"{upstream[0]}:{upstream[1]}"
        relay = RelayProcess(host_address, upstream, distance)
        self.relays.append(relay)
        self._keep(relay)
        return f"{host_address}:{relay.port}"

    def through_gate(self, way: str, host_address: str) -> str:
        """Returns ``host:port`` of the gate before a way; the way itself where no gate is asked for."""
        if not self._gated:
            return way
        host, _, port = way.rpartition(":")
        self._gate = GateProcess(host_address, (host, int(port)), tokens=self._gated == "tokens")
        self._keep(self._gate)
        return f"{host_address}:{self._gate.port}"

    def _keep(self, process: Any) -> None:
        self._undo(process.stop)
        self._record.add_process(process.pid)

    def close_others(self, ways: Sequence[str]) -> list[str]:
        """Lets nothing of the host be reached from inside but these, and returns their addresses."""
        parts = [way.rpartition(":") for way in ways]
        self._places = [(address, int(port)) for address, _, port in parts]
        self._undo(network_filter.detach, self._record)
        network_filter.attach(self._record, self._places)
        return [address for address, _port in self._places]

    @property
    def gate(self) -> GateProcess:
        """Returns the gate; raises MachineError for a machine that was made without."""
        if self._gate is None:
            raise MachineError("this machine was made without a gate in front of its registry")
        return self._gate

    def cut(self, on: bool) -> None:
        """Drops all that the machine sends, silently, or lets it through again. Raises MachineError."""
        try:
            if on:
                network_filter.cut(self._record)
            else:
                network_filter.mend(self._record, self._places)
        except OSError as error:
            raise MachineError(f"the machine's link could not be {'cut' if on else 'mended'}: {error}") from error
