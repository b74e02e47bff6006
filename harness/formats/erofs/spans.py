"""This module holds what an EROFS index says of an image's layers: spans, windows, and the address spaces behind the
metadata.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import zstandard

from harness.errors import DigestMismatch, FormatError
from harness.formats.gzip.checkpoints import WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from harness.oci.descriptor import Descriptor

GZIP: Final = "gzip"
PLAIN: Final = "none"
WHOLE: Final = "zstd"
KINDS: Final = (GZIP, PLAIN, WHOLE)

MAX_UNPACKED_BYTES: Final = 1 << 30
MAX_SPAN_BYTES: Final = 1 << 28
"""A span has at most so many bytes, stored or inflated, as in a zTOC; a whole layer without a way in is no span in this
sense.
"""
MAX_PACKED_WINDOW: Final = WINDOW_BYTES + 1024


@dataclass(frozen=True, slots=True)
class IndexedLayer:
    """Describes one layer's decompressed address space and how to reach into it.

    Spans are in order and cover ``size`` bytes without gaps. ``kind`` is ``gzip`` (checkpoints with windows), ``none``
    (ranges of the stored tar itself) or ``zstd`` (no way in: one span, fetched and inflated whole before use).
    ``start`` is where the address space begins in the image file. Threads may share it.
    """

    number: int
    digest: str
    compressed_bytes: int
    kind: str
    start: int
    size: int
    starts: Sequence[int]
    ends: Sequence[int]
    ins: Sequence[int]
    bits: bytes
    window_offsets: Sequence[int]
    window_sizes: Sequence[int]
    digests: memoryview
    window_digests: memoryview
    """Holds 32 bytes per span; they mean nothing where a span has no window."""

    def __len__(self) -> int:
        return len(self.starts)

    def span_of(self, offset: int) -> int:
        """Returns the span that holds the byte at ``offset`` of the address space."""
        if not 0 <= offset < self.size:
            raise FormatError(f"layer {self.number}", f"offset {offset} lies outside its {self.size} bytes")
        return bisect_right(self.starts, offset) - 1

    def span_bounds(self, span: int) -> tuple[int, int]:
        """Returns the first byte of a span in the address space, and the one after its last."""
        return self.starts[span], self.ends[span]

    def span_compressed_extent(self, span: int) -> tuple[int, int]:
        """Returns (offset, size) in the layer's blob of what to fetch for a span; neighbours may share one byte."""
        start = self.ins[span] - (self.bits[span] > 0)
        end = self.ins[span + 1] if span + 1 < len(self.ins) else self.compressed_bytes
        return start, end - start

    def span_digest(self, span: int) -> bytes:
        """Returns the sha256 of exactly the stored bytes of a span."""
        return bytes(self.digests[32 * span : 32 * span + 32])

    def verify(self, span: int, compressed: bytes | memoryview) -> None:
        """Raises DigestMismatch unless ``compressed`` is what the index promises for the span."""
        check_digest(f"layer {self.number}, span {span}", self.span_digest(span), compressed)

    def window_extent(self, span: int) -> tuple[int, int]:
        """Returns (offset, size) in the windows blob of what inflating the span takes besides; size 0: nothing."""
        return self.window_offsets[span], self.window_sizes[span]

    def window(self, span: int, packed: bytes | memoryview) -> bytes:
        """Returns the 32 KiB before the span from its packed form, verified; raises DigestMismatch or FormatError."""
        if not self.window_sizes[span]:
            return bytes(WINDOW_BYTES)
        where = f"layer {self.number}, window {span}"
        check_digest(where, bytes(self.window_digests[32 * span : 32 * span + 32]), packed)
        return unpack(packed, WINDOW_BYTES, where)

    def inflate_span(
        self, span: int, compressed: bytes | memoryview, window: bytes | memoryview, upto: int | None = None
    ) -> bytes:
        """Returns the span's bytes, or the first ``upto``, from its verified stored bytes and its window."""
        from harness.formats.gzip.spans import inflate_at

        size = self.ends[span] - self.starts[span]
        size = size if upto is None else min(upto, size)
        if self.kind == PLAIN:
            return bytes(compressed[:size])
        if self.kind == WHOLE:
            raise FormatError(f"layer {self.number}", "is compressed without a way in: inflate it whole")
        return inflate_at(compressed, self.bits[span], window, size)


@dataclass(frozen=True, slots=True)
class ErofsIndex:
    """Holds a loaded index: the file system's metadata, and the layers that stand behind it in the image file.

    ``prefetch`` lists (layer, begin, end) in address spaces, most urgent first.
    """

    metadata: bytes
    image_bytes: int
    block_size: int
    layers: tuple[IndexedLayer, ...]
    prefetch: tuple[tuple[int, int, int], ...]
    windows: Descriptor | None

    @property
    def layer_starts(self) -> list[int]:
        """Returns where each layer's address space begins in the image file, in bytes."""
        return [layer.start for layer in self.layers]


@dataclass(frozen=True, slots=True)
class LayerSpans:
    """Holds what the index says of one layer, as its builder found it; ``windows`` are packed, ``b""`` where none is
    needed.
    """

    digest: str
    compressed_bytes: int
    kind: str
    size: int
    ins: npt.NDArray[np.int64]
    outs: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]
    digests: Sequence[bytes]
    windows: Sequence[bytes]


def check_digest(what: str, expected: bytes, data: bytes | memoryview) -> None:
    """Raises DigestMismatch unless ``expected`` is the sha256 of ``data``."""
    actual = hashlib.sha256(data)
    if actual.digest() != expected:
        raise DigestMismatch(what, f"sha256:{expected.hex()}", f"sha256:{actual.hexdigest()}")


def pack_window(window: bytes, compressor: zstandard.ZstdCompressor) -> bytes:
    """Packs a window as the artefact stores it; nothing where it is all zeros (the stream's beginning)."""
    return compressor.compress(window) if window.count(0) != len(window) else b""


def unpack(packed: bytes | memoryview, size: int, where: str) -> bytes:
    """Returns exactly ``size`` bytes of a zstd frame that says so itself; FormatError otherwise."""
    try:
        if size > MAX_UNPACKED_BYTES or zstandard.frame_content_size(packed) != size:
            raise FormatError(where, f"does not unpack to {size} bytes")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(where, f"damaged zstd data ({error})") from None
