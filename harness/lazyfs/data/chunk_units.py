"""This module serves eStargz chunks as units, inflated whole and then checked: digests are over inflated bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import ContentError
from harness.lazyfs.data.units import Decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.estargz.chunks import ChunkMap


class ChunkUnits:
    """Implements ``harness.lazyfs.data.units.Units`` for an eStargz layer."""

    def __init__(self, chunks: ChunkMap) -> None:
        self._chunks = chunks
        self.size = chunks.address_space_bytes
        self.starts: Sequence[int] = chunks.starts
        self.ends: Sequence[int] = [start + size for start, size in zip(chunks.starts, chunks.sizes, strict=True)]
        self.extent = chunks.chunk_compressed_extent

    def ready(self, unit: int) -> bool:
        return True

    def load(self, units: Sequence[int]) -> None:
        """Does nothing: a chunk needs no side data."""

    def verify(self, unit: int, packed: bytes | memoryview) -> None:
        """Does nothing yet: ``decode`` checks what comes out."""

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        """Returns all chunks of the unit's member but bad neighbours; raises ContentError for a bad ``unit``."""
        decoded = []
        for chunk, data in self._chunks.inflate_member(unit, packed):
            try:
                self._chunks.verify_chunk(chunk, data)
            except ContentError:
                if chunk == unit:
                    raise
                continue
            decoded.append(Decoded(chunk, [data], None))
        return decoded
