"""This module makes everything local and turns the kernel to the local file, so that nobody needs the daemon any more.

Whatever gets in the way is said once in the log, and what can pass (the registry away, a unit that the disk lost) is
waited for: the fetch goes on, and the handover follows.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from harness.lazyfs.data.background import LONGEST_PAUSE_S, Background
from harness.lazyfs.messages import Span
from harness.lazyfs.mounting import handover

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.store import Store

log = logging.getLogger(__name__)

_DISK_ROUNDS = 3
"""Says how often a disk that lost units may try to hold them again."""


@dataclass(frozen=True, slots=True)
class LocalImage:
    """Holds the blob's cache file and what completes it."""

    file: SparseFile
    metadata: memoryview
    size: int


class Independence:
    """Brings one image to independence; ``image`` is the cache file of a blob that may be handed over."""

    def __init__(
        self,
        store: Store,
        *,
        image: LocalImage | None = None,
        fetch_besides: Callable[[], Awaitable[bool]] | None = None,
        inflated: Callable[[], Awaitable[None]] | None = None,
        handed_over: Callable[[], Awaitable[None]] | None = None,
        turned: bool = False,
    ) -> None:
        """``fetch_besides`` brings other blobs that reading takes. ``inflated`` is called when the cache file is
        complete, ``handed_over`` when the kernel was turned to it. ``turned`` says that an earlier daemon did that.
        """
        self.done = trio.Event()
        """Is set when the background fetch has ended, and the handover, if one was due, has been tried."""
        self.complete = False
        """Says whether everything is local."""
        self.spans: list[Span] = []
        self._store = store
        self._image = image
        self._fetch_besides = fetch_besides
        self._inflated = inflated
        self._handed_over = handed_over
        self._devices: tuple[tuple[str, ...], str] | None = None
        self._devices_known = trio.Event()
        self._turned = turned
        store.counters.handed_over = turned

    async def use_devices(self, devices: tuple[str, ...], mounted: str) -> None:
        """Takes the loop devices over our file; hands over at once where all is local and the disk is trusted."""
        self._devices = (devices, mounted)
        store = self._store
        if store.policy.trust_disk and store.residency.is_whole() and not self._turned:
            await self._hand_over()
        self._devices_known.set()

    async def run(self, ready: trio.Event) -> None:
        """Fetch the rest and hand over; the background fetch begins when ``ready`` is set, or at once by policy."""
        store = self._store
        policy = store.policy
        if self._turned:
            self.complete = True
            store.counters.background_finished = True if policy.background else None
            self.done.set()
            return
        try:
            if not policy.background:
                self.complete = policy.eager
            else:
                store.counters.background_finished = False
                if not policy.background_from_mount:
                    await ready.wait()
                start = time.monotonic_ns()
                self.complete = await Background(store, self._fetch_besides).run()
                store.counters.background_finished = self.complete
                self.spans.append(Span("background", start, time.monotonic_ns()))
            if self.complete and self._devices_known.is_set():
                await self._inflate_and_hand_over()
        finally:
            self.done.set()
        if self.complete and self._image is not None:
            await self._devices_known.wait()
            await self._inflate_and_hand_over()

    async def _inflate_and_hand_over(self) -> None:
        """Inflates and hands over, until it is done, or the disk or the kernel does not let us."""
        store = self._store
        if self._image is None or store.counters.handed_over:
            return
        start, rounds, pause_s = time.monotonic_ns(), 0, store.policy.background_retry_s
        while why := await handover.inflate_all(store):
            disk_lost = not store.residency.all_local()
            rounds += disk_lost
            if self._disk_failed() or rounds >= _DISK_ROUNDS or not store.policy.background_resumes:
                self._stay(why)
                return
            if why != store.counters.not_handed_over:
                self._stay(why)
            if disk_lost:
                await Background(store, self._fetch_besides).run()
            else:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if self._inflated is not None:
            await self._inflated()
        await self._hand_over()
        self.spans.append(Span("inflate", start, time.monotonic_ns()))

    def _disk_failed(self) -> bool:
        return any(layer.disk.failure is not None for layer in self._store.layers)

    def _stay(self, why: str) -> None:
        """Notes and logs why reads go on through FUSE."""
        self._store.counters.not_handed_over = why
        log.warning("the mount stays on FUSE: %s", why)

    async def _hand_over(self) -> None:
        if self._image is None or self._devices is None:
            return
        image, counters = self._image, self._store.counters
        turn = partial(handover.hand_over, *self._devices, image.file, image.metadata, image.size)
        why = await trio.to_thread.run_sync(turn)
        if why:
            self._stay(why)
            return
        self._store.residency.forget_memory()
        self._store.pages = None
        if self._handed_over is not None:
            await self._handed_over()
        # Said only now: whoever hears it may end this daemon, and the next one must know.
        counters.handed_over = True
