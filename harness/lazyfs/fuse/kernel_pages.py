"""This module hands inflated bytes to the page cache of the served file before the kernel asks (FUSE_NOTIFY_STORE).

A unit is inflated in larger steps than it is read in. What is in the kernel then is read without a request, and need
not be kept here: the unit's stored bytes are a third of it, and whatever the kernel drops is inflated from them again.
Source: Linux, fs/fuse/dev.c (fuse_notify_store); only whole pages become valid.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.lazyfs.data.memory_cache import Key, Resident

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
_LATEST = 4
"""Counts the pieces handed over last that are still kept here: whoever waited for one reads it from here."""


class Piece(NamedTuple):
    """Names bytes [begin, end) of a layer's address space, of the unit that ``resident`` holds."""

    key: Key
    resident: Resident
    begin: int
    end: int


class KernelPages:
    """Stores pages from a thread of its own, which waits for pages that the kernel is waiting for us to fill."""

    def __init__(self, store: Callable[[int, list[memoryview]], bool], starts: Sequence[int]) -> None:
        """``store`` puts views at a place of the file (False: it is gone); layers begin at ``starts`` in it."""
        self._store = store
        self._starts = starts
        self._queue: SimpleQueue[tuple[Piece, list[bytes]] | None] = SimpleQueue()
        self._stored: deque[Piece] = deque()
        self._gone = False
        self.bytes_stored = 0
        self._thread = threading.Thread(target=self._run, name="kernel-pages", daemon=True)
        self._thread.start()

    def push(self, piece: Piece, data: list[bytes]) -> None:
        """Hand over ``data``, the bytes of ``piece``, some time soon."""
        self._queue.put((piece, data))

    def stored(self) -> list[Piece]:
        """Returns what the kernel has got since the last call, whole pages only and without the latest few."""
        found = list[Piece]()
        while len(self._stored) > _LATEST:
            found.append(self._stored.popleft())
        return found

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread after what it has in hand; nothing is pushed any more."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self._hand_over(*work)
            del work  # while the next one is waited for, nothing is kept alive

    def _hand_over(self, piece: Piece, data: list[bytes]) -> None:
        base = self._starts[piece.key[0]]
        begin = -(-(base + piece.begin) // PAGE_BYTES) * PAGE_BYTES
        end = (base + piece.end) // PAGE_BYTES * PAGE_BYTES
        if begin >= end or self._gone:
            return
        try:
            self._gone = not self._store(begin, cut(data, begin - base - piece.begin, end - base - piece.begin))
        except OSError as error:
            log.warning("storing pages at %d: %s", begin, error)
            return
        if not self._gone:
            self.bytes_stored += end - begin
            self._stored.append(piece._replace(begin=begin - base, end=end - base))


def cut(pieces: Sequence[bytes], begin: int, end: int) -> list[memoryview]:
    """Returns bytes [begin, end) of what ``pieces`` make together, without copying."""
    views, position = list[memoryview](), 0
    for piece in pieces:
        low, high = max(begin, position), min(end, position + len(piece))
        if low < high:
            views.append(memoryview(piece)[low - position : high - position])
        position += len(piece)
    return views
