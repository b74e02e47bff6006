"""eStargz chunks as units: their digests are over the inflated bytes, so a chunk is inflated whole and then checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import ContentError
from harness.lazyfs.data.units import Decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.estargz.chunks import ChunkMap


class ChunkUnits:
    """``harness.lazyfs.data.units.Units`` of an eStargz layer."""

    def __init__(self, chunks: ChunkMap) -> None:
        self._chunks = chunks
        self.size = chunks.address_space_bytes
        self.starts: Sequence[int] = chunks.starts
        self.ends: Sequence[int] = [start + size for start, size in zip(chunks.starts, chunks.sizes, strict=True)]
        self.extent = chunks.chunk_compressed_extent

    def ready(self, unit: int) -> bool:
        return True

    def load(self, units: Sequence[int]) -> None:
        """Nothing: a chunk needs no side data."""

    def verify(self, unit: int, packed: bytes | memoryview) -> None:
        """Nothing yet: ``decode`` checks what comes out."""

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        """All chunks of the unit's member; a bad neighbour is left out, a bad ``unit`` raises."""
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
