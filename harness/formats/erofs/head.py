"""This module writes and reads the head of an EROFS index: metadata, spans and digests in one blob, fetched whole to
mount.

``CBEROFS1``, four u32 (bytes of the JSON, bytes of the packed part, spans, windows), the JSON, the packed part (one
zstd frame: metadata, then by span of all layers in order ``in`` i64, ``out`` i64, window offset i64, then prefetch
extents (layer, begin, end) i64, then window size u32 and bit position u8 by span), sha256 of each span, sha256 of each
window that there is. All numbers are little-endian. Nothing is read entry by entry: columns are taken as numpy finds
them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zstandard

from harness.errors import FormatError
from harness.formats.erofs.layout import PART_ALIGN, SUPER_OFFSET, SUPER_SIZE, Superblock
from harness.formats.erofs.spans import (
    KINDS,
    MAX_PACKED_WINDOW,
    MAX_SPAN_BYTES,
    MAX_UNPACKED_BYTES,
    PLAIN,
    WHOLE,
    ErofsIndex,
    IndexedLayer,
    LayerSpans,
    unpack,
)
from harness.oci.descriptor import go_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from harness.oci.descriptor import Descriptor

MAX_SPANS: Final = 1 << 24
_MAGIC: Final = b"CBEROFS1"
_FRAME: Final = struct.Struct("<8sIIII")
_LEVEL: Final = 9
"""An entry of a Debian tree takes 15.7 bytes, in 0.07 CPU seconds per 45 000; level 19 takes 1.9 for 14.0, and gzip -9
gives 18.6. Inflating them takes 4 to 5 ms with any level.
"""
_NO_NUMBERS: Final = np.empty(0, dtype=np.int64)
_WHERE: Final = "EROFS index"


def encode_index(
    metadata: bytes,
    layer_starts: Sequence[int],
    image_bytes: int,
    layers: Sequence[LayerSpans],
    prefetch: Sequence[tuple[int, int, int]] = (),
) -> tuple[bytes, bytes]:
    """Returns (head, windows): the two blobs. Windows of spans under ``prefetch`` come first, in one run."""
    block_size = Superblock.parse(metadata[SUPER_OFFSET : SUPER_OFFSET + SUPER_SIZE]).block_size
    bases = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(layer.ins) for layer in layers], dtype=np.int64)])
    spans = int(bases[-1])
    for layer in layers:
        if layer.kind != WHOLE:
            _check_longest(f"layer {layer.digest}", layer.outs, layer.ins, layer.size, layer.compressed_bytes)
    order: dict[int, None] = {}
    for number, begin, end in prefetch:
        outs = layers[number].outs
        first = int(np.searchsorted(outs, begin, side="right")) - 1
        last = int(np.searchsorted(outs, max(begin, end - 1), side="right")) - 1
        order.update((int(bases[number]) + span, None) for span in range(first, last + 1))
    order.update((span, None) for span in range(spans))
    windows = [window for layer in layers for window in layer.windows]
    offsets = np.zeros(spans, dtype="<i8")
    at = 0
    for span in order:
        offsets[span] = at
        at += len(windows[span])
    columns = [
        np.concatenate([_NO_NUMBERS, *(layer.ins for layer in layers)]).astype("<i8"),
        np.concatenate([_NO_NUMBERS, *(layer.outs for layer in layers)]).astype("<i8"),
        offsets,
        np.array([part for extent in prefetch for part in extent], dtype="<i8"),
        np.array([len(window) for window in windows], dtype="<u4"),
        np.concatenate([_NO_NUMBERS, *(layer.bits for layer in layers)]).astype("u1"),
    ]
    raw = metadata + b"".join(column.tobytes() for column in columns)
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    document = {
        "blockSize": block_size,
        "metadataBytes": len(metadata),
        "imageBytes": image_bytes,
        "windowsBytes": at,
        "prefetch": len(prefetch),
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.compressed_bytes,
                "compression": layer.kind,
                "start": start,
                "bytes": layer.size,
                "spans": len(layer.ins),
            }
            for layer, start in zip(layers, layer_starts, strict=True)
        ],
    }
    text = go_json(document)
    present = [window for window in windows if window]
    digests = b"".join(digest for layer in layers for digest in layer.digests)
    digests += b"".join(hashlib.sha256(window).digest() for window in present)
    head = _FRAME.pack(_MAGIC, len(text), len(packed), spans, len(present)) + text + packed + digests
    return head, b"".join(windows[span] for span in order)


def decode_head(head: bytes, layers: Sequence[Descriptor], windows: Descriptor | None) -> ErofsIndex:
    """Parses a head and holds it against the image's layers."""
    if len(head) < _FRAME.size:
        raise FormatError(_WHERE, f"a head of {len(head)} bytes")
    magic, text_bytes, packed_bytes, spans, window_count = _FRAME.unpack_from(head)
    packed_at = _FRAME.size + text_bytes
    digests_at = packed_at + packed_bytes
    if magic != _MAGIC or len(head) != digests_at + 32 * (spans + window_count) or spans > MAX_SPANS:
        raise FormatError(_WHERE, "the head is not one, or cut")
    try:
        document = json.loads(head[_FRAME.size : packed_at])
        geometry = _Geometry.of(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(_WHERE, f"its description is malformed ({error})") from None
    geometry.check(spans, layers, windows)
    sizes = [8 * spans, 8 * spans, 8 * spans, 24 * geometry.prefetch, 4 * spans, spans]
    raw = unpack(memoryview(head)[packed_at:digests_at], geometry.metadata_bytes + sum(sizes), _WHERE)
    at = geometry.metadata_bytes
    columns = []
    for size, kind in zip(sizes, ("<i8", "<i8", "<i8", "<i8", "<u4", "u1"), strict=True):
        columns.append(np.frombuffer(raw, kind, size // np.dtype(kind).itemsize, at))
        at += size
    metadata = raw[: geometry.metadata_bytes]
    parsed = Superblock.parse(metadata[SUPER_OFFSET : SUPER_OFFSET + SUPER_SIZE])
    if parsed.block_size != geometry.block_size or parsed.blocks * parsed.block_size != geometry.image_bytes:
        raise FormatError(_WHERE, "its file system is of another size than it says")
    window_digests = _spread(memoryview(head)[digests_at + 32 * spans :], columns[4], window_count)
    return ErofsIndex(
        metadata,
        geometry.image_bytes,
        geometry.block_size,
        _layers(geometry, columns, memoryview(head)[digests_at : digests_at + 32 * spans], window_digests),
        _prefetch(columns[3], geometry),
        windows,
    )


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Holds the head's JSON, types checked."""

    block_size: int
    metadata_bytes: int
    image_bytes: int
    windows_bytes: int
    prefetch: int
    layers: list[tuple[str, int, str, int, int, int]]
    """Lists (digest, stored bytes, kind, start, decompressed bytes, spans)."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> _Geometry:
        names = ("blockSize", "metadataBytes", "imageBytes", "windowsBytes", "prefetch")
        block, metadata, image, windows, prefetch = (_natural(document[name]) for name in names)
        layers = [
            (
                str(layer["digest"]),
                _natural(layer["size"]),
                str(layer["compression"]),
                _natural(layer["start"]),
                _natural(layer["bytes"]),
                _natural(layer["spans"]),
            )
            for layer in document["layers"]
        ]
        return cls(block, metadata, image, windows, prefetch, layers)

    def check(self, spans: int, layers: Sequence[Descriptor], windows: Descriptor | None) -> None:
        described = [(digest, size) for digest, size, *_ in self.layers]
        if described != [(layer.digest, layer.size) for layer in layers]:
            raise FormatError(_WHERE, "its layers are not the image's")
        if self.windows_bytes != (windows.size if windows is not None else 0):
            raise FormatError(_WHERE, "its windows are of another size than it says")
        if sum(layer[5] for layer in self.layers) != spans:
            raise FormatError(_WHERE, "its layers' spans do not add up")
        if not SUPER_OFFSET + SUPER_SIZE <= self.metadata_bytes <= MAX_UNPACKED_BYTES or self.prefetch > MAX_SPANS:
            raise FormatError(_WHERE, f"{self.metadata_bytes} bytes of metadata, {self.prefetch} extents to prefetch")
        at = self.metadata_bytes
        for _, _, kind, start, size, count in self.layers:
            if kind not in KINDS or start < at or start % PART_ALIGN or (count == 0) != (size == 0):
                raise FormatError(_WHERE, f"a layer of kind {kind!r} at {start}, where {at} bytes are taken")
            at = start + size
        if not at <= self.image_bytes < at + PART_ALIGN or self.image_bytes % PART_ALIGN:
            raise FormatError(_WHERE, f"{self.image_bytes} bytes in all, of which {at} are taken")


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is not a size")
    return value


def _layers(
    geometry: _Geometry, columns: Sequence[npt.NDArray[Any]], digests: memoryview, window_digests: memoryview
) -> tuple[IndexedLayer, ...]:
    ins, outs, window_offsets, _, window_sizes, bits = columns
    if (window_sizes > MAX_PACKED_WINDOW).any() or (window_offsets < 0).any() or (bits > 7).any():
        raise FormatError(_WHERE, "a window or bit position out of range")
    if len(window_offsets) and (window_offsets > geometry.windows_bytes - window_sizes.astype(np.int64)).any():
        raise FormatError(_WHERE, "a window stands outside the windows blob")
    found = []
    base = 0
    for number, (digest, stored, kind, start, size, count) in enumerate(geometry.layers):
        of = slice(base, base + count)
        base += count
        where = f"{_WHERE}: layer {number}"
        mine, places = outs[of], ins[of]
        if count and (
            mine[0] != 0
            or (np.diff(mine) <= 0).any()
            or int(mine[-1]) > size  # a last span of no bytes: an empty block ends the stream
            or int(places[0]) < 0
            or (np.diff(places) <= 0).any()
            or int(places[-1]) > stored
            or ((places == 0) & (bits[of] > 0)).any()
        ):
            raise FormatError(where, "its spans are out of order or outside the layer")
        if kind != WHOLE:
            _check_longest(where, mine, places, size, stored)
        if kind == PLAIN and count and (stored < size or (mine != places).any()):
            raise FormatError(where, "its spans are not those of an uncompressed layer")
        if kind == WHOLE and count > 1:
            raise FormatError(where, "has spans that it cannot have")
        starts = mine.tolist()
        found.append(
            IndexedLayer(
                number, digest, stored, kind, start, size, starts, [*starts[1:], size] if count else [],
                places.tolist(), bits[of].tobytes(), window_offsets[of].tolist(), window_sizes[of].tolist(),
                digests[32 * of.start : 32 * of.stop], window_digests[32 * of.start : 32 * of.stop],
            )
        )  # fmt: skip
    return tuple(found)


def _check_longest(where: str, outs: npt.NDArray[np.int64], ins: npt.NDArray[np.int64], size: int, stored: int) -> None:
    """Raises FormatError for a span that is too large to be held in memory, stored or inflated."""
    if not len(outs):
        return
    longest = max(int(np.diff(outs, append=size).max()), int(np.diff(ins, append=stored).max()))
    if longest > MAX_SPAN_BYTES:
        raise FormatError(where, f"a span of {longest} bytes, more than {MAX_SPAN_BYTES}")


def _spread(packed: memoryview, sizes: npt.NDArray[np.uint32], count: int) -> memoryview:
    """Returns the digests of the windows there are, at the places of their spans."""
    if int(np.count_nonzero(sizes)) != count:
        raise FormatError(_WHERE, f"{count} digests of windows for {int(np.count_nonzero(sizes))} windows")
    spread = np.zeros((len(sizes), 32), dtype=np.uint8)
    spread[sizes > 0] = np.frombuffer(packed, np.uint8).reshape(-1, 32)
    return memoryview(spread.tobytes())


def _prefetch(column: npt.NDArray[np.int64], geometry: _Geometry) -> tuple[tuple[int, int, int], ...]:
    flat = column.tolist()
    extents = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
    for layer, begin, end in extents:
        if not 0 <= layer < len(geometry.layers) or not 0 <= begin < end <= geometry.layers[layer][4]:
            raise FormatError(_WHERE, f"prefetch of bytes {begin} to {end} of layer {layer}")
    return extents
