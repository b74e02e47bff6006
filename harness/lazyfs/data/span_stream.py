"""Inflates a whole gzip layer with libdeflate, span by span, as the index cuts it.

libdeflate takes an eighth less CPU than ISA-L, but it inflates only complete streams, which it holds in memory at once.
So each span is made a stream of its own: the 32 KiB before it, to which the span may refer, go in front as a stored
block, and empty blocks fill up to the bit at which the span begins. This module does not trust the index for that: at
the end it compares the checksum and the size that the gzip member states with everything that came out. The library is
the one that the package ``deflate`` ships; where the package hides its functions, ``available`` is False.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import mmap
import os
from typing import TYPE_CHECKING, Any

from harness.formats.gzip.checkpoints import WINDOW_BYTES
from harness.formats.gzip.spans import _PRIMERS
from harness.lazyfs.data.disk_cache import DIRECT_ALIGN

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.erofs.spans import IndexedLayer

MAX_SPAN_BYTES = 16 << 20
"""Limits the size of a span, stored or inflated, since both forms are held in memory."""
_BEYOND_BYTES = 4096
"""Says how much of the next span is given along: libdeflate notices only at the symbol after that the room is full."""
_HEADROOM_BYTES = WINDOW_BYTES + 64
_SLACK_BYTES = 512 << 10
_TRAILER_BYTES = 8
_RARE = 16
_SUCCESS, _FULL = 0, 3


class Disagreement(Exception):
    """Says that the stream is not as the index says, or has a form that this module does not know."""


def fits(layer: IndexedLayer) -> bool:
    """Says whether the layer looks like one gzip member with spans of a size to hold."""
    if not available or layer.kind != "gzip" or not len(layer):
        return False
    # No window: a span after 32 KiB of zeros, which is rare, or a member's first, of which some blobs are full.
    if sum(not size for size in layer.window_sizes[1:]) * _RARE > len(layer):
        return False
    return max(_largest(layer)) <= MAX_SPAN_BYTES


def _largest(layer: IndexedLayer) -> tuple[int, int]:
    """Returns the bytes of the largest span, stored and inflated."""
    stored = max(layer.span_compressed_extent(span)[1] for span in range(len(layer)))
    return stored, max(end - start for start, end in zip(layer.starts, layer.ends, strict=True))


class SpanStream:
    """Takes the blob piece by piece, and calls ``write`` with the inflated bytes in order. Raises Disagreement."""

    def __init__(self, layer: IndexedLayer, write: Callable[[int, memoryview], None]) -> None:
        """``write`` gets a place in the layer and bytes, which it has to use up before it returns.

        Place, size and address are multiples of DIRECT_ALIGN, so that it may write past the page cache; zeros stand
        behind the layer's last byte.
        """
        self._layer = layer
        self._write = write
        stored, plain = _largest(layer)
        # The bytes before a span in the buffer were used already, so its lead goes there and nothing is copied twice.
        self._in = bytearray(_HEADROOM_BYTES + stored + _BEYOND_BYTES + _SLACK_BYTES)
        self._out = mmap.mmap(-1, WINDOW_BYTES + plain + 3 * DIRECT_ALIGN)  # begins at a page
        self._in_view, self._out_view = memoryview(self._in), memoryview(self._out)
        self._in_place = ctypes.addressof(ctypes.c_char.from_buffer(self._in))
        self._out_place = ctypes.addressof(ctypes.c_char.from_buffer(self._out))
        self._tail = _HEADROOM_BYTES
        """Says where in the buffer its content ends."""
        self._shift = _HEADROOM_BYTES
        """Says where in the buffer the blob's byte 0 would be, were it there."""
        self._span = 0
        self._window = b""
        self._crc = 0
        self._decompressor = _library.libdeflate_alloc_decompressor()

    def feed(self, data: bytes) -> None:
        """Takes more of the blob."""
        fed = 0
        while fed < len(data):
            if self._tail == len(self._in):
                self._make_room()
            taken = min(len(data) - fed, len(self._in) - self._tail)
            self._in_view[self._tail : self._tail + taken] = data if taken == len(data) else data[fed : fed + taken]
            self._tail += taken
            fed += taken
            self._advance()

    def _advance(self) -> None:
        layer = self._layer
        reached = self._tail - self._shift
        while self._span < len(layer):
            offset, size = layer.span_compressed_extent(self._span)
            if reached < min(offset + size + _BEYOND_BYTES, layer.compressed_bytes):
                return
            self._inflate(offset + self._shift, min(size + _BEYOND_BYTES, reached - offset))
            self._span += 1

    def _make_room(self) -> None:
        """Move what is still wanted to the buffer's beginning."""
        layer = self._layer
        keep = self._tail - _TRAILER_BYTES
        if self._span < len(layer):
            keep = min(keep, layer.span_compressed_extent(self._span)[0] + self._shift)
        moved = keep - _HEADROOM_BYTES
        self._in_view[_HEADROOM_BYTES : self._tail - moved] = bytes(self._in_view[keep : self._tail])
        self._tail -= moved
        self._shift -= moved

    def finish(self) -> None:
        """Checks, at the blob's end, that all came out and is what the member says of itself. Raises Disagreement."""
        trailer = bytes(self._in_view[self._tail - _TRAILER_BYTES : self._tail])
        proof = self._crc.to_bytes(4, "little") + (self._layer.size & 0xFFFFFFFF).to_bytes(4, "little")
        if self._span != len(self._layer) or trailer != proof:
            raise Disagreement("the gzip member's own checksum or size is another")

    def _inflate(self, begin: int, size: int) -> None:
        """Inflates the next span, whose first byte is at ``begin`` in the buffer; ``size`` bytes may be read."""
        layer, span = self._layer, self._span
        plain = layer.ends[span] - layer.starts[span]
        if not plain:
            return
        lead = self._window
        if lead:  # a stored block: RFC 1951, 3.2.4
            lead = b"\0" + len(lead).to_bytes(2, "little") + (len(lead) ^ 0xFFFF).to_bytes(2, "little") + lead
        place, end = begin, begin + size
        if bits := layer.bits[span]:
            whole, partial = _PRIMERS[bits]
            lead += whole + bytes([partial | (self._in[begin] >> (8 - bits)) << (8 - bits)])
            place += 1
        first = place - len(lead)
        self._in_view[first:place] = lead
        # The window comes out first: so what the span before left over, less than a block, is where it must be.
        room, at = len(self._window) + plain, layer.starts[span]
        origin = (at - len(self._window)) % DIRECT_ALIGN
        code = _library.libdeflate_deflate_decompress(
            self._decompressor, self._in_place + first, end - first, self._out_place + origin, room, None
        )
        if code not in (_SUCCESS, _FULL):
            raise Disagreement(f"span {span} does not inflate to the {plain} bytes that the index promises")
        start, stop = origin + len(self._window), origin + room
        self._crc = _library.libdeflate_crc32(self._crc, self._out_place + start, plain)
        self._window = bytes(self._out_view[max(origin, stop - WINDOW_BYTES) : stop])
        if at + plain == layer.size:
            filled = -stop % DIRECT_ALIGN
            self._out_view[stop : stop + filled] = bytes(filled)
            stop += filled
        over = start % DIRECT_ALIGN
        self._write(at - over, self._out_view[start - over : stop - stop % DIRECT_ALIGN])

    def __del__(self) -> None:
        _library.libdeflate_free_decompressor(self._decompressor)


def _load() -> Any:
    spec = importlib.util.find_spec("deflate")
    if spec is None:
        return None
    places = [spec.origin or ""]
    for directory in spec.submodule_search_locations or ():
        places += sorted(glob.glob(os.path.join(directory, "*.so")))
    for place in places:
        try:
            library = ctypes.CDLL(place)
            library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
            library.libdeflate_alloc_decompressor.argtypes = []
            library.libdeflate_free_decompressor.restype = None
            library.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
            library.libdeflate_deflate_decompress.restype = ctypes.c_int
            library.libdeflate_deflate_decompress.argtypes = [
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p,
            ]  # fmt: skip
            library.libdeflate_crc32.restype = ctypes.c_uint32
            library.libdeflate_crc32.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
        except (OSError, AttributeError):
            continue
        return library
    return None


_library: Any = _load()
available = _library is not None
"""Says whether ``SpanStream`` can be used."""
