"""The one data path of all lazy modes: verified bytes of lazily fetched layers, whichever presentation asks.

Everything here runs on the event loop; what takes long (the network, big inflates, the disk's writes) runs in worker
threads and is installed when it is done, so that there are no locks. A unit is fetched by at most one request at a
time, and nobody sees a byte of it before its digest was checked.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError, ContentError, DigestMismatch
from harness.lazyfs.data.fetch import Fetched, Place, Sink, fetch
from harness.lazyfs.data.memory_cache import MemoryCache, Resident
from harness.lazyfs.data.pace import Pace, around_of, pace_of
from harness.lazyfs.data.units import Decoded
from harness.lazyfs.data.workers import Workers
from harness.lazyfs.fuse.kernel_pages import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.table import RangeSource
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.disk_cache import DiskCache
    from harness.lazyfs.data.memory_cache import Key
    from harness.lazyfs.data.units import Units
    from harness.lazyfs.fuse.kernel_pages import KernelPages
    from harness.model.policy import LazyPolicy
    from harness.oci.registry.link import Link

log = logging.getLogger(__name__)

ABSENT, PACKED, INFLATED = 0, 1, 2
"""Where a unit is on disk: nowhere, as stored bytes, or inflated."""

INLINE_BYTES = 512 << 10
"""Inflating up to this much happens on the event loop: at 1 GB/s it takes as long as two hops to a thread."""


_AROUND_PERCENT = 60
"""Once this much of the stored bytes has come, a miss brings no more than near: a start that is lazy stays so."""


class Flight:
    """A request under way, or a thread at work on a unit; waiters get the residents it brought."""

    __slots__ = ("done", "failed", "residents")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.residents: dict[int, Resident] = {}
        self.failed: dict[int, ColdbenchError] = {}


class Layer:
    """One lazy layer's place in the store."""

    def __init__(self, index: int, units: Units, source: RangeSource, disk: DiskCache) -> None:
        self.index = index
        self.units = units
        self.disk = disk
        self.place = Place(units, source, disk)
        self.size = units.size
        self.starts = units.starts
        self.ends = units.ends
        self.state = bytearray(len(units.starts))
        self.flights: dict[int, Flight] = {}
        self.walked = -2
        """The unit read last, to notice a reader walking through units."""


