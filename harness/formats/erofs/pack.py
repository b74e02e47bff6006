"""This module writes and reads the start pack of an EROFS index: what a recorded start asks for, in one blob, in that
order.

The blob is a *table* and, behind it, *frames*. The table is ``CBPACK01``, the sha256 of the index's head, u32 frames,
u32 ranges; by frame u32 packed bytes, u32 unpacked bytes, u32 ranges and the sha256 of the packed bytes; by range u32
first page and u32 pages of the image file (pages of 4096 bytes). All numbers are little-endian. A frame is one zstd
frame of its ranges' bytes, one after the other, as the image file has them. docs/formats.md, "Start pack", has the
chain of digests.

``decode_table`` takes the table as hostile and raises FormatError or DigestMismatch.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.errors import DigestMismatch, FormatError
from harness.formats.erofs.spans import check_digest, unpack
from harness.oci.descriptor import digest_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from harness.formats.erofs.spans import ErofsIndex
    from harness.oci.descriptor import Descriptor

PACK_TYPE: Final = "application/vnd.coldbench.erofs.pack.v1"
ANNOTATION_TABLE_SIZE: Final = "org.coldbench.erofs.pack.table-size"
ANNOTATION_TABLE_DIGEST: Final = "org.coldbench.erofs.pack.table-digest"

PAGE_BYTES: Final = 4096
FRAME_BYTES: Final = 1 << 20
"""A frame has so many bytes unpacked: a read waits for one frame, and decoding one takes 2 ms."""
MAX_FRAME_BYTES: Final = 4 << 20
MAX_FRAMES: Final = 1 << 12
MAX_RANGES: Final = 1 << 20
MAX_PACK_BYTES: Final = 1 << 30
"""A pack has at most so many bytes unpacked; whoever uses a pack keeps its packed bytes in memory."""

_MAGIC: Final = b"CBPACK01"
_HEAD: Final = struct.Struct("<8s32sII")
_FRAME: Final = struct.Struct("<III32s")
_RANGE: Final = struct.Struct("<II")
_WHERE: Final = "start pack"


@dataclass(frozen=True, slots=True)
class Frame:
    """Describes a frame. ``begins`` and ``ends`` are its ranges in the image file, ascending; ``places``: where each is
    in the frame.
    """

    offset: int
    """This is where the frame begins in the blob."""
    packed_bytes: int
    raw_bytes: int
    digest: bytes
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    places: tuple[int, ...]

    def decode(self, packed: bytes | bytearray | memoryview, number: int) -> bytes:
        """Returns the bytes of all ranges from what ``check`` found right; raises FormatError."""
        return unpack(memoryview(packed), self.raw_bytes, f"{_WHERE}: frame {number}")

    def check(self, packed: bytes | bytearray | memoryview, number: int) -> None:
        """Raises DigestMismatch unless these are the frame's packed bytes."""
        check_digest(f"{_WHERE}: frame {number}", self.digest, memoryview(packed))


@dataclass(frozen=True, slots=True)
class Place:
    """Names a piece of the image file that frame ``frame`` has at ``begin``."""

    frame: int
    begin: int
    size: int


class Pack:
    """Holds a decoded table. Ranges do not overlap, and lie in the layers' part of the image file."""

    def __init__(self, frames: tuple[Frame, ...], table_bytes: int) -> None:
        self.frames = frames
        self.table_bytes = table_bytes
        self.raw_bytes = sum(frame.raw_bytes for frame in frames)
        rows = sorted(
            (begin, end, number, place)
            for number, frame in enumerate(frames)
            for begin, end, place in zip(frame.begins, frame.ends, frame.places, strict=True)
        )
        self._begins = [row[0] for row in rows]
        self._rows = rows

    @property
    def blob_bytes(self) -> int:
        """Counts the bytes of table and frames."""
        return self.table_bytes + sum(frame.packed_bytes for frame in self.frames)

    def ranges(self) -> list[tuple[int, int]]:
        """Returns (begin, end) of every range in the image file, ascending."""
        return [(begin, end) for begin, end, _, _ in self._rows]

    def places(self, offset: int, size: int) -> list[Place] | None:
        """Returns where the ``size`` bytes at ``offset`` of the image file are; None unless all of them are here."""
        row = bisect_right(self._begins, offset) - 1
        if row < 0:
            return None
        found: list[Place] = []
        stop = offset + size
        while offset < stop:
            if row == len(self._rows):
                return None
            begin, end, frame, place = self._rows[row]
            if not begin <= offset < end:
                return None
            part = min(stop, end) - offset
            found.append(Place(frame, place + offset - begin, part))
            offset += part
            row += 1
        return found


