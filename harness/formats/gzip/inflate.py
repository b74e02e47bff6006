"""This module takes a layer's stored bytes and gives decompressed pieces, one after the other and never a whole layer
at once.

What a layer is compressed with is told by its first bytes (``sniff``). A stream that ends inside a member or frame is
an error, and so is what stands behind the last one, but for zeros behind gzip, which are padding.

There are two gzip decoders: ``isal`` (Intel ISA-L, the fastest there is) and ``zlib`` (what unpigz, and so Docker,
uses). Both release the interpreter lock and check each member's CRC. A caller that pulls pieces uses ``inflate``, one
that is handed bytes uses ``Pusher``.
"""

from __future__ import annotations

import zlib
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from isal import igzip_lib, isal_zlib

from harness.errors import FormatError
from harness.formats.sniff import GZIP, SNIFFED_BYTES, ZSTD, compression_of, sniffed
from harness.formats.zstd_frames import FrameWalk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_PIECE = 1 << 18
"""A decompressed piece has at most so many bytes, whatever the input claims: a bomb costs disk or time, never memory.

ISA-L's binding asks for a buffer of this size each time. At 1 MiB malloc mapped it anew for every piece, and the page
faults were a third of the time of inflating (290 ms instead of 200 for 205 MB); at 256 KiB it comes from the heap.
"""
MAX_ZSTD_WINDOW_BYTES = 128 << 20

_GZIP = 31
_DAMAGED: Any = (zlib.error, isal_zlib.error, ValueError)


class _Member(Protocol):
    """Inflates one gzip member."""

    def pieces(self, data: bytes) -> Iterator[bytes]: ...

    def rest(self) -> bytes | None:
        """Returns what of the data lies behind the member's end; None while it has not ended."""
        ...


class _IsalMember:
    __slots__ = ("_inflater",)

    def __init__(self) -> None:
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        inflater = self._inflater
        while True:
            if piece := inflater.decompress(data, MAX_PIECE):
                yield piece
            if inflater.eof or inflater.needs_input:
                return
            data = b""

    def rest(self) -> bytes | None:
        return self._inflater.unused_data if self._inflater.eof else None


class _ZlibMember:
    __slots__ = ("_inflater",)

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        inflater = self._inflater
        while True:
            if piece := inflater.decompress(data, MAX_PIECE):
                yield piece
            data = inflater.unconsumed_tail
            # A full piece may leave output behind although all input was taken.
            if inflater.eof or not (data or len(piece) == MAX_PIECE):
                return

    def rest(self) -> bytes | None:
        return self._inflater.unused_data if self._inflater.eof else None


class _Gzip:
    """Inflates member after member of a gzip stream that comes in pieces; zeros between and behind them are passed
    over.
    """

    def __init__(self, make: Callable[[], _Member], where: str) -> None:
        self._make = make
        self._where = where
        self._member: _Member | None = None
        self._members = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        member = self._member
        while True:
            if member is None:
                data = data.lstrip(b"\0")
                if not data:
                    self._member = None
                    return
                if self._members and not b"\x1f\x8b".startswith(data[:2]):
                    raise behind(self._where)
                member = self._make()
            try:
                yield from member.pieces(data)
            except _DAMAGED as error:
                raise FormatError(self._where, f"damaged gzip stream ({error})") from None
            rest = member.rest()
            if rest is None:
                self._member = member
                return
            self._members += 1
            data, member = rest, None

    def finish(self) -> None:
        if self._member is not None:
            raise FormatError(self._where, "the gzip stream ends early")


def behind(where: str) -> FormatError:
    """Makes the error for bytes that are neither padding nor another member."""
    return FormatError(where, "something stands behind the gzip stream that is neither padding nor another member")


def inflate(chunks: Iterable[bytes], where: str, decoder: str = "isal") -> Iterator[bytes]:
    """Yields decompressed pieces of a layer (as they come for a plain tar); FormatError when it is damaged or ends
    early.

    The first bytes say whether it is plain, gzip (one or many members) or zstd (one or many frames); what is
    compressed otherwise raises UnsupportedMediaType.
    """
    compression, chunks = sniffed(chunks, where)
    if compression == GZIP:
        return _pulled(_Gzip(_IsalMember if decoder == "isal" else _ZlibMember, where), chunks)
    return _zstd(chunks, where) if compression == ZSTD else chunks


def _pulled(stream: _Gzip, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield from stream.pieces(chunk)
    stream.finish()


class _Chunks:
    """Gives an iterator the file-like face that zstandard's reader wants; short reads are fine with it."""

    def __init__(self, chunks: Iterable[bytes], walk: FrameWalk) -> None:
        self._chunks = iter(chunks)
        self._walk = walk
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest
        if not data:
            data = next(self._chunks, b"")
            self._walk.feed(data)
        self._rest = data[size:]
        return data[:size]


def _zstd(chunks: Iterable[bytes], where: str) -> Iterator[bytes]:
    import zstandard

    walk = FrameWalk(where)
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).stream_reader(
        cast("IO[bytes]", _Chunks(chunks, walk)), read_size=1 << 17, read_across_frames=True
    )
    try:
        while piece := reader.read(MAX_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise FormatError(where, f"damaged zstd stream ({error})") from None
    walk.finish()


class _Writer:
    """Gives a function the face of a file."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(data)
        return len(data)


class Pusher:
    """Hands the decompressed pieces of a layer to ``write``, none larger than MAX_PIECE (as fed, of a plain tar)."""

    def __init__(self, write: Callable[[bytes], object], where: str) -> None:
        self._write = write
        self._where = where
        self._head = b""
        self._sniffed = False
        self._gzip: _Gzip | None = None
        self._zstd: Any = None
        self._walk: FrameWalk | None = None
        self._zstd_error: type[Exception] | tuple[()] = ()

    def _begin(self, first: bytes) -> None:
        self._sniffed = True
        compression = compression_of(first, self._where)
        if compression == GZIP:
            self._gzip = _Gzip(_IsalMember, self._where)
        elif compression == ZSTD:
            import zstandard

            self._zstd_error = zstandard.ZstdError
            self._walk = FrameWalk(self._where)
            self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).stream_writer(
                cast("IO[bytes]", _Writer(self._write)), write_size=MAX_PIECE
            )

    def feed(self, data: bytes) -> None:
        """Takes more of the layer; FormatError when it is damaged, UnsupportedMediaType for an unknown compression."""
        if not self._sniffed:
            self._head += data
            if len(self._head) < SNIFFED_BYTES:
                return
            data, self._head = self._head, b""
            self._begin(data)
        if self._gzip is not None:
            for piece in self._gzip.pieces(data):
                self._write(piece)
        elif self._walk is not None:
            self._walk.feed(data)
            try:
                self._zstd.write(data)
            except self._zstd_error as error:
                raise FormatError(self._where, f"damaged zstd stream ({error})") from None
        else:
            self._write(data)

    def finish(self) -> None:
        """Raises FormatError when the layer ended inside a member or a frame."""
        if not self._sniffed:
            data, self._head = self._head, b""
            self._begin(data)
            self.feed(data)
        if self._gzip is not None:
            self._gzip.finish()
        if self._walk is not None:
            self._walk.finish()
