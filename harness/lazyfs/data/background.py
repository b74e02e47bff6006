"""Brings the rest of the image to the disk cache after the start, and goes on after an outage until all is local.

Stored bytes are kept as they came and inflated when they are read. The log says each change of state once: paused and
why, with how much is missing, then resumed or ended.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError
from harness.lazyfs.data.fetch import Sink
from harness.lazyfs.data.prefetch import yield_to_foreground

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0
_GIVE_UP_AFTER = 5
"""Says after how many failed requests in a row a round ends."""


class Background:
    """Fetches everything to the disk cache, yielding to reads, and then does ``besides``.

    That returns whether it worked, or raises ColdbenchError, and is tried again in a later round.
    """

    def __init__(self, store: Store, besides: Callable[[], Awaitable[bool]] | None = None) -> None:
        self._store = store
        self._besides = besides
        self._paused = False

    async def run(self) -> bool:
        """Fetches until all is local; returns False when the disk takes no more, or where the policy gives up."""
        policy = self._store.policy
        await trio.sleep(policy.background_after_s)
        pause_s, missing = policy.background_retry_s, self.missing_bytes()
        while (why := await self._round()) is not None:
            if self._disk_ended():
                log.warning("background fetch ends: the disk cache takes no more; %s", self._progress())
                return False
            if not policy.background_resumes:
                log.warning("background fetch ends: %s; %s", why, self._progress())
                return False
            if not self._paused:
                self._paused = True
                log.warning("background fetch paused: %s; %s", why, self._progress())
            left = self.missing_bytes()
            pause_s = policy.background_retry_s if left < missing else min(2 * pause_s, LONGEST_PAUSE_S)
            missing = left
            await trio.sleep(pause_s)
        if self._paused:
            log.warning("background fetch resumed and complete")
        return True

    def missing_bytes(self) -> int:
        """Counts the stored bytes that are nowhere on this machine."""
        residency = self._store.residency
        return sum(
            layer.units.extent(unit)[1]
            for layer in self._store.layers
            for unit in residency.absent_on_disk(layer)
            if not residency.is_local(layer, unit)
        )

    def _progress(self) -> str:
        return f"{self.missing_bytes() / 1e6:.1f} of {self._store.blob_bytes / 1e6:.1f} MB missing"

    def _disk_ended(self) -> bool:
        """Says whether nothing can be kept any more, which ends the fetch."""
        store = self._store
        store.counters.disk_full |= any(layer.disk.full for layer in store.layers)
        return any(layer.disk.packed is None or layer.disk.failure is not None for layer in store.layers)

    async def _round(self) -> str | None:
        """Fetches what is missing; returns None when everything is local, else why the round ended."""
        store, policy, failures = self._store, self._store.policy, 0
        for layer in store.layers:
            absent = store.residency.absent_on_disk(layer)
            batches = store.group(layer, absent, policy.background_units)
            position = 0
            while position < len(batches):
                await yield_to_foreground(store)
                chosen = batches[position : position + policy.background_in_flight]
                position += len(chosen)
                async with trio.open_nursery() as nursery:
                    for batch in chosen:
                        nursery.start_soon(self._bring, layer, batch)
                if self._disk_ended():
                    return "the disk cache takes no more"
                if policy.background_resumes and store.outage.open:
                    return str(store.outage.refusal())
                lost = any(store.residency.missing(layer, unit) for batch in chosen for unit in batch)
                failures = failures + 1 if lost else 0
                if failures >= _GIVE_UP_AFTER:
                    return f"{failures} requests in a row failed"
                if policy.background_interval_s:
                    await trio.sleep(policy.background_interval_s)
        if not store.residency.all_local():
            return "some bytes could not be had"
        await store.residency.keep()
        if self._disk_ended():
            return "the disk cache takes no more"
        try:
            if self._besides is not None and not await self._besides():
                return "the disk cache takes no more"
        except ColdbenchError as error:
            return str(error)
        return None

    async def _bring(self, layer: Layer, batch: Sequence[int]) -> None:
        store = self._store
        units = [unit for unit in batch if store.residency.missing(layer, unit)]
        for group in store.group(layer, units):
            await store.fetch(layer, group, {}, Sink.PACKED)
