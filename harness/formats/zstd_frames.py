"""This module finds where the frames of a zstd stream end: libzstd's streaming interface does not tell an end from a
cut.

Only headers are read: a frame is a header, blocks that say how long they are, and perhaps a checksum. Source: RFC 8878,
3.1.1 (frames) and 3.1.2 (skippable frames).
"""

from __future__ import annotations

from typing import Final

from harness.errors import FormatError
from harness.formats.sniff import SKIPPABLE_MAGIC, ZSTD_MAGIC

_CONTENT_SIZE_BYTES: Final = (0, 2, 4, 8)
_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_MAGIC_BYTES, _BLOCK_HEADER_BYTES, _CHECKSUM_BYTES = 4, 3, 4
_RLE, _RESERVED = 1, 3


class FrameWalk:
    """Follows a stream that comes in pieces; ``finish`` says whether it ended where a frame ends."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._skip = 0
        """Counts bytes to pass over before the next header."""
        self._head = b""
        """Holds the beginning of a header that is not complete yet."""
        self._inside = False
        self._checksum_bytes = 0
        self._frames = 0

    def feed(self, data: bytes) -> None:
        """Takes more of the stream; FormatError for what is no frame."""
        if self._head:
            data, self._head = self._head + data, b""
        position, size = 0, len(data)
        while position < size:
            step = min(self._skip, size - position)
            self._skip -= step
            position += step
            if position == size:
                return
            taken = self._block(data, position) if self._inside else self._header(data, position)
            if not taken:
                self._head = data[position:]
                return
            position += taken

    def finish(self) -> None:
        """Raises FormatError when the stream has ended inside a frame."""
        if self._inside or self._skip or self._head:
            raise FormatError(self._where, "the zstd stream ends early")

    def _block(self, data: bytes, position: int) -> int:
        """Counts the bytes of the block header at ``position``; 0 when it is not complete."""
        if len(data) - position < _BLOCK_HEADER_BYTES:
            return 0
        header = int.from_bytes(data[position : position + _BLOCK_HEADER_BYTES], "little")
        kind, length = header >> 1 & 3, header >> 3
        if kind == _RESERVED:
            raise FormatError(self._where, "damaged zstd stream (a block of the reserved type)")
        self._skip = 1 if kind == _RLE else length
        if header & 1:
            self._skip += self._checksum_bytes
            self._inside = False
            self._frames += 1
        return _BLOCK_HEADER_BYTES

    def _header(self, data: bytes, position: int) -> int:
        """Counts the bytes of the frame header at ``position``; 0 when it is not complete."""
        magic = data[position : position + _MAGIC_BYTES]
        left = len(data) - position
        skippable = magic[1:] == SKIPPABLE_MAGIC[: len(magic) - 1] and 0x50 <= magic[0] <= 0x5F
        if not skippable and not ZSTD_MAGIC.startswith(magic):
            what = "something stands behind the zstd stream that is no frame" if self._frames else "is no zstd stream"
            raise FormatError(self._where, what)
        if skippable:
            if left < 2 * _MAGIC_BYTES:
                return 0
            self._skip = int.from_bytes(data[position + _MAGIC_BYTES : position + 2 * _MAGIC_BYTES], "little")
            self._frames += 1
            return 2 * _MAGIC_BYTES
        if left < _MAGIC_BYTES + 1:
            return 0
        described = data[position + _MAGIC_BYTES]
        single = described >> 5 & 1
        content = _CONTENT_SIZE_BYTES[described >> 6] or single
        size = _MAGIC_BYTES + 1 + (1 - single) + _DICTIONARY_BYTES[described & 3] + content
        if left < size:
            return 0
        self._checksum_bytes = _CHECKSUM_BYTES if described & 4 else 0
        self._inside = True
        return size
