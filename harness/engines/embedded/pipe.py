"""This module hands byte pieces over from one thread to another, a bounded number at a time, and
passes failure along.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class BytePipe:
    """Connects one writer and one reader; at most ``slots`` pieces wait between them, so memory stays bounded.

    The writer ends with ``end`` or ``fail(error)``, which the reader meets (raised) after the last piece. A reader
    that gives up calls ``abandon``: writes then go nowhere and never block. Its two locks cost less CPU than
    ``queue.Queue``.
    """

    def __init__(self, slots: int = 16) -> None:
        self._pieces: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._free = threading.Semaphore(slots)
        self._abandoned = False
        self._ended = False

    def write(self, piece: bytes) -> None:
        if self._abandoned:
            return
        self._free.acquire()
        self._pieces.put(piece)

    def end(self) -> None:
        self._pieces.put(None)

    def fail(self, error: BaseException) -> None:
        self._pieces.put(error)

    def abandon(self) -> None:
        """Stop reading; the writer never blocks again. Idempotent."""
        self._abandoned = True
        self._free.release()

    def drain(self) -> None:
        """Read to the end and throw away; raises the writer's failure if it had one."""
        for _ in self:
            pass

    def __iter__(self) -> Iterator[bytes]:
        while not self._ended:
            piece = self._pieces.get()
            if isinstance(piece, bytes):
                self._free.release()
                yield piece
                continue
            self._ended = True
            if piece is not None:
                raise piece