class Store:
    """Reads of layers. ``nursery`` holds what outlives a read: read-ahead and eviction."""

    def __init__(self, policy: LazyPolicy, counters: Counters, nursery: trio.Nursery, link: Link | None = None) -> None:
        self.policy = policy
        self.link = link
        self.counters = counters
        self.layers: list[Layer] = []
        self.memory = MemoryCache(policy.memory_bytes)
        self.waiting = 0
        """Foreground fetches under way; background work yields to them."""
        self.last_foreground = -1e9
        self.blob_bytes = 0
        """Stored bytes of all layers."""
        self.pages: KernelPages | None = None
        """Where inflated bytes go besides, if anywhere."""
        self._nursery = nursery
        self._foreground = Workers(max(1, policy.in_flight), "foreground")
        self._workers = Workers(64, "worker")
        self._spilling: trio.Event | None = None

    def add_layer(self, units: Units, source: RangeSource, disk: DiskCache) -> Layer:
        layer = Layer(len(self.layers), units, source, disk)
        self.layers.append(layer)
        self.counters.spans_total += len(units.starts)
        self.blob_bytes += sum(units.extent(len(units.starts) - 1)) if units.starts else 0
        return layer

    # Reading

    def read_now(self, layer: Layer, offset: int, size: int, limit: int) -> bytes | memoryview | None:
        """The bytes where that takes no waiting, else None. ``limit`` is where read-ahead must end."""
        unit = bisect_right(layer.starts, offset) - 1
        if unit < 0 or offset + size > layer.ends[unit]:
            return None
        if unit != layer.walked:
            self._walk(layer, unit, limit)
        begin = offset - layer.starts[unit]
        key = (layer.index, unit)
        resident = self.memory.units.get(key)
        if resident is None:
            if layer.state[unit] == INFLATED:
                return self._from_disk(layer, unit, offset, size)
            return None
        self.memory.units.move_to_end(key)
        end = begin + size
        if end > resident.filled and not self._inflate_inline(layer, unit, resident, end):
            return None
        return resident.slice(begin, end)  # None as well where it was released

    async def read(self, layer: Layer, offset: int, size: int, limit: int) -> bytes | memoryview:
        """Bytes at ``offset``, zeros in gaps between units; raises ColdbenchError when they cannot be had intact."""
        data = self.read_now(layer, offset, size, limit)
        if data is not None:
            return data
        end = offset + size
        first = max(0, bisect_right(layer.starts, offset) - 1)
        last = bisect_left(layer.starts, end)
        touched = [unit for unit in range(first, last) if layer.ends[unit] > offset]
        parts: list[bytes | memoryview] = []
        position = offset
        for unit in touched:
            start, stop = max(layer.starts[unit], offset), min(layer.ends[unit], end)
            if start > position:
                parts.append(bytes(start - position))
            origin = layer.starts[unit]
            parts.append(await self._unit(layer, unit, start - origin, stop - origin, end))
            position = stop
        if position < end:
            parts.append(bytes(end - position))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _unit(self, layer: Layer, unit: int, begin: int, upto: int, end: int) -> bytes | memoryview:
        """Bytes [begin, upto) of one unit; when it has to be fetched, the missing others before ``end`` come along."""
        while True:
            resident = self.memory.units.get((layer.index, unit))
            if resident is None and (flight := layer.flights.get(unit)) is not None:
                await flight.done.wait()
                if unit in flight.failed:
                    raise flight.failed[unit]
                resident = flight.residents.get(unit)
            if resident is None:
                state = layer.state[unit]
                if state == INFLATED:
                    local = self._from_disk(layer, unit, layer.starts[unit] + begin, upto - begin)
                    if local is not None:
                        return local
                elif state == PACKED:
                    self._load_packed(layer, unit)
                else:
                    wanted = {
                        other: min(layer.ends[other], end) - layer.starts[other]
                        for other in range(unit, bisect_left(layer.starts, end))
                        if self.missing(layer, other)
                    }
                    resident = await self._fetch_foreground(layer, unit, wanted)
            if resident is None:
                continue
            if resident.filled < upto and not self._inflate_inline(layer, unit, resident, upto):
                await self._inflate_in_thread(layer, unit, resident, upto)
                if resident.filled < upto:
                    continue
            data = resident.slice(begin, upto)
            if data is not None:
                return data
            if resident.busy:
                await self._until_idle(layer, unit)
            else:
                self._restart(layer, unit, resident)

    def _restart(self, layer: Layer, unit: int, resident: Resident) -> None:
        """The kernel has dropped what was released to it: inflate from the stored bytes once more."""
        before = resident.cost
        resident.restart()
        self.memory.charge((layer.index, unit), resident, before)

    def missing(self, layer: Layer, unit: int) -> bool:
        """Whether the unit is nowhere and nobody is fetching it."""
        return (
            layer.state[unit] == ABSENT and unit not in layer.flights and (layer.index, unit) not in self.memory.units
        )

    # Fetching

    def pace(self) -> Pace:
        """How much to ask for at once, as far as the registry is now."""
        return pace_of(self.policy, self.link)

    def group(
        self, layer: Layer, units: Sequence[int], max_units: int = 0, *, gap: int | None = None, most: int | None = None
    ) -> list[list[int]]:
        """Ascending units cut into lists that one range request each may fetch.

        ``gap`` and ``most`` stand in for the policy's ``merge_gap`` and ``merge_bytes``.
        """
        groups = list[list[int]]()
        gap = self.policy.merge_gap if gap is None else gap
        most = self.policy.merge_bytes if most is None else most
        group_start = group_end = 0
        for unit in units:
            start, size = layer.units.extent(unit)
            joins = (
                bool(groups)
                and group_start <= start <= group_end + gap
                and max(group_end, start + size) - group_start <= most
                and (not max_units or len(groups[-1]) < max_units)
            )
            if joins:
                groups[-1].append(unit)
                group_end = max(group_end, start + size)
            else:
                groups.append([unit])
                group_start, group_end = start, start + size
        return groups

    async def _fetch_foreground(self, layer: Layer, unit: int, wanted: dict[int, int]) -> Resident | None:
        pace = self.pace()
        groups = self.group(layer, sorted(wanted), gap=pace.merge_gap)
        mine = next(group for group in groups if unit in group)
        if pace.far:
            allowance = self.blob_bytes * _AROUND_PERCENT // 100 - self.counters.bytes_fetched
            block = around_of(pace, allowance)
            chosen = self._with_block(layer, mine, block, block // 2 if block > self.policy.block_bytes else 0)
        else:
            chosen = self._with_block(layer, mine, self.policy.block_bytes)
        self.waiting += 1
        try:
            upto = {u: self.step(layer, u, wanted[u]) for u in mine}
            flight = await self.fetch(layer, chosen, upto, Sink.MEMORY, self._foreground)
        finally:
            self.waiting -= 1
            self.last_foreground = trio.current_time()
        if unit in flight.failed:
            raise flight.failed[unit]
        return flight.residents.get(unit)

    def _with_block(self, layer: Layer, units: list[int], block: int, straddling: int = 0) -> list[int]:
        """``units`` and the missing ones beside them that lie in the same aligned blocks of the blob.

        Units of at most ``straddling`` bytes may lie there in part: nothing else would bring them but one more request.
        """
        extent = layer.units.extent
        if not block:
            return units
        start, size = extent(units[0])
        low = start - start % block
        start, size = extent(units[-1])
        high = -(-(start + size) // block) * block
        first, last = units[0], units[-1]
        while first > 0 and self.missing(layer, first - 1):
            start, size = extent(first - 1)
            if (start + size <= low if size <= straddling else start < low) or start > extent(first)[0]:
                break
            first -= 1
        while last + 1 < len(layer.starts) and self.missing(layer, last + 1):
            start, size = extent(last + 1)
            if start < extent(last)[0] or (start >= high if size <= straddling else start + size > high):
                break
            last += 1
        return [*range(first, units[0]), *units, *range(units[-1] + 1, last + 1)]

    def step(self, layer: Layer, unit: int, upto: int) -> int:
        """How far to inflate when ``upto`` is needed: whole steps, and all of a small remainder.

        Steps end at multiples in the layer, so that pages end there, too.
        """
        start = layer.starts[unit]
        size = layer.ends[unit] - start
        step = self.policy.inflate_step
        if not self.policy.partial_inflate or not step:
            return size
        target = -(-(start + upto) // step) * step - start
        return size if target + (step >> 1) >= size else target

    async def fetch(
        self,
        layer: Layer,
        chosen: list[int],
        upto: dict[int, int],
        sink: Sink,
        workers: Workers | None = None,
    ) -> Flight:
        """One request for units that are missing; never raises for a unit's sake (see ``Flight.failed``)."""
        flight = Flight()
        for unit in chosen:
            layer.flights[unit] = flight
        try:
            if self.memory.used > self.memory.budget * 3 // 2 and self._spilling is not None:
                await self._spilling.wait()
            work = workers or self._workers
            keep = self.pages is not None
            fetched = await work.run(partial(fetch, keep_packed=keep), layer.place, chosen, upto, sink, self.policy)
            self._install(layer, flight, fetched)
        except ColdbenchError as error:
            log.warning("layer %d, units %d-%d: %s", layer.index, chosen[0], chosen[-1], error)
            flight.failed = dict.fromkeys(chosen, error)
        finally:
            for unit in chosen:
                if layer.flights.get(unit) is flight:
                    del layer.flights[unit]
            flight.done.set()
        return flight

    def _install(self, layer: Layer, flight: Flight, fetched: Fetched) -> None:
        counters = self.counters
        counters.requests += 1
        counters.bytes_fetched += fetched.received_bytes
        counters.bytes_inflated += fetched.inflated_bytes
        counters.spans_fetched += len(fetched.decoded) + len(fetched.packed)
        counters.spans_fetched += len(fetched.written_packed) + (
            0 if fetched.decoded else len(fetched.written_inflated)
        )
        for unit in fetched.written_packed:
            layer.state[unit] = max(layer.state[unit], PACKED)
        for unit in fetched.written_inflated:
            layer.state[unit] = INFLATED
        for unit, packed in fetched.packed:
            self._put(layer, flight, unit, Resident(packed))
        for (unit, pieces, rest), stored in fetched.decoded:
            known = self.memory.units.get((layer.index, unit))
            if known is not None and (known.filled or known.busy):
                flight.residents[unit] = known
                continue
            resident = Resident(stored)
            resident.append(pieces, rest, keep_packed=self.pages is not None)
            self._put(layer, flight, unit, resident)
            self._push(layer, unit, resident, 0)
        for unit, error in fetched.failed.items():
            self.note_bad(layer, unit, error)
            flight.failed[unit] = error
        self._trim()

    def _put(self, layer: Layer, flight: Flight, unit: int, resident: Resident) -> None:
        self.memory.put((layer.index, unit), resident)
        flight.residents[unit] = resident

    def note_bad(self, layer: Layer, unit: int, error: ColdbenchError) -> None:
        """Count and log bytes that are not what they should be."""
        if isinstance(error, DigestMismatch):
            self.counters.digest_mismatches += 1
        log.error("layer %d, unit %d: %s", layer.index, unit, error)

    def _walk(self, layer: Layer, unit: int, limit: int) -> None:
        """A reader came to another unit; fetch ahead when it came from the one before."""
        sequential = unit == layer.walked + 1
        layer.walked = unit
        ahead = self.policy.readahead_units
        if not sequential or not ahead:
            return
        stop = min(unit + 1 + ahead, bisect_left(layer.starts, limit))
        units = [u for u in range(unit + 1, stop) if self.missing(layer, u)]
        if 2 * len(units) < stop - unit - 1:
            return  # more than half of it is there or on its way: the next request is to be worth it
        for group in self.group(layer, units):
            self._nursery.start_soon(self.fetch, layer, group, {}, Sink.MEMORY, self._foreground)

    # Inflating

    def _inflate_inline(self, layer: Layer, unit: int, resident: Resident, upto: int) -> bool:
        """Inflate on the event loop when it is little; whether ``upto`` is there now."""
        if resident.busy or resident.whole:
            return False
        target = self.step(layer, unit, upto)
        if target - resident.filled > INLINE_BYTES or not (resident.rest or layer.units.ready(unit)):
            return False
        try:
            self._take(layer, unit, resident, self._work(layer, unit, resident, target))
        except ContentError as error:
            self._lose(layer, unit, error)
            raise
        return resident.filled >= upto

    async def _inflate_in_thread(self, layer: Layer, unit: int, resident: Resident, upto: int) -> None:
        """The same off the event loop, or wait for who is at it; the caller looks again how far the unit is."""
        if resident.busy:
            await self._until_idle(layer, unit)
            return
        if resident.whole:
            raise ContentError(
                f"layer {layer.index}, unit {unit}: ends after {resident.filled} bytes, {upto} are needed"
            )
        flight = layer.flights[unit] = Flight()
        resident.busy = True
        target = self.step(layer, unit, upto)
        try:
            decoded = await self._workers.run(self._work, layer, unit, resident, target)
            self._take(layer, unit, resident, decoded)
        except ColdbenchError as error:
            self._lose(layer, unit, error)
            flight.failed[unit] = error
            raise
        finally:
            resident.busy = False
            if layer.flights.get(unit) is flight:
                del layer.flights[unit]
            flight.residents[unit] = resident
            flight.done.set()

    @staticmethod
    async def _until_idle(layer: Layer, unit: int) -> None:
        """Wait for the thread that is at work on the unit."""
        busy = layer.flights.get(unit)
        await (busy.done.wait() if busy is not None else trio.lowlevel.checkpoint())

    @staticmethod
    def _work(layer: Layer, unit: int, resident: Resident, target: int) -> list[Decoded]:
        """Pure computation (and the loading of side data), on whichever thread; changes nothing of the store."""
        if resident.rest is not None:
            missing = target - resident.filled
            more = resident.rest.inflate(missing)
            return [Decoded(unit, more, resident.rest if sum(map(len, more)) == missing else None)]
        assert resident.packed is not None
        if not layer.units.ready(unit):
            layer.units.load([unit])
        return layer.units.decode(unit, resident.packed, target)

    def _take(self, layer: Layer, unit: int, resident: Resident, decoded: list[Decoded]) -> None:
        """Install what ``_work`` gave: more of this unit, and perhaps other units from the same stored bytes."""
        for piece in decoded:
            size = sum(map(len, piece.pieces))
            self.counters.bytes_inflated += size
            if piece.unit == unit:
                before, begin = resident.cost, resident.filled
                done = begin + size >= layer.ends[unit] - layer.starts[unit]
                resident.append(piece.pieces, None if done else piece.rest, keep_packed=self.pages is not None)
                self.memory.charge((layer.index, unit), resident, before)
                self._push(layer, unit, resident, begin)
            elif (layer.index, piece.unit) not in self.memory.units and layer.state[piece.unit] != INFLATED:
                other = Resident()
                other.append(piece.pieces, None)
                self.memory.put((layer.index, piece.unit), other)
        self._trim()

    def _lose(self, layer: Layer, unit: int, error: ColdbenchError) -> None:
        """What is kept of the unit is bad: forget it, so that the next read fetches it again."""
        self.note_bad(layer, unit, error)
        self.memory.drop((layer.index, unit))
        layer.state[unit] = ABSENT

    # Disk

    def _from_disk(self, layer: Layer, unit: int, offset: int, size: int) -> bytes | None:
        data = layer.disk.inflated.read(offset, size) if layer.disk.inflated else None
        if data is None:
            layer.state[unit] = ABSENT
        return data

    def _load_packed(self, layer: Layer, unit: int) -> None:
        start, size = layer.units.extent(unit)
        packed = layer.disk.packed.read(start, size) if layer.disk.packed else None
        if packed is None:
            layer.state[unit] = ABSENT
        else:
            self.memory.put((layer.index, unit), Resident(packed))

    def _push(self, layer: Layer, unit: int, resident: Resident, begin: int) -> None:
        """What was inflated from ``begin`` on goes to the kernel; what went there before is let go of here."""
        pages = self.pages
        if pages is None:
            return
        start = layer.starts[unit]
        piece = Piece((layer.index, unit), resident, start + begin, start + resident.filled)
        pages.push(piece, resident.pieces[bisect_right(resident.ends, begin) :])
        for key, owner, low, high in pages.stored():
            before, start = owner.cost, self.layers[key[0]].starts[key[1]]
            owner.release(low - start, high - start)
            self.memory.charge(key, owner, before)

    def _trim(self) -> None:
        if self.memory.used > self.memory.budget and self._spilling is None:
            self._spilling = trio.Event()
            self._nursery.start_soon(self._spill, self._spilling)

    async def _spill(self, done: trio.Event) -> None:
        """Move the coldest units to disk until the budget is kept; where the disk is full they are just dropped."""
        try:
            while victims := self.memory.victims():
                states = await trio.to_thread.run_sync(self._write_out, victims)
                for (key, resident), state in zip(victims, states, strict=True):
                    layer = self.layers[key[0]]
                    layer.state[key[1]] = max(layer.state[key[1]], state)
                    if self.memory.units.get(key) is resident and not resident.busy:
                        self.memory.drop(key)
                if any(file.full for la in self.layers for file in (la.disk.inflated, la.disk.packed) if file):
                    self.counters.disk_full = True
        finally:
            self._spilling = None
            done.set()

    def _write_out(self, victims: list[tuple[Key, Resident]]) -> list[int]:
        states = []
        for (index, unit), resident in victims:
            layer, state = self.layers[index], ABSENT
            packed = resident.packed
            if layer.state[unit] == INFLATED:
                state = INFLATED
            elif resident.complete and packed is None and layer.disk.inflated is not None:
                written = layer.disk.inflated.write_pieces(layer.starts[unit], resident.pieces)
                state = INFLATED if written else ABSENT
            elif packed is not None and layer.state[unit] != PACKED and layer.disk.packed is not None:
                state = PACKED if layer.disk.packed.write(layer.units.extent(unit)[0], packed) else ABSENT
            states.append(state)
        return states
