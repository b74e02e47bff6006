"""This module serves spans of the EROFS index as units, like SOCI's, but fetches each window when its span is read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from harness.errors import ContentError, FormatError
from harness.formats.erofs.spans import GZIP, WHOLE
from harness.formats.gzip.checkpoints import WINDOW_BYTES
from harness.lazyfs.data.span_units import SpanInflater
from harness.lazyfs.data.units import Decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.erofs.spans import IndexedLayer
    from harness.formats.table import RangeSource

NEIGHBOURS = 16
"""Windows are asked for in aligned groups of this many: they lie side by side, and a request costs more than bytes.
python-data, ``import pandas``: 54 requests and 2.3 MB with 4, about 22 and 3.8 MB with 16."""
_MERGE_GAP = 16 << 10
_MAX_KEPT = 512
"""Limits the packed windows kept for spans that were not read yet (about 10 KB each)."""


class IndexedUnits:
    """Implements ``harness.lazyfs.data.units.Units`` with an EROFS index, whose windows blob is ``windows``."""

    def __init__(self, layer: IndexedLayer, windows: RangeSource | None) -> None:
        self._layer = layer
        self._source = windows
        self._windows: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.size = layer.size
        self.starts: Sequence[int] = layer.starts
        self.ends: Sequence[int] = layer.ends
        self.extent = layer.span_compressed_extent
        self.verify = layer.verify

    def ready(self, unit: int) -> bool:
        return not self._layer.window_sizes[unit] or unit in self._windows

    def load(self, units: Sequence[int]) -> None:
        """Fetch packed windows in as few ranges as make sense; they are verified when they are used."""
        wanted: set[int] = set()
        for unit in units:
            first = unit - unit % NEIGHBOURS
            wanted.update(u for u in range(first, min(first + NEIGHBOURS, len(self.starts))) if not self.ready(u))
        if not wanted:
            return
        if self._source is None:
            raise FormatError(f"layer {self._layer.number}", "spans have windows, and the index has none")
        extents = sorted((*self._layer.window_extent(unit), unit) for unit in wanted)
        groups: list[list[tuple[int, int, int]]] = []
        for extent in extents:
            if groups and extent[0] <= sum(groups[-1][-1][:2]) + _MERGE_GAP:
                groups[-1].append(extent)
            else:
                groups.append([extent])
        for group in groups:
            begin, end = group[0][0], max(offset + size for offset, size, _ in group)
            data = self._source.read_range(begin, end - begin)
            with self._lock:
                for offset, size, unit in group:
                    self._windows[unit] = data[offset - begin : offset - begin + size]
                while len(self._windows) > _MAX_KEPT:
                    oldest = next(iter(self._windows))
                    if oldest in wanted:
                        break
                    del self._windows[oldest]

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        layer = self._layer
        size = self.ends[unit] - self.starts[unit]
        if layer.kind == WHOLE:
            raise FormatError(f"layer {layer.number}", "is compressed without a way in")
        if layer.kind != GZIP or size == 0:
            if len(packed) < size:
                raise FormatError(f"layer {layer.number}, span {unit}", f"{len(packed)} bytes are fewer than {size}")
            return [Decoded(unit, [bytes(packed[:size])], None)]
        window = bytes(WINDOW_BYTES)
        if layer.window_sizes[unit]:
            kept = self._windows.get(unit)
            if kept is None:
                self.load([unit])
                kept = self._windows[unit]
            try:
                window = layer.window(unit, kept)
            except ContentError:
                with self._lock:
                    self._windows.pop(unit, None)  # what came is wrong: the next read asks again
                raise
        inflater = SpanInflater(packed, layer.bits[unit], window, f"layer {layer.number}, span {unit}")
        upto = min(max(upto, 1), size)
        decoded = Decoded(unit, inflater.inflate(upto), inflater if upto < size else None)
        with self._lock:
            self._windows.pop(unit, None)
        return [decoded]
