"""This module gives random access to an indexed layer's address space, from a store that holds the whole layer and the
windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.erofs.spans import WHOLE

if TYPE_CHECKING:
    from harness.formats.erofs.spans import IndexedLayer
    from harness.formats.table import RangeSource


class IndexedByteSource:
    """Gives verified random access to an indexed layer's address space (``table.ByteSource``); keeps the last span."""

    def __init__(self, layer: IndexedLayer, blob: RangeSource, windows: RangeSource | None) -> None:
        if layer.kind == WHOLE:
            raise FormatError(f"layer {layer.number}", "is compressed without a way in: inflate it whole")
        self._layer = layer
        self._blob = blob
        self._windows = windows
        self._last: tuple[int, bytes] = (-1, b"")

    @property
    def size(self) -> int:
        """Counts the bytes in the address space."""
        return self._layer.size

    def span(self, number: int) -> bytes:
        """Returns all bytes of one span; raises DigestMismatch or FormatError."""
        kept, data = self._last
        if kept != number:
            layer = self._layer
            stored = self._blob.read_range(*layer.span_compressed_extent(number))
            layer.verify(number, stored)
            offset, size = layer.window_extent(number)
            packed = self._windows.read_range(offset, size) if size and self._windows is not None else b""
            data = layer.inflate_span(number, stored, layer.window(number, packed))
            self._last = number, data
        return data

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes at ``offset``, fewer only at the end of the address space."""
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            number = self._layer.span_of(offset)
            start, stop = self._layer.span_bounds(number)
            parts.append(self.span(number)[offset - start : end - start])
            offset = min(end, stop)
        return b"".join(parts)
