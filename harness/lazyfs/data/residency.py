"""This module knows where each unit is: on disk, in memory, or in a request under way.

All changes go through here and happen on the event loop, so that there are no locks. A unit moves along few paths: a
flight brings it (``install``), memory that runs out moves it to the disk cache, ``load_packed`` brings its stored
bytes back to memory, and ``lose`` forgets it everywhere, so that the next read fetches it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from harness.lazyfs.data.fetch import Fetched, Place
from harness.lazyfs.data.memory_cache import MemoryCache, Resident

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.errors import ColdbenchError
    from harness.formats.table import RangeSource
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.disk_cache import DiskCache
    from harness.lazyfs.data.memory_cache import Key
    from harness.lazyfs.data.units import Units

ABSENT, PACKED, INFLATED = 0, 1, 2
"""Say where a unit is on disk: nowhere, as stored bytes, or inflated."""
_KEPT_AT_ONCE = 16


class Flight:
    """Stands for a request under way, or a thread at work on a unit; waiters get the residents it brought."""

    __slots__ = ("done", "failed", "residents", "streamed")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.residents: dict[int, Resident] = {}
        self.failed: dict[int, ColdbenchError] = {}
        self.streamed = False
        """Says that nobody asked for what it brings."""


class Layer:
    """Holds one lazy layer: its units, where they come from and where they are kept on disk."""

    __slots__ = ("disk", "ends", "index", "place", "size", "starts", "units", "walked")

    def __init__(self, index: int, units: Units, source: RangeSource, disk: DiskCache) -> None:
        self.index = index
        self.units = units
        self.disk = disk
        self.place = Place(units, source, disk)
        self.size = units.size
        self.starts = units.starts
        self.ends = units.ends
        self.walked = -2
        """Names the unit read last, by which the reader notices that somebody walks through the units."""

    def __len__(self) -> int:
        return len(self.starts)


class Installed(NamedTuple):
    """Names a unit that a flight brought inflated, and that memory did not hold yet."""

    unit: int
    resident: Resident


class Residency:
    """Knows where the units of all layers are. ``nursery`` runs the spilling from memory to disk."""

    def __init__(self, memory_bytes: int, counters: Counters, nursery: trio.Nursery) -> None:
        self.layers: list[Layer] = []
        self.memory = MemoryCache(memory_bytes)
        self._counters = counters
        self._nursery = nursery
        self._states: list[bytearray] = []
        self._flights: list[dict[int, Flight]] = []
        self._spilling: trio.Event | None = None

    def add_layer(self, units: Units, source: RangeSource, disk: DiskCache) -> Layer:
        layer = Layer(len(self.layers), units, source, disk)
        self.layers.append(layer)
        states = bytearray(len(layer))
        for file, state in ((disk.packed, PACKED), (disk.inflated, INFLATED)):  # what an earlier daemon wrote
            for unit in file or ():
                states[unit] = state
        self._states.append(states)
        self._flights.append({})
        return layer

    # What is where

    def state(self, layer: Layer, unit: int) -> int:
        """Says where the unit is on disk."""
        return self._states[layer.index][unit]

    def resident(self, layer: Layer, unit: int) -> Resident | None:
        """Returns the unit in memory, if it is there."""
        return self.memory.get((layer.index, unit))

    def use(self, layer: Layer, unit: int) -> Resident | None:
        """Returns the unit in memory, if it is there, and makes it leave last."""
        return self.memory.use((layer.index, unit))

    def flight(self, layer: Layer, unit: int) -> Flight | None:
        """Returns the request or thread that is at work on the unit."""
        return self._flights[layer.index].get(unit)

    def missing(self, layer: Layer, unit: int) -> bool:
        """Says whether the unit is nowhere and nobody is fetching it."""
        return not self.is_local(layer, unit) and unit not in self._flights[layer.index]

    def is_local(self, layer: Layer, unit: int) -> bool:
        """Says whether the unit can be read without the registry, in whatever form."""
        return self._states[layer.index][unit] != ABSENT or (layer.index, unit) in self.memory

    def absent_on_disk(self, layer: Layer) -> list[int]:
        """Returns the layer's units that are on disk in no form, ascending."""
        return [unit for unit, state in enumerate(self._states[layer.index]) if state == ABSENT]

    def not_inflated(self, layer: Layer) -> list[int]:
        """Returns the layer's units that are not inflated on disk, ascending."""
        return [unit for unit, state in enumerate(self._states[layer.index]) if state != INFLATED]

    def all_local(self) -> bool:
        """Says whether every unit can be read without the registry."""
        return all(self.is_local(layer, unit) for layer in self.layers for unit in range(len(layer)))

    def is_whole(self) -> bool:
        """Says whether the disk holds every unit inflated."""
        return all(state == INFLATED for states in self._states for state in states)

    # Flights

    def take_off(self, layer: Layer, units: Sequence[int]) -> Flight:
        """Notes that from now on somebody is at work on these units."""
        flight = Flight()
        flights = self._flights[layer.index]
        for unit in units:
            flights[unit] = flight
        return flight

    def land(self, layer: Layer, units: Sequence[int], flight: Flight) -> None:
        """Notes that the work has ended, well or not; whoever waited for it goes on."""
        flights = self._flights[layer.index]
        for unit in units:
            if flights.get(unit) is flight:
                del flights[unit]
        flight.done.set()

    def install(self, layer: Layer, flight: Flight, fetched: Fetched, *, keep_packed: bool) -> list[Installed]:
        """Takes in what a flight brought; returns the units that came inflated and are new to memory.

        ``keep_packed`` keeps the stored bytes of whole units in memory, too.
        """
        states = self._states[layer.index]
        for unit in fetched.written_packed:
            states[unit] = max(states[unit], PACKED)
        for unit in fetched.written_inflated:
            states[unit] = INFLATED
        for unit, packed in fetched.packed:
            self._put(layer, flight, unit, Resident(packed))
        installed: list[Installed] = []
        for (unit, pieces, rest), stored in fetched.decoded:
            known = self.resident(layer, unit)
            if known is not None and (known.filled or known.busy):
                flight.residents[unit] = known
                continue
            resident = Resident(stored)
            resident.append(pieces, rest, keep_packed=keep_packed)
            self._put(layer, flight, unit, resident)
            installed.append(Installed(unit, resident))
        self.trim()
        return installed

    def _put(self, layer: Layer, flight: Flight, unit: int, resident: Resident) -> None:
        self.memory.put((layer.index, unit), resident)
        flight.residents[unit] = resident

    # Single units

    def add_neighbour(self, layer: Layer, unit: int, pieces: list[bytes]) -> None:
        """Keeps a whole unit that came out of another one's stored bytes, unless it is there already."""
        if (layer.index, unit) not in self.memory and self.state(layer, unit) != INFLATED:
            resident = Resident()
            resident.append(pieces, None)
            self.memory.put((layer.index, unit), resident)

    def charge(self, key: Key, resident: Resident, before: int) -> None:
        """Notes that the resident costs more or less memory than ``before``."""
        self.memory.charge(key, resident, before)

    def note_inflated(self, layer: Layer, unit: int) -> None:
        """Notes that the unit was written to the disk cache, inflated."""
        self._states[layer.index][unit] = INFLATED

    def note_filled(self, layer: Layer) -> None:
        """Notes that all of the layer was written to the disk cache, inflated."""
        self._states[layer.index][:] = bytes([INFLATED]) * len(layer)

    def lose(self, layer: Layer, unit: int) -> None:
        """Forgets the unit, as what is kept of it is bad or gone, so that the next read fetches it again."""
        self.memory.drop((layer.index, unit))
        self._states[layer.index][unit] = ABSENT

    def forget_memory(self) -> None:
        """Let go of everything in memory, since nobody reads from here any more."""
        self.memory.clear()

    # Disk

    def read_inflated(self, layer: Layer, unit: int, offset: int, size: int) -> bytes | memoryview | None:
        """Returns bytes of a unit that is inflated on disk; None, and the unit is lost, if the disk gives none."""
        inflated = layer.disk.inflated
        data = inflated.read(unit, offset - layer.starts[unit], size) if inflated is not None else None
        if data is None:
            self._states[layer.index][unit] = ABSENT
        return data

    def load_packed(self, layer: Layer, unit: int) -> None:
        """Bring a unit's stored bytes back to memory; it is lost when the disk does not give them."""
        packed = self.read_packed(layer, unit)
        if packed is None:
            self._states[layer.index][unit] = ABSENT
        else:
            self.memory.put((layer.index, unit), Resident(packed))

    @staticmethod
    def read_packed(layer: Layer, unit: int) -> bytes | None:
        """Returns a unit's stored bytes from disk; None when the disk does not give them. Changes no state."""
        _, size = layer.units.extent(unit)
        packed = layer.disk.packed.read(unit, 0, size) if layer.disk.packed is not None else None
        return None if packed is None else bytes(packed)

    async def wait_for_room(self) -> None:
        """Wait for the spilling to disk where memory is far above its budget."""
        if self.memory.used > self.memory.budget * 3 // 2 and self._spilling is not None:
            await self._spilling.wait()

    def trim(self) -> None:
        """See to it that memory gets within its budget soon."""
        if self.memory.used > self.memory.budget and self._spilling is None:
            self._spilling = trio.Event()
            self._nursery.start_soon(self._spill, self._spilling)

    async def keep(self) -> None:
        """Write to disk what only memory holds, and let it stay there, too: another daemon finds it."""
        only = [
            (key, resident)
            for key, resident in self.memory.items()
            if self._states[key[0]][key[1]] == ABSENT and not resident.busy
        ]
        for first in range(0, len(only), _KEPT_AT_ONCE):
            chosen = only[first : first + _KEPT_AT_ONCE]
            states = await trio.to_thread.run_sync(self._write_out, chosen)
            for ((index, unit), resident), state in zip(chosen, states, strict=True):
                if self.memory.get((index, unit)) is resident:  # else it was lost, or fetched anew
                    self._states[index][unit] = max(self._states[index][unit], state)

    async def _spill(self, done: trio.Event) -> None:
        """Move the coldest units to disk until the budget is kept; where the disk is full they are just dropped."""
        try:
            while victims := self.memory.victims():
                states = await trio.to_thread.run_sync(self._write_out, victims)
                for ((index, unit), resident), state in zip(victims, states, strict=True):
                    if self.memory.get((index, unit)) is not resident:  # it was lost meanwhile: what was written is bad
                        continue
                    self._states[index][unit] = max(self._states[index][unit], state)
                    if not resident.busy:
                        self.memory.drop((index, unit))
                self._counters.disk_full |= any(layer.disk.full for layer in self.layers)
        finally:
            self._spilling = None
            done.set()

    def _write_out(self, victims: list[tuple[Key, Resident]]) -> list[int]:
        return list(self._written(victims))

    def _written(self, victims: list[tuple[Key, Resident]]) -> Iterator[int]:
        """Writes victims to disk and yields each one's state then; runs in a worker thread and changes no state."""
        for (index, unit), resident in victims:
            layer, state, packed = self.layers[index], self._states[index][unit], resident.packed
            if state == INFLATED:
                yield INFLATED
            elif resident.complete and packed is None and layer.disk.inflated is not None:
                yield INFLATED if layer.disk.inflated.write(unit, resident.pieces) else ABSENT
            elif packed is not None and state != PACKED and layer.disk.packed is not None:
                yield PACKED if layer.disk.packed.write(unit, [packed]) else ABSENT
            else:
                yield ABSENT
