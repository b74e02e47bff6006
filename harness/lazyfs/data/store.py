"""This module is the one data path of all lazy modes: it turns a range of a layer into verified bytes, whoever asks.

Everything here runs on the event loop; what takes long (the network, big inflates, the disk's writes) runs in worker
threads and is installed when it is done. A unit is fetched by at most one request at a time, and nobody sees a byte of
it before its digest was checked. ``harness.lazyfs.data.residency`` knows where each unit is at the moment.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError, ContentError, DigestMismatch, RegistryError
from harness.lazyfs.data import requests
from harness.lazyfs.data.fetch import Fetched, Sink, fetch
from harness.lazyfs.data.outage import Outage
from harness.lazyfs.data.pace import Pace, block_around, pace_of
from harness.lazyfs.data.residency import INFLATED, PACKED, Residency
from harness.lazyfs.data.units import Decoded
from harness.lazyfs.data.workers import Workers
from harness.lazyfs.fuse.kernel_pages import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outcome import Outcome

    from harness.formats.table import RangeSource
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.disk_cache import DiskCache
    from harness.lazyfs.data.memory_cache import Resident
    from harness.lazyfs.data.residency import Flight, Layer
    from harness.lazyfs.data.units import Units
    from harness.lazyfs.fuse.kernel_pages import KernelPages
    from harness.model.policy import LazyPolicy
    from harness.oci.registry.link import Link

log = logging.getLogger(__name__)

INLINE_BYTES = 512 << 10
"""Inflating up to this much happens on the event loop: at 1 GB/s it takes as long as two hops to a thread."""

_AROUND_PERCENT = 60
"""Says after how much of the stored bytes a miss brings no more than near: a start that is lazy stays so."""


class Store:
    """Reads layers. ``nursery`` runs what outlives a read: read-ahead and eviction."""

    def __init__(self, policy: LazyPolicy, counters: Counters, nursery: trio.Nursery, link: Link | None = None) -> None:
        self.policy = policy
        self.link = link
        self.counters = counters
        self.residency = Residency(policy.memory_bytes, counters, nursery)
        self.waiting = 0
        """Counts foreground fetches under way; background work yields to them."""
        self.last_foreground = -1e9
        self.blob_bytes = 0
        """Counts the stored bytes of all layers."""
        self.pages: KernelPages | None = None
        """Takes inflated bytes to the kernel's page cache, too; None where nothing does."""
        self.outage = Outage()
        self._nursery = nursery
        self._foreground = Workers(max(1, policy.in_flight), "foreground")
        self._workers = Workers(64, "worker")

    @property
    def layers(self) -> Sequence[Layer]:
        return self.residency.layers

    def add_layer(self, units: Units, source: RangeSource, disk: DiskCache) -> Layer:
        layer = self.residency.add_layer(units, source, disk)
        self.counters.spans_total += len(layer)
        self.blob_bytes += sum(units.extent(len(layer) - 1)) if len(layer) else 0
        return layer

    # Reading

    def read_now(self, layer: Layer, offset: int, size: int, limit: int) -> bytes | memoryview | None:
        """Returns the bytes where that takes no waiting, else None. ``limit`` is where read-ahead must end."""
        unit = bisect_right(layer.starts, offset) - 1
        if unit < 0 or offset + size > layer.ends[unit]:
            return None
        if unit != layer.walked:
            self._walk(layer, unit, limit)
        begin = offset - layer.starts[unit]
        resident = self.residency.use(layer, unit)
        if resident is None:
            if self.residency.state(layer, unit) == INFLATED:
                return self.residency.read_inflated(layer, unit, offset, size)
            return None
        end = begin + size
        if end > resident.filled and not self._inflate_inline(layer, unit, resident, end):
            return None
        return resident.slice(begin, end)  # None as well where it was released

    async def read(self, layer: Layer, offset: int, size: int, limit: int) -> bytes | memoryview:
        """Returns the bytes at ``offset``, with zeros in gaps between units.

        Raises ColdbenchError when they cannot be had intact.
        """
        data = self.read_now(layer, offset, size, limit)
        if data is not None:
            return data
        limit_s = self.policy.read_timeout_s
        if not limit_s:
            return await self._read(layer, offset, offset + size)
        with trio.move_on_after(limit_s):
            return await self._read(layer, offset, offset + size)
        error = RegistryError(f"no answer for a read within {limit_s:g} s")
        self.outage.note_failure(error)
        raise error

    async def _read(self, layer: Layer, offset: int, end: int) -> bytes | memoryview:
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
        """Returns bytes [begin, upto) of one unit; a fetch for it brings the missing others before ``end`` along."""
        residency = self.residency
        while True:
            resident = residency.resident(layer, unit)
            if resident is None and (flight := residency.flight(layer, unit)) is not None:
                await flight.done.wait()
                if unit in flight.failed:
                    raise flight.failed[unit]
                resident = flight.residents.get(unit)
            if resident is None:
                state = residency.state(layer, unit)
                if state == INFLATED:
                    local = residency.read_inflated(layer, unit, layer.starts[unit] + begin, upto - begin)
                    if local is not None:
                        return local
                elif state == PACKED:
                    residency.load_packed(layer, unit)
                else:
                    wanted = {
                        other: min(layer.ends[other], end) - layer.starts[other]
                        for other in range(unit, bisect_left(layer.starts, end))
                        if residency.missing(layer, other)
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
        """Goes back to the stored bytes, to inflate them once more: the kernel has dropped what was released to it."""
        before = resident.cost
        resident.restart()
        self.residency.charge((layer.index, unit), resident, before)

    # Fetching

    def pace(self) -> Pace:
        """Says how much to ask for at once, as far as the registry is now."""
        return pace_of(self.policy, self.link)

    def group(
        self, layer: Layer, units: Sequence[int], max_units: int = 0, *, gap: int | None = None, most: int | None = None
    ) -> list[list[int]]:
        """Cuts ascending units into lists that one range request each may fetch (``requests.merge``).

        ``gap`` and ``most`` stand in for the policy's ``merge_gap`` and ``merge_bytes``.
        """
        gap = self.policy.merge_gap if gap is None else gap
        most = self.policy.merge_bytes if most is None else most
        return requests.merge(layer, units, gap=gap, most=most, max_units=max_units)

    async def _fetch_foreground(self, layer: Layer, unit: int, wanted: dict[int, int]) -> Resident | None:
        pace = self.pace()
        groups = self.group(layer, sorted(wanted), gap=pace.merge_gap)
        mine = next(group for group in groups if unit in group)
        block = self.policy.block_bytes
        if pace.far:
            block = block_around(pace, self.blob_bytes * _AROUND_PERCENT // 100 - self.counters.bytes_fetched)
        straddling = block // 2 if block > self.policy.block_bytes else 0
        chosen = requests.with_block(self.residency, layer, mine, block, straddling)
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

    def step(self, layer: Layer, unit: int, upto: int) -> int:
        """Returns how far to inflate when ``upto`` is needed: whole steps, and all of a small remainder.

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
        *,
        streamed: bool = False,
    ) -> Flight:
        """Fetches missing units in one request; never raises for a unit's sake (see ``Flight.failed``).

        ``streamed`` says that nobody asked for them (``harness.lazyfs.data.stream``); they are counted as such. After a
        cancel the request goes on, and what it brings is taken in when it comes.
        """
        flight = self.residency.take_off(layer, chosen)
        flight.streamed = streamed
        keep = self.pages is not None
        under_way = False
        try:
            await self.residency.wait_for_room()
            while not self.outage.admit():
                if not self.policy.wait_out_outages:
                    flight.failed = dict.fromkeys(chosen, self.outage.refusal())
                    return flight
                await self.outage.wait()
            settle = partial(self._settle, layer, chosen, flight, keep)
            bring = partial(fetch, keep_packed=keep)
            under_way = True
            work = workers or self._workers
            settle(await work.attempt(bring, layer.place, chosen, upto, sink, self.policy, late=settle))
        finally:
            if not under_way:
                self.residency.land(layer, chosen, flight)
        return flight

    def _settle(
        self, layer: Layer, chosen: list[int], flight: Flight, keep_packed: bool, result: Outcome[Fetched]
    ) -> None:
        """Take in what a request brought, or why it failed."""
        try:
            fetched = result.unwrap()
            self.outage.note_success()
            if flight.streamed:
                self.counters.bytes_streamed += fetched.received_bytes
            self._install(layer, flight, fetched, keep_packed=keep_packed)
        except RegistryError as error:
            self.outage.note_failure(error)
            if not self.outage.open:
                log.warning("layer %d, units %d-%d: %s", layer.index, chosen[0], chosen[-1], error)
            flight.failed = dict.fromkeys(chosen, error)
        except ColdbenchError as error:
            self.outage.note_success()  # it answered, though with nothing to go on with
            log.warning("layer %d, units %d-%d: %s", layer.index, chosen[0], chosen[-1], error)
            flight.failed = dict.fromkeys(chosen, error)
        finally:
            self.residency.land(layer, chosen, flight)

    def _install(self, layer: Layer, flight: Flight, fetched: Fetched, *, keep_packed: bool) -> None:
        self.counters.count(fetched)
        for unit, resident in self.residency.install(layer, flight, fetched, keep_packed=keep_packed):
            self._push(layer, unit, resident, 0)
        for unit, error in fetched.failed.items():
            self.note_bad(layer, unit, error)
            flight.failed[unit] = error

    def note_bad(self, layer: Layer, unit: int, error: ColdbenchError) -> None:
        """Count and log bytes that are not what they should be."""
        if isinstance(error, DigestMismatch):
            self.counters.digest_mismatches += 1
        log.error("layer %d, unit %d: %s", layer.index, unit, error)

    def _walk(self, layer: Layer, unit: int, limit: int) -> None:
        """Notes that a reader came to another unit, and fetches ahead when it came from the one before."""
        sequential = unit == layer.walked + 1
        layer.walked = unit
        ahead = self.policy.readahead_units
        if not sequential or not ahead:
            return
        stop = min(unit + 1 + ahead, bisect_left(layer.starts, limit))
        units = [u for u in range(unit + 1, stop) if self.residency.missing(layer, u)]
        if 2 * len(units) < stop - unit - 1:
            return  # more than half of it is there or on its way: the next request is to be worth it
        for group in self.group(layer, units):
            self._nursery.start_soon(self.fetch, layer, group, {}, Sink.MEMORY, self._foreground)

    # Inflating

    def _inflate_inline(self, layer: Layer, unit: int, resident: Resident, upto: int) -> bool:
        """Inflates on the event loop when it is little; returns whether ``upto`` is there now."""
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
        """Inflates off the event loop, or waits for who is at it; the caller looks again how far the unit is."""
        if resident.busy:
            await self._until_idle(layer, unit)
            return
        if resident.whole:
            raise ContentError(
                f"layer {layer.index}, unit {unit}: ends after {resident.filled} bytes, {upto} are needed"
            )
        flight = self.residency.take_off(layer, [unit])
        resident.busy = True
        target = self.step(layer, unit, upto)
        try:
            decoded = await self._workers.run(self._work, layer, unit, resident, target)
            self._take(layer, unit, resident, decoded)
        except ColdbenchError as error:
            if isinstance(error, ContentError):
                self._lose(layer, unit, error)
            flight.failed[unit] = error
            raise
        finally:
            resident.busy = False
            flight.residents[unit] = resident
            self.residency.land(layer, [unit], flight)

    async def _until_idle(self, layer: Layer, unit: int) -> None:
        """Wait for the thread that is at work on the unit."""
        busy = self.residency.flight(layer, unit)
        await (busy.done.wait() if busy is not None else trio.lowlevel.checkpoint())

    @staticmethod
    def _work(layer: Layer, unit: int, resident: Resident, target: int) -> list[Decoded]:
        """Inflates up to ``target`` (and loads side data), on whichever thread; changes nothing of the store."""
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
                self.residency.charge((layer.index, unit), resident, before)
                self._push(layer, unit, resident, begin)
            else:
                self.residency.add_neighbour(layer, piece.unit, piece.pieces)
        self.residency.trim()

    def _lose(self, layer: Layer, unit: int, error: ColdbenchError) -> None:
        self.note_bad(layer, unit, error)
        self.residency.lose(layer, unit)

    def _push(self, layer: Layer, unit: int, resident: Resident, begin: int) -> None:
        """Hands what was inflated from ``begin`` on to the kernel, and lets go of what went there before."""
        pages = self.pages
        if pages is None:
            return
        start = layer.starts[unit]
        piece = Piece((layer.index, unit), resident, start + begin, start + resident.filled)
        pages.push(piece, resident.pieces[bisect_right(resident.ends, begin) :])
        for key, owner, low, high in pages.stored():
            before, start = owner.cost, self.layers[key[0]].starts[key[1]]
            owner.release(low - start, high - start)
            self.residency.charge(key, owner, before)
