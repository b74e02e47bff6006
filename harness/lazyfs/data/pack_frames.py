"""This module keeps the frames of a start pack as they came until nobody reads here any more, and decodes those wanted.

It is safe from any thread. Decoding a frame of 1 MiB takes 2 ms, so that few are kept decoded, and one that the kernel
has dropped again is decoded anew instead of its spans being fetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.formats.erofs.pack import Pack, Place

_KEPT_DECODED = 6


class PackFrames:
    """Holds what has come of a pack. Frames are checked before they are ``put`` here."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._packed: list[bytes | None] = [None] * len(pack.frames)
        self._decoded: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in pack.frames]

    def put(self, number: int, packed: bytes) -> None:
        """Take in a frame."""
        self._packed[number] = packed

    def has(self, number: int) -> bool:
        """Says whether the frame has come."""
        return self._packed[number] is not None

    def forget(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._packed = [None] * len(self._packed)
            self._decoded.clear()

    def decoded(self, number: int) -> bytes | None:
        """Returns the frame's bytes, if they are there decoded."""
        with self._lock:
            return self._decoded.get(number)

    def decode(self, number: int) -> bytes:
        """Returns the frame's bytes, decoded.

        Raises FormatError for a frame that is not what its table says, KeyError for one that is not here.
        """
        with self._decoding[number]:
            known = self.decoded(number)
            if known is not None:
                return known
            packed = self._packed[number]
            if packed is None:
                raise KeyError(number)
            data = self.pack.frames[number].decode(packed, number)
            with self._lock:
                self._decoded[number] = data
                while len(self._decoded) > _KEPT_DECODED:
                    self._decoded.popitem(last=False)
            return data

    def join(self, places: list[Place], *, decode: bool) -> bytes | memoryview | None:
        """Returns the bytes at these places. Without ``decode`` the answer is None where a frame is not decoded yet."""
        parts = []
        for place in places:
            data = self.decode(place.frame) if decode else self.decoded(place.frame)
            if data is None:
                return None
            parts.append(memoryview(data)[place.begin : place.begin + place.size])
        return parts[0] if len(parts) == 1 else b"".join(parts)
