"""This module digests a stream's pieces of equal size: the spans of a layer that is stored uncompressed."""

from __future__ import annotations

import hashlib


class PieceDigests:
    """Hashes every ``size`` bytes of what passes, by sha256, the last piece being what is left."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._digest = hashlib.sha256()
        self._digests: list[bytes] = []

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[: self._left]
            self._digest.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left:
                self._next()

    def finish(self) -> list[bytes]:
        """Returns digests of all pieces, in order; nothing may follow."""
        if self._left < self._size:
            self._next()
        return self._digests

    def _next(self) -> None:
        self._digests.append(self._digest.digest())
        self._digest, self._left = hashlib.sha256(), self._size
