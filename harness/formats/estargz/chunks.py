"""This module knows where each chunk of an eStargz layer lies: in the blob, in its gzip member, and in the flat address
space.

The address space (architecture: the lazy-layer seam) holds the non-empty regular files' payloads one after another in
table order, each at a multiple of 512 bytes; the gaps read as zeros. A *member* is one gzip member of the blob; it
holds one chunk, or several where the writer was told to merge small ones (``innerOffset``). A map is stateless once
built: callers on any thread may share it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
import zstandard
from isal import isal_zlib

from harness.errors import DigestMismatch, FormatError
from harness.formats.estargz.toc import INFLATE_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

ADDRESS_ALIGNMENT = 512
MAX_CHUNK_BYTES = 64 << 20
"""One chunk decompressed has at most so many bytes: a reader must hold it in memory to serve one byte. Writers use 4
MiB.
"""
MAX_MEMBER_BYTES = 256 << 20
"""One gzip member, decompressed up to the end of its last chunk, has at most so many bytes."""


class ChunkMap:
    """Holds chunks in address order; chunk numbers are 0 … ``len(self) - 1``.

    ``starts`` and ``sizes`` are each chunk's place in the address space, ``member_starts`` and ``member_ends`` the
    compressed extent in the blob of the member it is in, ``inner_offsets`` where it begins in that member's
    decompressed bytes. All in bytes, plain lists because single look-ups are what a reader does.
    """

    __slots__ = ("_member_order", "_member_rank", "_zstd", "address_space_bytes", "digests", "inner_offsets",
                 "member_ends", "member_starts", "sizes", "starts")  # fmt: skip

    def __init__(
        self,
        *,
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        members: npt.NDArray[np.int64],
        inner_offsets: npt.NDArray[np.int64],
        digests: Sequence[str],
        blob_end: int,
        address_space_bytes: int,
        other_members: npt.NDArray[np.int64] | None = None,
        zstd: bool = False,
    ) -> None:
        """Takes ``blob_end``, where payload members end (the TOC's offset), and ``other_members``: starts of members
        that hold no chunk of this map but bound those that do (the landmark's). Raises FormatError for chunks that lie
        outside the blob, overlap, or are too large.
        """
        if len(members):
            if int(members.min()) < 0 or int(members.max()) >= blob_end:
                at = int(np.argmax((members < 0) | (members >= blob_end)))
                raise FormatError(
                    "eStargz TOC", f"chunk {at} stands at offset {members[at]}, outside the {blob_end} bytes of payload"
                )
            if int(sizes.max()) > MAX_CHUNK_BYTES:
                raise FormatError("eStargz TOC", f"a chunk of {sizes.max()} bytes; at most {MAX_CHUNK_BYTES} are read")
            if int(inner_offsets.min()) < 0 or int((inner_offsets + sizes).max()) > MAX_MEMBER_BYTES:
                raise FormatError("eStargz TOC", f"a chunk outside the first {MAX_MEMBER_BYTES} bytes of its member")
        bounds = members if other_members is None else np.concatenate([members, other_members])
        # Not np.unique: it hashes, sorts, and imports numpy.ma when first called.
        bounds = np.sort(bounds)
        bounds = np.append(bounds[np.append(True, bounds[1:] != bounds[:-1])] if len(bounds) else bounds, blob_end)
        self.starts: list[int] = starts.tolist()
        self.sizes: list[int] = sizes.tolist()
        self.member_starts: list[int] = members.tolist()
        self.member_ends: list[int] = bounds[np.searchsorted(bounds, members, side="right")].tolist()
        self.inner_offsets: list[int] = inner_offsets.tolist()
        self.digests = digests
        self.address_space_bytes = address_space_bytes
        self._zstd = zstd
        # Chunks by (member, inner offset), and each chunk's place in that order: neighbours share a member.
        order = np.lexsort((inner_offsets, members))
        self._member_order: list[int] = order.tolist()
        if len(order):
            ends = (inner_offsets + sizes)[order]
            overlap = (members[order][1:] == members[order][:-1]) & (inner_offsets[order][1:] < ends[:-1])
            if overlap.any():
                at = int(order[1:][int(np.argmax(overlap))])
                raise FormatError("eStargz TOC", f"chunk {at} overlaps another one of the member at {members[at]}")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self._member_rank: list[int] = rank.tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def chunk_of(self, address: int) -> int:
        """Returns the chunk that holds this address, or -1 in a gap between payloads or outside the address space."""
        chunk = bisect_right(self.starts, address) - 1
        return chunk if chunk >= 0 and address < self.starts[chunk] + self.sizes[chunk] else -1

    def chunks_in(self, address: int, size: int) -> range:
        """Returns the chunks that hold a byte of [address, address + size)."""
        first = bisect_right(self.starts, address) - 1
        if first < 0 or address >= self.starts[first] + self.sizes[first]:
            first += 1
        return range(first, max(first, bisect_right(self.starts, address + size - 1))) if size > 0 else range(0)

    def chunk_compressed_extent(self, chunk: int) -> tuple[int, int]:
        """Returns (offset, size) in the blob of the member that holds the chunk: what to fetch to serve it."""
        start = self.member_starts[chunk]
        return start, self.member_ends[chunk] - start

    def chunk_digest(self, chunk: int) -> str:
        """Returns ``sha256:…`` of the chunk's bytes; FormatError where the TOC has none (its bytes
        must not be served).
        """
        digest = self.digests[chunk]
        if not digest:
            raise FormatError("eStargz TOC", f"chunk {chunk} has no digest, so its bytes cannot be verified")
        return digest

    def verify_chunk(self, chunk: int, data: bytes | memoryview) -> None:
        """Raises DigestMismatch unless ``data`` is the chunk."""
        expected = self.chunk_digest(chunk)
        actual = "sha256:" + hashlib.sha256(data).hexdigest()
        if actual != expected:
            raise DigestMismatch(f"eStargz chunk {chunk}", expected, actual)

    def inflate_chunk(self, chunk: int, compressed: bytes | memoryview) -> bytes:
        """Returns the chunk's bytes out of its member (``compressed`` is its whole stored extent), not yet verified.

        The interpreter lock is released while inflating. Raises FormatError when the member is broken or too short.
        """
        begin = self.inner_offsets[chunk]
        end = begin + self.sizes[chunk]
        data = self._inflate(chunk, compressed, end)
        return data if begin == 0 else data[begin:]

    def member_chunks(self, chunk: int) -> list[int]:
        """Returns all chunks of this chunk's member, in the member's order: one inflate can serve them all."""
        member, order, rank = self.member_starts[chunk], self._member_order, self._member_rank[chunk]
        first = last = rank
        while first > 0 and self.member_starts[order[first - 1]] == member:
            first -= 1
        while last + 1 < len(order) and self.member_starts[order[last + 1]] == member:
            last += 1
        return order[first : last + 1]

    def inflate_member(self, chunk: int, compressed: bytes | memoryview) -> list[tuple[int, bytes]]:
        """Returns (chunk number, bytes) for every chunk of this chunk's member, inflated once, not yet verified."""
        chunks = self.member_chunks(chunk)
        data = self._inflate(chunk, compressed, max(self.inner_offsets[c] + self.sizes[c] for c in chunks))
        if len(chunks) == 1 and self.inner_offsets[chunk] == 0:
            return [(chunk, data)]
        return [(c, data[self.inner_offsets[c] : self.inner_offsets[c] + self.sizes[c]]) for c in chunks]

    def _inflate(self, chunk: int, compressed: bytes | memoryview, size: int) -> bytes:
        """Returns the first ``size`` decompressed bytes of the chunk's member; what rides behind is not inflated."""
        try:
            if self._zstd:
                data: bytes = zstandard.ZstdDecompressor().stream_reader(compressed).read(size)
            else:
                data = isal_zlib.decompressobj(31).decompress(compressed, size)
        except (INFLATE_ERROR, zstandard.ZstdError, ValueError) as error:
            raise FormatError(self._where(chunk), f"does not inflate: {error}") from error
        if len(data) != size:
            raise FormatError(self._where(chunk), f"inflates to {len(data)} bytes, and {size} are needed")
        return data

    def _where(self, chunk: int) -> str:
        return f"eStargz chunk {chunk} (member at offset {self.member_starts[chunk]})"