def encode_table(head_digest: str, frames: Sequence[Frame]) -> bytes:
    """Writes the table of these frames, of the index whose head has ``head_digest``."""
    ranges = sum(len(frame.begins) for frame in frames)
    parts = [_HEAD.pack(_MAGIC, bytes.fromhex(head_digest.partition(":")[2]), len(frames), ranges)]
    parts += [_FRAME.pack(frame.packed_bytes, frame.raw_bytes, len(frame.begins), frame.digest) for frame in frames]
    for frame in frames:
        parts += [
            _RANGE.pack(begin // PAGE_BYTES, (end - begin) // PAGE_BYTES)
            for begin, end in zip(frame.begins, frame.ends, strict=True)
        ]
    return b"".join(parts)


def pack_descriptor(table: bytes, blob: bytes) -> Descriptor:
    """Says how the artefact's manifest names the pack: the table has a digest of its own, to be checked before the
    rest.
    """
    from harness.oci.descriptor import Descriptor

    annotations = {ANNOTATION_TABLE_SIZE: str(len(table)), ANNOTATION_TABLE_DIGEST: digest_bytes(table)}
    return Descriptor.of(blob, PACK_TYPE, annotations=annotations)


def table_bytes(pack: Descriptor) -> int:
    """Says how many bytes of the blob are the table; FormatError when the descriptor does not say, or too many."""
    text = pack.annotations.get(ANNOTATION_TABLE_SIZE, "")
    most = _HEAD.size + MAX_FRAMES * _FRAME.size + MAX_RANGES * _RANGE.size
    if not (text.isascii() and text.isdigit() and len(text) < 12 and _HEAD.size <= int(text) <= min(most, pack.size)):
        raise FormatError(_WHERE, f"its descriptor says no size of the table ({text[:20]!r})")
    return int(text)


def decode_table(table: bytes, pack: Descriptor, head_digest: str, index: ErofsIndex) -> Pack:
    """Reads the table that ``pack`` names, held against the index that it belongs to.

    Raises:
        DigestMismatch: these are not the table's bytes.
        FormatError: it is malformed, of another index, or has ranges that it cannot have.
    """
    actual, expected = digest_bytes(table), pack.annotations.get(ANNOTATION_TABLE_DIGEST, "")
    if actual != expected:
        raise DigestMismatch(f"{_WHERE}: table", expected, actual)
    if len(table) < _HEAD.size:
        raise FormatError(_WHERE, f"a table of {len(table)} bytes")
    magic, head, frame_count, range_count = _HEAD.unpack_from(table)
    if magic != _MAGIC or len(table) != _HEAD.size + frame_count * _FRAME.size + range_count * _RANGE.size:
        raise FormatError(_WHERE, "the table is not one, or cut")
    if f"sha256:{head.hex()}" != head_digest:
        raise FormatError(_WHERE, "belongs to another index; make it anew: coldbench index erofs --record")
    if not frame_count <= MAX_FRAMES or not frame_count <= range_count <= MAX_RANGES:
        raise FormatError(_WHERE, f"{frame_count} frames with {range_count} ranges")
    pages = np.frombuffer(table, "<u4", 2 * range_count, _HEAD.size + frame_count * _FRAME.size).astype(np.int64)
    begins, ends = pages[::2] * PAGE_BYTES, (pages[::2] + pages[1::2]) * PAGE_BYTES
    _check_ranges(begins, ends, index)
    frames = []
    at, offset, total = 0, len(table), 0
    for number in range(frame_count):
        packed, size, ranges, digest = _FRAME.unpack_from(table, _HEAD.size + number * _FRAME.size)
        mine = slice(at, at + ranges)
        at += ranges
        first, last = begins[mine], ends[mine]
        sizes = last - first
        if not 0 < size <= MAX_FRAME_BYTES or not 0 < packed <= size + (size >> 8) + 64:
            raise FormatError(_WHERE, f"frame {number} of {packed} bytes, unpacked {size}")
        if at > range_count or int(sizes.sum()) != size:
            raise FormatError(_WHERE, f"frame {number} has {size} bytes for ranges of {int(sizes.sum())}")
        if (first[1:] < last[:-1]).any():
            raise FormatError(_WHERE, f"the ranges of frame {number} are not in order")
        places = np.cumsum(sizes) - sizes
        frames.append(
            Frame(offset, packed, size, digest, tuple(first.tolist()), tuple(last.tolist()), tuple(places.tolist()))
        )
        offset += packed
        total += size
    if at != range_count or offset != pack.size:
        raise FormatError(_WHERE, f"a blob of {pack.size} bytes, of which {offset} are described")
    if total > MAX_PACK_BYTES:
        raise FormatError(_WHERE, f"{total} bytes unpacked (at most {MAX_PACK_BYTES})")
    return Pack(tuple(frames), len(table))


def _check_ranges(begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], index: ErofsIndex) -> None:
    """Raises FormatError for ranges that are empty, overlap, or lie in the metadata or behind the image."""
    if not len(begins):
        return
    if (ends <= begins).any():
        raise FormatError(_WHERE, "a range of no bytes")
    first = index.layer_starts[0] if index.layers else index.image_bytes
    if int(begins.min()) < first or int(ends.max()) > index.image_bytes:
        raise FormatError(_WHERE, f"a range outside the layers, which are bytes {first} to {index.image_bytes}")
    order = np.argsort(begins, kind="stable")
    if (begins[order][1:] < ends[order][:-1]).any():
        raise FormatError(_WHERE, "ranges that overlap")


def frame_digest(packed: bytes) -> bytes:
    """Returns what a table says of a frame."""
    return hashlib.sha256(packed).digest()
