"""This module joins small pieces of a stream to batches: libcurl hands bodies on in 16 KiB, hashing and inflating want
more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Batches:
    """Collects pieces and passes them on joined, at least ``size`` bytes at a time; ``flush`` passes on the rest."""

    def __init__(self, size: int, sink: Callable[[bytes], object]) -> None:
        self._size = size
        self._sink = sink
        self._pieces: list[bytes] = []
        self._waiting = 0

    def take(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._waiting >= self._size:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._waiting = 0
        self._sink(data)
