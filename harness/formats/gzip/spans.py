"""This module knows the spans of a SOCI layer: where they stand, what their digests are, how one is inflated on its
own.

:class:`Spans` is immutable and may be used from several threads: ``span_of`` -> ``span_compressed_extent`` -> fetch
-> ``verify`` -> ``inflate_span`` is one read. Inflation is isal's, which releases the GIL. It has no way to start in
the middle of a byte, so an *empty* deflate block is fed first whose length brings the bit position to where the span
starts (RFC 1951, 3.2.3: an empty block with fixed codes has 10 bits, one with dynamic codes can have 93).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING

from harness.errors import DigestMismatch, FormatError
from harness.formats.soci.ztoc_layout import GZIP

if TYPE_CHECKING:
    from harness.formats.soci.ztoc import Ztoc
    from harness.formats.table import RangeSource

_TRAILER_BYTES = 8
_PIECE_BYTES = 1 << 14


def _bits(value: int, count: int) -> list[int]:
    return [value >> index & 1 for index in range(count)]


def _primer(position: int) -> list[int]:
    """Returns the bits of empty blocks that end at ``position`` modulo 8."""
    fixed = [0, *_bits(1, 2), *_bits(0, 7)]
    if position % 2 == 0:
        return fixed * {0: 0, 2: 1, 4: 2, 6: 3}[position]
    # Code lengths: 18 and 1 have one bit each; 256 zeros in two runs, then 1 (end of block) and 1 (a distance).
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    dynamic = [0, *_bits(2, 2), *_bits(0, 5), *_bits(0, 5), *_bits(15, 4)]
    for symbol in order:
        dynamic += _bits(1 if symbol in (1, 18) else 0, 3)
    dynamic += [1, *_bits(138 - 11, 7), 1, *_bits(118 - 11, 7), 0, 0, 0]
    return dynamic + fixed * {5: 0, 7: 1, 1: 2, 3: 3}[position]


def _pack(bits: list[int]) -> tuple[bytes, int]:
    """Returns whole bytes, and the bits of the unfinished one."""
    data = bytearray((len(bits) + 7) // 8)
    for index, bit in enumerate(bits):
        data[index >> 3] |= bit << (index & 7)
    return (bytes(data[:-1]), data[-1]) if len(bits) % 8 else (bytes(data), 0)


_PRIMERS = [_pack(_primer((8 - bits) % 8)) for bits in range(8)]


def inflate_at(compressed: bytes | memoryview, bits: int, window: bytes | memoryview, size: int) -> bytes:
    """Returns the first ``size`` bytes that come out from a checkpoint on, across members.

    ``compressed`` starts with the byte that holds the first ``bits`` bits (if there are any). Raises FormatError when
    the data is damaged or too short. It holds ``size`` bytes in memory and a little.
    """
    from isal import isal_zlib

    if size <= 0:
        return b""
    isal_error: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub declares an instance
    view = memoryview(compressed)
    inflater = isal_zlib.decompressobj(-15, zdict=bytes(window))
    parts: list[bytes] = []
    left = size
    piece_bytes = len(view) + 1
    try:
        position = 0
        if bits:
            if not view:
                raise FormatError("span", "holds no byte")
            whole, partial = _PRIMERS[bits]
            inflater.decompress(whole + bytes([partial | (view[0] >> (8 - bits)) << (8 - bits)]), 1)
            position = 1
        raw = True
        while left:
            # What one call consumes is not told before the member's end, so after the first one pieces are small.
            piece = inflater.unconsumed_tail or view[position : position + piece_bytes]
            if not inflater.unconsumed_tail:
                position += len(piece)
            out = inflater.decompress(piece, left)
            if out:
                parts.append(out)
                left -= len(out)
            if inflater.eof:
                position -= len(inflater.unused_data)
                position += _TRAILER_BYTES if raw else 0
                raw = False
                if left and position >= len(view):
                    break
                inflater = isal_zlib.decompressobj(31)
                piece_bytes = _PIECE_BYTES
            elif left and not out and position >= len(view) and not inflater.unconsumed_tail:
                break
            else:
                piece_bytes = min(2 * piece_bytes, len(view) + 1)
    except isal_error as error:
        raise FormatError("span", f"damaged deflate data ({error})") from None
    if left:
        raise FormatError("span", f"ends {left} bytes before what was promised")
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Spans:
    """Holds the geometry of a layer's spans; all offsets are in bytes, ``size`` is that of the decompressed address
    space.
    """

    def __init__(self, ztoc: Ztoc) -> None:
        self._ztoc = ztoc
        self._gzip = ztoc.algorithm == GZIP
        self._outs: list[int] = ztoc.outs.tolist()
        starts = ztoc.ins - (ztoc.bits > 0)
        self._starts: list[int] = starts.tolist()
        self._ends: list[int] = [*ztoc.ins[1:].tolist(), ztoc.compressed_bytes]
        self.size = ztoc.archive_bytes

    def __len__(self) -> int:
        return len(self._outs)

    def span_of(self, offset: int) -> int:
        """Returns the span that holds the decompressed byte at ``offset``."""
        if not 0 <= offset < self.size:
            raise FormatError("span", f"offset {offset} lies outside the layer's {self.size} bytes")
        return bisect_right(self._outs, offset) - 1

    def span_bounds(self, span: int) -> tuple[int, int]:
        """Returns the first decompressed byte of a span, and the one after its last (both at most ``size``)."""
        end = self._outs[span + 1] if span + 1 < len(self._outs) else self.size
        return min(self._outs[span], self.size), min(end, self.size)

    def span_compressed_extent(self, span: int) -> tuple[int, int]:
        """Returns (offset, size) in the stored blob of the bytes to fetch for a span; neighbours may share one byte."""
        start = self._starts[span]
        return start, self._ends[span] - start

    def span_digest(self, span: int) -> bytes:
        """Returns the sha256 of exactly the stored bytes of a span."""
        return self._ztoc.digests[span]

    def verify(self, span: int, compressed: bytes | memoryview) -> None:
        """Raises DigestMismatch unless ``compressed`` is what the index promises for the span."""
        actual = hashlib.sha256(compressed)
        if actual.digest() != self._ztoc.digests[span]:
            expected = self._ztoc.digests[span].hex()
            raise DigestMismatch(f"span {span}", f"sha256:{expected}", f"sha256:{actual.hexdigest()}")

    def inflate_span(self, span: int, compressed: bytes | memoryview, upto: int | None = None) -> bytes:
        """Returns decompressed bytes of a span from its (verified) stored bytes, or only the first ``upto`` of them."""
        start, end = self.span_bounds(span)
        size = end - start if upto is None else min(upto, end - start)
        if not self._gzip:
            if len(compressed) < size:
                raise FormatError(f"span {span}", f"{len(compressed)} bytes are fewer than {size}")
            return bytes(compressed[:size])
        try:
            return inflate_at(compressed, int(self._ztoc.bits[span]), self._ztoc.window(span), size)
        except FormatError as error:
            raise FormatError(f"span {span}", error.what) from None


class ZtocByteSource:
    """Gives verified random access to a layer's decompressed tar; keeps the last span it inflated."""

    def __init__(self, ztoc: Ztoc, source: RangeSource) -> None:
        self.spans = Spans(ztoc)
        self._source = source
        self._last: tuple[int, bytes] = (-1, b"")

    @property
    def size(self) -> int:
        return self.spans.size

    def span(self, span: int) -> bytes:
        """Returns all decompressed bytes of one span."""
        kept, data = self._last
        if kept != span:
            compressed = self._source.read_range(*self.spans.span_compressed_extent(span))
            self.spans.verify(span, compressed)
            data = self.spans.inflate_span(span, compressed)
            self._last = span, data
        return data

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes at ``offset``, fewer only at the end of the address space."""
        if offset < 0 or size < 0:
            raise FormatError("layer", f"{size} bytes at {offset} cannot be read")
        end = min(offset + size, self.size)
        parts: list[bytes] = []
        while offset < end:
            index = self.spans.span_of(offset)
            start, stop = self.spans.span_bounds(index)
            parts.append(self.span(index)[offset - start : min(end, stop) - start])
            offset = min(end, stop)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extract(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``; FormatError when they leave the layer."""
        if offset + size > self.size:
            raise FormatError("layer", f"{size} bytes at {offset} leave its {self.size} bytes")
        return self.read(offset, size)
