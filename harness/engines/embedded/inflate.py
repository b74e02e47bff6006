"""Compressed layer bytes in, decompressed pieces out, one after the other and never a whole layer at once.

Two gzip decoders: ``isal`` (Intel ISA-L, the fastest there is) and ``zlib`` (what unpigz, and so Docker, uses).
"""

from __future__ import annotations

import zlib
from typing import IO, TYPE_CHECKING, Any, cast

from isal import isal_zlib

from harness.errors import FormatError, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_PIECE = 1 << 20
"""Most bytes of one decompressed piece, whatever the input claims: a bomb costs time, never memory."""

_GZIP = 31
_DAMAGED: Any = (zlib.error, isal_zlib.error)


def inflate(compression: str, chunks: Iterator[bytes], where: str, decoder: str = "isal") -> Iterator[bytes]:
    """Decompressed pieces of a layer; FormatError when the stream is damaged or ends early.

    ``compression`` is ``none``, ``gzip`` (one or many members) or ``zstd`` (one or many frames).
    """
    if compression == "none":
        return chunks
    if compression == "gzip":
        make: Callable[[], Any] = (
            (lambda: isal_zlib.decompressobj(_GZIP)) if decoder == "isal" else lambda: zlib.decompressobj(_GZIP)
        )
        return _gzip(make, chunks, where)
    if compression == "zstd":
        return _zstd(chunks, where)
    raise UnsupportedMediaType(f"{where}: compression {compression} is not supported")


def _gzip(make: Callable[[], Any], chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    member = make()
    inside = False  # whether a member has begun that has not ended
    for chunk in chunks:
        data = chunk
        while data:
            if not inside and data[:1] == b"\0":  # padding between or after members
                data = data.lstrip(b"\0")
                continue
            inside = True
            try:
                piece = member.decompress(data, MAX_PIECE)
            except _DAMAGED as error:
                raise FormatError(where, f"damaged gzip stream ({error})") from None
            if piece:
                yield piece
            if member.eof:
                data = member.unused_data
                member, inside = make(), False
            else:
                data = member.unconsumed_tail
                # full pieces may leave output behind although all input was taken
                while not data and len(piece) == MAX_PIECE and not member.eof:
                    piece = member.decompress(b"", MAX_PIECE)
                    if piece:
                        yield piece
                    data = member.unconsumed_tail
    if inside:
        raise FormatError(where, "the gzip stream ends early")


class _Chunks:
    """The file-like face of an iterator that zstandard's reader wants; short reads are fine with it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]


def _zstd(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        cast("IO[bytes]", _Chunks(chunks)), read_size=1 << 17, read_across_frames=True
    )
    try:
        while piece := reader.read(MAX_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise FormatError(where, f"damaged zstd stream ({error})") from None
