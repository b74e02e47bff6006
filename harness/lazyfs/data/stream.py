"""Streams the layers in order before readiness, where a start would else wait for round trips with the CPU idle.

A lazy start far from the registry spends its time on misses that depend on one another, while CPU and bandwidth lie
idle: an image with large libraries took 38 s at 230 ms a miss, of which 1.35 s were CPU time, and its full pull 8.5 s.
So the rest of the layers comes along in large requests, as stored bytes that are verified and kept, and inflated when
they are read. Reads go first: their misses are requests of their own, beside the stream, and what they fetch the
stream leaves out. Where the CPU is the limit nothing is streamed, nor where the link is: a stream that turns out to
take longer than the round trips that it saves is given up. What was streamed, since when and why is counted and told
(``Streamed``), since a lazy start that brings the whole image has to say so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError
from harness.lazyfs.data.fetch import Sink
from harness.lazyfs.data.stream_width import FIRST_WIDTH, FULL_WIDTH, Width, Worth, pays

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from harness.kernel.cpu_meter import CpuMeter, CpuReading
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store
    from harness.oci.registry.link import Link

_POLL_S = 0.1
_MISS_CORE_S = 0.008
"""Says how much CPU a start takes from one miss to the next, all processes of the machine together: 1.1 to 1.4 CPU
seconds for 150 to 190 requests (``import pandas``, an inference runtime, mode erofs)."""
_IDLE_MISSES = 2.5
"""Says how many times ``_MISS_CORE_S`` has to lie idle while a miss is on its way, if a start is to wait for misses."""
_FORESEEN_S = 0.05
"""Says from which latency of a miss on waiting is foreseen: a host on which ten others worked held up each of the few
requests before a mount for 20 ms, next to the registry."""
_DELAYED_SHARE = 0.2
"""Says for which part of the time a start may wait for a core; beyond it, there is no idle CPU, whatever was used."""
_WAITING_SHARE, _IDLE_SHARE = 0.5, 0.6
"""Say for which part of the time reads must wait, and which part of the CPU must be left, for it to count as idle. An
inference runtime at 0.25 cores and 31 ms a round left 41 to 53 %, and streaming (1.2 CPU ms per MB) took 1.14 times as
long there in mode erofs, 0.94 and 0.95 in the others."""
_WATCHED_S = 0.5
_UNKNOWN_RATE = 1e9
_FIRST_BYTES = 512 << 10
"""Limits the first two laps' requests; each lap after them has twice the limit, up to the policy's: what is under way
when a stream is given up was asked for in vain."""


@dataclass(frozen=True, slots=True)
class Idleness:
    """Says why the layers are streamed: seconds of a round, cores that may be used, and the part of them that was idle.

    That part is None where it was foreseen, before anything was read.
    """

    latency_s: float
    cores: float
    idle_share: float | None = None

    def __str__(self) -> str:
        seen = "as foreseen" if self.idle_share is None else f"{self.idle_share:.0%} of the CPU idle"
        return f"{1e3 * self.latency_s:.0f} ms a round, {self.cores:g} cores, {seen}"


def foreseen(latency_s: float, cores: float) -> bool:
    """Says whether misses of this latency leave so much CPU idle that a start waits for them, whatever it reads."""
    return latency_s >= _FORESEEN_S and latency_s * cores >= _IDLE_MISSES * _MISS_CORE_S


def seen(before: CpuReading, after: CpuReading, wall_s: float, waiting_s: float, latency_s: float) -> float | None:
    """Returns the part of the CPU that was idle while reads waited for the registry; None where that was too little.

    None as well where round trips of ``latency_s`` cannot be the reason, since a start uses more CPU from one miss to
    the next than lies idle in one: then the link is full, or the registry has no CPU itself, as in a storm.
    """
    if latency_s * after.cores < _MISS_CORE_S:
        return None
    if after.delayed_s - before.delayed_s > _DELAYED_SHARE * wall_s:
        return None
    idle = 1.0 - (after.used_s - before.used_s) / (wall_s * after.cores)
    return idle if idle >= _IDLE_SHARE and waiting_s >= _WAITING_SHARE * wall_s else None


class Stream:
    """Streams one image; ``besides`` brings what reading takes beside the layers, and may raise ColdbenchError."""

    def __init__(
        self,
        store: Store,
        cpu: CpuMeter,
        prefetched: trio.Event | None = None,
        besides: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """``prefetched``, where there is a prefetch list, is waited for: what it names goes first."""
        self._store = store
        self._cpu = cpu
        self._prefetched = prefetched
        self._besides = besides
        self._wake = trio.Event()

    async def run(self, ready: trio.Event) -> None:
        """Wait until the CPU lies idle while reads wait for a far registry, then stream; end at ``ready``."""
        store = self._store
        if not (store.policy.stream and store.policy.adaptive) or any(
            layer.disk.packed is None for layer in store.layers
        ):
            return
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await ready.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            why = await self._idleness()
            if not ready.is_set() and not store.residency.all_local():
                store.counters.streamed_since_ns = time.monotonic_ns()
                store.counters.streamed_why = str(why)
                await self._stream(nursery, why.latency_s)
            nursery.cancel_scope.cancel()

    async def _idleness(self) -> Idleness:
        if self._prefetched is not None:
            await self._prefetched.wait()
        store, link = self._store, self._store.link
        while True:
            # Near, nothing is read: looking ten times a second is CPU that the start wants.
            before = self._cpu.read() if link is not None and link.far else None
            if link is not None and before is not None:
                if self._prefetched is None and foreseen(link.latency_s, before.cores):
                    return Idleness(link.latency_s, before.cores)
                begun, waited = trio.current_time(), 0.0
                while (wall_s := trio.current_time() - begun) < _WATCHED_S:
                    await trio.sleep(_POLL_S)
                    waited += _POLL_S if store.waiting else 0.0
                after = self._cpu.read()
                if after is None or link.is_full:
                    continue
                idle = seen(before, after, wall_s, waited, link.latency_s)
                # Last, since it goes through every unit, with CPU that the start wants.
                if idle is not None and self._may_pay(link):
                    return Idleness(link.latency_s, after.cores, idle)
            else:
                await trio.sleep(_POLL_S)

    def _may_pay(self, link: Link) -> bool:
        """Says whether streaming would pay if as many requests as there can be kept the rate that the reads' have."""
        return pays(self._left_bytes(), link.latency_s, FULL_WIDTH * link.rate(_UNKNOWN_RATE))

    def _left_bytes(self) -> int:
        store = self._store
        return sum(
            layer.units.extent(unit)[1] for layer in store.layers for unit in store.residency.absent_on_disk(layer)
        )

    async def _stream(self, nursery: trio.Nursery, latency_s: float) -> None:
        store = self._store
        if self._besides is not None:
            nursery.start_soon(self._bring_besides, self._besides)
        width, worth, under_way = Width(), Worth(self._left_bytes(), latency_s), 0

        async def bring(layer: Layer, group: list[int]) -> None:
            nonlocal under_way
            begun, allowed = trio.current_time(), width.now
            try:
                size = await self._bring(layer, group)
            finally:
                under_way -= 1
                self._wake.set()
            took = trio.current_time() - begun
            if worth.known:
                width.note(allowed, size, took)
            worth.note(allowed, size, took)

        async with trio.open_nursery() as requests:
            for layer, group in self._groups():
                while under_way >= width.now:
                    self._wake = trio.Event()
                    await self._wake.wait()
                if self._ended():
                    return
                if not worth.given:
                    store.counters.streamed_why += f"; given up, at {worth.rate_bytes_s / 1e6:.1f} MB/s"
                    return
                under_way += 1
                requests.start_soon(bring, layer, group)

    def _groups(self) -> Iterator[tuple[Layer, list[int]]]:
        """Cuts what no disk holds yet into requests, the first ones small."""
        store, made = self._store, 0
        for layer in store.layers:
            units = store.residency.absent_on_disk(layer)
            while units:
                most = min(_FIRST_BYTES << max(0, made // FIRST_WIDTH - 1), store.policy.merge_bytes)
                groups = store.group(layer, units, most=most)
                if most < store.policy.merge_bytes:
                    del groups[FIRST_WIDTH - made % FIRST_WIDTH :]
                for group in groups:
                    made += 1
                    yield layer, group
                units = units[sum(map(len, groups)) :]

    async def _bring(self, layer: Layer, group: list[int]) -> int:
        """Fetches what is missing of a group; returns the bytes that came."""
        store = self._store
        size = 0
        missing = [unit for unit in group if store.residency.missing(layer, unit)]
        for units in store.group(layer, missing):
            flight = await store.fetch(layer, units, {}, Sink.PACKED, streamed=True)
            size += 0 if flight.failed else sum(layer.units.extent(unit)[1] for unit in units)
        return size

    def _ended(self) -> bool:
        """Says whether the disk takes no more, or the registry is away: the background fetch will see to the rest."""
        store = self._store
        return store.outage.open or any(layer.disk.failure is not None for layer in store.layers)

    @staticmethod
    async def _bring_besides(besides: Callable[[], Awaitable[object]]) -> None:
        try:
            await besides()
        except ColdbenchError:
            return  # The background fetch tries again, and says why where it fails.
