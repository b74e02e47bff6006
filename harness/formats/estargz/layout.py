"""This module cuts an eStargz blob's tar into gzip members, before any byte is compressed.

The first member holds the leading headers. Each chunk of a non-empty file begins a new one, so that the payload is
the member's first byte; padding and the headers that follow ride behind it. With a minimum size, chunks share a
member until it holds that many bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.formats.estargz.toc import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from harness.formats.table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.formats.estargz.order import Item
    from harness.formats.tar.scanner import TarEntry

ZEROS = -1
MAX_SHARED_MEMBER_BYTES = 64 << 20
"""Beyond this size a member is ended whatever the minimum says: a reader must inflate it from its beginning."""

_LANDMARKS = frozenset({PREFETCH_LANDMARK.encode(), NO_PREFETCH_LANDMARK.encode()})
_BLOCK = 512

Segment = tuple[int, int] | bytes
"""These bytes of the tar are (offset, length) in the source tar, (ZEROS, length), or the bytes themselves."""


@dataclass(slots=True)
class Chunk:
    """Names a piece of item ``item``'s payload: ``inner_offset`` in its member, ``file_offset`` in the file.

    ``full``: as long as chunks get; ``last``: of its file.
    """

    item: int
    inner_offset: int
    file_offset: int
    size: int
    full: bool
    last: bool


@dataclass(slots=True)
class Member:
    """Describes one gzip member: its decompressed bytes as segments, and the chunks among them."""

    segments: list[Segment] = field(default_factory=list)
    size: int = 0
    chunks: list[Chunk] = field(default_factory=list)

    def add(self, segment: Segment) -> None:
        if isinstance(segment, bytes):
            self.size += len(segment)
        else:
            offset, length = segment
            self.size += length
            if self.segments:
                before = self.segments[-1]
                if not isinstance(before, bytes) and before[0] + before[1] == offset and before[0] >= 0:
                    self.segments[-1] = (before[0], before[1] + length)
                    return
        self.segments.append(segment)


def members(items: Sequence[Item], chunk_size: int, min_chunk_size: int) -> Iterator[Member]:
    """Yields members in blob order. ``min_chunk_size`` counts decompressed bytes (0: every chunk has a member of its
    own).
    """
    enough = min(min_chunk_size, MAX_SHARED_MEMBER_BYTES)
    member = Member()
    leading = True
    for number, item in enumerate(items):
        entry = item.payload
        if item.header is not None:
            member.add(item.header)
        else:
            member.add((entry.header_offset, entry.payload_offset - entry.header_offset))
        if item.kind != Kind.REG or entry.size == 0:
            continue
        own_member = item.name in _LANDMARKS
        for file_offset in range(0, entry.size, chunk_size):
            size = min(chunk_size, entry.size - file_offset)
            if leading or own_member or member.size >= enough:
                yield member
                member = Member()
                leading = False
            last = file_offset + size == entry.size
            member.chunks.append(Chunk(number, member.size, file_offset, size, size == chunk_size, last))
            if item.content is not None:
                member.add(item.content[file_offset : file_offset + size])
            elif entry.sparse is None:
                member.add((entry.payload_offset + file_offset, size))
            else:
                for segment in _sparse_segments(entry, file_offset, size):
                    member.add(segment)
        padding = -entry.size % _BLOCK
        if padding:
            plain = item.content is None and entry.sparse is None
            member.add((entry.payload_offset + entry.size, padding) if plain else bytes(padding))
    yield member


def _sparse_segments(entry: TarEntry, start: int, size: int) -> Iterator[Segment]:
    """Yields bytes [start, start + size) of a sparse file: stored fragments, and zeros between them."""
    at, end, stored = start, start + size, entry.payload_offset
    for offset, length in entry.sparse or ():
        low, high = max(offset, at), min(offset + length, end)
        if low < high:
            if low > at:
                yield ZEROS, low - at
            yield stored + low - offset, high - low
            at = high
        stored += length
    if at < end:
        yield ZEROS, end - at
