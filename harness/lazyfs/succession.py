"""Sees to it that another daemon can go on where this one is, whenever this one dies."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from harness.lazyfs.data import prefetch
from harness.lazyfs.data.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.store import Store
    from harness.lazyfs.estate import Estate
    from harness.lazyfs.messages import BlobMounted, MountBlob, MountTree, TreeMounted, Usage
    from harness.oci.store import BlobStore

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class Succession:
    """Leaves to the next daemon what it needs.

    ``usage`` gives everything counted so far, ``take_wire`` brings what crossed the wire into ``counters``.
    """

    def __init__(
        self, estate: Estate, counters: Counters, usage: Callable[[], Usage], take_wire: Callable[[], None]
    ) -> None:
        self._estate = estate
        self._counters = counters
        self._usage = usage
        self._take_wire = take_wire
        self._indexes: Remembered | None = None

    def begin(self, session: int | None) -> bool:
        """Hands over from now on what is done; returns False, and logs why, where no other daemon can take over.

        ``session`` is the FUSE descriptor, where it can be handed over.
        """
        estate, counters = self._estate, self._counters
        if not estate.begin(session):
            log.warning(
                "when this daemon dies, the mount dies with it: %s",
                "nobody would start another one" if session is not None
                else "the kernel does not send waiting requests again (Linux 6.9 and later do)",
            )  # fmt: skip
            return False
        assert estate.totals is not None
        counters.earlier, counters.restarts = estate.totals.load(), estate.restarts
        counters.counted = self._save_wire
        return True

    # Indexes

    def remember(self, store: BlobStore, file: SparseFile | None) -> BlobStore:
        """Returns the same store, which keeps in ``file`` what is read of it until the mount is there."""
        self._indexes = Remembered(store, file, self._estate.past.answers)
        return self._indexes

    def remember_all_of(self, digest: str) -> None:
        """Keeps what is read of this blob later, too."""
        if self._indexes is not None:
            self._indexes.go_on(digest, self._estate.note_answer)

    # Requests

    def answered(self, request: MountTree | MountBlob, mounted: bool) -> TreeMounted | BlobMounted | None:
        """Returns the answer that an earlier daemon had for whoever asks again, once this one goes on from there."""
        past = self._estate.past
        return past.answer if mounted and request == past.request else None

    def note_mounted(
        self, request: MountTree | MountBlob, answer: TreeMounted | BlobMounted, nursery: trio.Nursery
    ) -> None:
        """Notes that the mount is there; what was read on the way is written out by and by."""
        if self._estate.past.answer is None:
            self._estate.note_mounted(request, answer)
        if self._indexes is not None:
            nursery.start_soon(trio.to_thread.run_sync, self._indexes.seal, self._estate.note_answer)

    # Counters, and what only memory holds

    def save(self, usage: Usage) -> None:
        """Saves what was counted."""
        if self._estate.totals is not None:
            self._estate.totals.save(usage)

    def _save_wire(self) -> None:
        self._take_wire()
        counters, earlier, totals = self._counters, self._counters.earlier, self._estate.totals
        if totals is not None:
            base = (0, 0, 0) if earlier is None else (earlier.requests, earlier.bytes_fetched, earlier.retries)
            totals.save_wire(base[0] + counters.requests, base[1] + counters.bytes_fetched, base[2] + counters.retries)

    async def look_after(self, store: Store, ready: trio.Event) -> None:
        """Keeps counters in the totals and, once the container is ready, what memory holds on disk, too."""
        kept = -1
        while True:
            self._usage()
            if ready.is_set() and kept != self._counters.spans_fetched:
                await prefetch.yield_to_foreground(store)
                kept = self._counters.spans_fetched
                await store.residency.keep()
            await trio.sleep(_LOOK_EVERY_S)
