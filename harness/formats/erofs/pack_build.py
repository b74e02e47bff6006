"""This module builds a start pack from recordings: their pages in first-touch order, read from the layers through the
index.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import zstandard

from harness.formats.erofs.pack import FRAME_BYTES, MAX_PACK_BYTES, PAGE_BYTES, Frame, encode_table, frame_digest
from harness.formats.erofs.spans import WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from harness.formats.erofs.recording import Recording
    from harness.formats.erofs.spans import ErofsIndex, IndexedLayer

DEFAULT_PACK_BYTES: Final = 64 << 20
"""A pack has so many bytes unpacked, since a start that asks for more is one that lazy pulling does little for."""
_LEVEL: Final = 3
"""Level 19 makes a pack 14 % smaller, and no start sooner (onnx image, 0.25 CPU)."""


class LayerBytes(Protocol):
    """Reads a layer's address space: fewer bytes than asked for only at its end."""

    def read(self, offset: int, size: int) -> bytes: ...


def pages_of(index: ErofsIndex, recording: Recording, most_bytes: int = DEFAULT_PACK_BYTES) -> list[tuple[int, int]]:
    """Returns (first page, pages) of the image file that a recording asks for, in first-touch order, each page once.

    Layers that the image does not have are left out, and so are those that are fetched whole before the mount. What is
    beyond ``most_bytes`` is left to the spans.
    """
    fresh = np.ones(index.image_bytes // PAGE_BYTES, dtype=bool)
    left = min(most_bytes, MAX_PACK_BYTES) // PAGE_BYTES
    found: list[tuple[int, int]] = []
    for first, stop in _wanted(index, recording):
        for run_first, run_stop in _runs(fresh[first:stop]):
            pages = min(left, run_stop - run_first)
            if pages:
                found.append((first + run_first, pages))
                left -= pages
        fresh[first:stop] = False
        if not left:
            break
    return found


def _wanted(index: ErofsIndex, recording: Recording) -> Iterator[tuple[int, int]]:
    """Yields (first page, one after the last) of each recorded range, wherever the image has that layer."""
    layers: dict[str, list[IndexedLayer]] = {}
    for layer in index.layers:
        if layer.kind != WHOLE:
            layers.setdefault(layer.digest, []).append(layer)
    for digest, begin, end in recording.ranges:
        for layer in layers.get(digest, ()):
            if begin < layer.size:
                yield (layer.start + begin) // PAGE_BYTES, -(-(layer.start + min(end, layer.size)) // PAGE_BYTES)


def _runs(fresh: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns (first, one after the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fresh, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def frames_of(pages: Sequence[tuple[int, int]], frame_bytes: int = FRAME_BYTES) -> list[list[tuple[int, int]]]:
    """Cuts the pages into frames: (begin, end) in the image file, ascending in each frame, neighbours merged."""
    frames: list[list[tuple[int, int]]] = []
    room = 0
    for first, count in pages:
        page, stop = first, first + count
        while page < stop:
            if not room:
                frames.append([])
                room = frame_bytes // PAGE_BYTES
            part = min(room, stop - page)
            frames[-1].append((page * PAGE_BYTES, (page + part) * PAGE_BYTES))
            page, room = page + part, room - part
    return [_merged(frame) for frame in frames]


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and merged[-1][1] == begin:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((begin, end))
    return merged


def read_image(index: ErofsIndex, layers: Sequence[LayerBytes], begin: int, end: int) -> bytes:
    """Returns bytes [begin, end) of the image file, which lie in one layer's part of it; padding is zeros."""
    number = max(layer.number for layer in index.layers if layer.start <= begin)
    data = layers[number].read(begin - index.layers[number].start, end - begin)
    return data + bytes(end - begin - len(data))


def build_pack(
    index: ErofsIndex,
    head_digest: str,
    layers: Sequence[LayerBytes],
    recording: Recording,
    most_bytes: int = DEFAULT_PACK_BYTES,
) -> tuple[bytes, bytes] | None:
    """Returns (table, blob) of the pack of a recording; None where nothing of it is in this image.

    The same index, recording and limit give the same bytes. Raises what reading the layers raises.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
    frames, blobs = [], []
    for ranges in frames_of(pages_of(index, recording, most_bytes)):
        data = b"".join(_read(index, layers, begin, end) for begin, end in ranges)
        packed = compressor.compress(data)
        begins, ends = tuple(begin for begin, _ in ranges), tuple(end for _, end in ranges)
        frames.append(Frame(0, len(packed), len(data), frame_digest(packed), begins, ends, ()))
        blobs.append(packed)
    if not frames:
        return None
    table = encode_table(head_digest, frames)
    return table, table + b"".join(blobs)


def _read(index: ErofsIndex, layers: Sequence[LayerBytes], begin: int, end: int) -> bytes:
    """Does what ``read_image`` does, of ranges that neighbours of two layers were merged into."""
    starts = [layer.start for layer in index.layers if begin < layer.start < end]
    cuts = [begin, *starts, end]
    return b"".join(read_image(index, layers, low, high) for low, high in pairwise(cuts))
