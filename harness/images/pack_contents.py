"""This module says what a start pack holds of an image: by file, and held against a layer's tar byte for byte."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.erofs.reader import ErofsImage, over_bytes

if TYPE_CHECKING:
    from harness.formats.erofs.packing import MadePack
    from harness.formats.erofs.spans import ErofsIndex, IndexedLayer
    from harness.formats.gzip.layer_stream import SpooledTar


def files_in(made: MadePack, index: ErofsIndex) -> list[tuple[str, int]]:
    """Returns (path, bytes of it that the pack holds), by path; tar headers and padding on its pages are no file's."""
    ranges = made.pack.ranges()
    ends = [end for _, end in ranges]
    held: dict[str, int] = {}
    for path, extent in ErofsImage(over_bytes(index.metadata)).file_extents():
        begin, end = extent.image_offset, extent.image_offset + extent.size
        size = 0
        for low, high in ranges[bisect_right(ends, begin) :]:
            if low >= end:
                break
            size += min(high, end) - max(low, begin)
        if size:
            name = "/" + path.decode("utf-8", "surrogateescape")
            held[name] = held.get(name, 0) + size
    return sorted(held.items())


def check_against(made: MadePack, index: ErofsIndex, layer: IndexedLayer, tar: SpooledTar) -> None:
    """Raises FormatError where the pack has other bytes of a layer than its tar, or anything but zeros behind them."""
    following = [other.start for other in index.layers if other.start > layer.start]
    stop = min(following, default=index.image_bytes)
    for number, frame in enumerate(made.pack.frames):
        inside = [
            (max(begin, layer.start), min(end, stop), place + max(begin, layer.start) - begin)
            for begin, end, place in zip(frame.begins, frame.ends, frame.places, strict=True)
            if begin < stop and end > layer.start
        ]
        if not inside or not layer.size:
            continue
        data = frame.decode(made.blob[frame.offset : frame.offset + frame.packed_bytes], number)
        for begin, end, place in inside:
            stored = os.pread(tar.descriptor, end - begin, begin - layer.start)
            if data[place : place + end - begin] != stored + bytes(end - begin - len(stored)):
                where = f"bytes {begin - layer.start} to {end - layer.start}"
                raise FormatError("start pack", f"frame {number} has other bytes than the layer at its {where}")
