"""This module serves SOCI spans as units: it verifies their stored bytes, and inflates them as far as they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isal import isal_zlib

from harness.errors import FormatError
from harness.formats.gzip import igzip
from harness.formats.gzip.spans import _PRIMERS, Spans
from harness.formats.soci.ztoc_layout import GZIP
from harness.lazyfs.data.units import Decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.soci.ztoc import Ztoc

_TRAILER_BYTES = 8
_PIECE_BYTES = 128 << 10
"""Says how many stored bytes the inflater gets at a time: what it does not consume it copies."""
_MEMBER_PIECE_BYTES = 16 << 10


class SpanInflater:
    """Inflates from a checkpoint on, across gzip members, in as many steps as the caller likes.

    ``compressed`` begins with the byte that holds the checkpoint's first bits. Only one thread at a time may use it.
    """

    def __init__(self, compressed: bytes | memoryview, bits: int, window: bytes | memoryview, where: str) -> None:
        self._view = memoryview(compressed)
        self._where = where
        self._bits = bits
        self._window = window
        self._done = 0
        self._fast: igzip.RawInflater | None = None
        if igzip.available and compressed:
            self._fast = igzip.RawInflater(bytes(compressed), bits, bytes(window))
        if self._fast is None:
            self._start()

    def _start(self) -> None:
        bits = self._bits
        self._position = 0
        self._raw = True
        self._piece_bytes = _PIECE_BYTES
        self._inflater = isal_zlib.decompressobj(-15, zdict=bytes(self._window))
        if bits:
            if not self._view:
                raise FormatError(self._where, "holds no byte")
            whole, partial = _PRIMERS[bits]
            self._inflater.decompress(whole + bytes([partial | (self._view[0] >> (8 - bits)) << (8 - bits)]), 1)
            self._position = 1

    def inflate(self, size: int) -> list[bytes]:
        """Returns the next ``size`` bytes, in pieces since joining would copy them. Raises FormatError for damage."""
        if self._fast is not None:
            whole = self._fast.inflate(size)
            if whole is not None:
                self._done += size
                return [whole]
            # A member's end, or damage: python-isal sees to it, from the checkpoint on.
            self._fast = None
            self._start()
            if self._done:
                self._inflate(self._done)
        return self._inflate(size)

    def _inflate(self, size: int) -> list[bytes]:
        isal_error: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub declares an instance
        view, parts, left = self._view, list[bytes](), size
        try:
            while left > 0:
                inflater = self._inflater
                piece: bytes | memoryview = inflater.unconsumed_tail
                if not piece:
                    piece = view[self._position : self._position + self._piece_bytes]
                    self._position += len(piece)
                out = inflater.decompress(piece, left)
                if out:
                    parts.append(out)
                    left -= len(out)
                if inflater.eof:
                    self._position += (_TRAILER_BYTES if self._raw else 0) - len(inflater.unused_data)
                    if left and self._position >= len(view):
                        break
                    self._raw = False
                    self._inflater = isal_zlib.decompressobj(31)
                    self._piece_bytes = _MEMBER_PIECE_BYTES
                elif left and not out and self._position >= len(view) and not inflater.unconsumed_tail:
                    break
                else:
                    self._piece_bytes = min(2 * self._piece_bytes, _PIECE_BYTES)
        except isal_error as error:
            raise FormatError(self._where, f"damaged deflate data ({error})") from None
        if left > 0:
            raise FormatError(self._where, f"ends {left} bytes before what was promised")
        return parts


class SpanUnits:
    """Implements ``harness.lazyfs.data.units.Units`` for a layer with a zTOC, whose buffer holds the windows."""

    def __init__(self, ztoc: Ztoc) -> None:
        self._ztoc = ztoc
        self._spans = Spans(ztoc)
        self._gzip = ztoc.algorithm == GZIP
        self.size = ztoc.archive_bytes
        bounds = [self._spans.span_bounds(span) for span in range(len(self._spans))]
        self.starts: Sequence[int] = [start for start, _ in bounds]
        self.ends: Sequence[int] = [end for _, end in bounds]
        self.extent = self._spans.span_compressed_extent
        self.verify = self._spans.verify

    def ready(self, unit: int) -> bool:
        return True

    def load(self, units: Sequence[int]) -> None:
        """Does nothing: the windows came with the zTOC."""

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        size = self.ends[unit] - self.starts[unit]
        if not self._gzip or size == 0:
            return [Decoded(unit, [self._spans.inflate_span(unit, packed)], None)]
        where = f"span {unit}"
        inflater = SpanInflater(packed, int(self._ztoc.bits[unit]), self._ztoc.window(unit), where)
        upto = min(max(upto, 1), size)
        return [Decoded(unit, inflater.inflate(upto), inflater if upto < size else None)]
