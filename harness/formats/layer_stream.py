"""A layer's stored bytes in, its tar out: streamed, in bounded pieces, and spooled to a file with its entries.

Inflation is igzip's (ISA-L), which releases the interpreter lock and checks each member's CRC.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import zstandard
from isal import igzip_lib

from harness.errors import DiskFull, FormatError, UnsupportedMediaType
from harness.formats.estargz_toc import INFLATE_ERROR
from harness.formats.tar import BLOCK, TarEntry, TarScanner

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

PIECE_BYTES = 1 << 20
"""Most decompressed bytes held at a time: a bomb costs disk or time, never memory."""
MAX_ZSTD_WINDOW_BYTES = 128 << 20


def decompressed(pieces: Iterable[bytes], compression: str, where: str) -> Iterator[bytes]:
    """The layer's tar in pieces of at most PIECE_BYTES (as they come for ``none``).

    ``compression`` is ``none``, ``gzip`` (one member or many, zero padding between them) or ``zstd``. Raises
    FormatError for a damaged or cut stream.
    """
    if compression == "none":
        return iter(pieces)
    if compression == "gzip":
        return _gunzipped(pieces, where)
    if compression == "zstd":
        return _unzstd(pieces, where)
    raise UnsupportedMediaType(f"{where}: compression {compression!r} is not supported")


def _gunzipped(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    member = None
    for piece in pieces:
        data = piece
        while True:
            if member is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            try:
                out = member.decompress(data, PIECE_BYTES)
            except (INFLATE_ERROR, ValueError) as error:
                raise FormatError(where, f"damaged gzip stream ({error})") from error
            if out:
                yield out
            data = b""
            if member.eof:
                data, member = member.unused_data, None
            elif member.needs_input:
                break
    if member is not None:
        raise FormatError(where, "the gzip stream ends early")


class _Pieces:
    """The file-like face of an iterator of bytes; short reads are fine with its reader."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]


def _unzstd(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    source = cast("IO[bytes]", _Pieces(pieces))
    try:
        with decompressor.stream_reader(source, read_across_frames=True) as reader:
            while out := reader.read(PIECE_BYTES):
                yield out
    except zstandard.ZstdError as error:
        raise FormatError(where, f"damaged zstd stream ({error})") from error


@dataclass(frozen=True, slots=True)
class SpooledTar:
    """A layer's tar in an unlinked file: ``entries`` in order, ``size`` bytes, ``diff_id`` as ``sha256:…``.

    A context manager that closes the file. The file is padded with zeros where the tar leaves out the last padding.
    """

    file: IO[bytes]
    entries: list[TarEntry]
    size: int
    diff_id: str

    @property
    def descriptor(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> SpooledTar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def spool(
    pieces: Iterable[bytes],
    compression: str,
    where: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> SpooledTar:
    """Decompress a layer into a temporary file and read its headers on the way.

    ``progress`` is told the stored bytes taken. Raises FormatError, or DiskFull when ``directory`` has no room.
    """

    def counted() -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            progress(len(piece))

    scanner, entries, digest, size = TarScanner(), [], hashlib.sha256(), 0
    file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - handed to the caller
    try:
        with room_for(where, directory):
            for piece in decompressed(counted(), compression, where):
                digest.update(piece)
                size += len(piece)
                _write(file, piece)
                entries += scanner.feed(piece)
            scanner.close()
            end = max((entry.end_offset for entry in entries), default=0)
            if end > size:
                file.truncate(end + BLOCK)
    except BaseException:
        file.close()
        raise
    return SpooledTar(file, entries, size, f"sha256:{digest.hexdigest()}")


@contextmanager
def room_for(what: str, directory: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn a full disk or quota into DiskFull, which says what there was no room for and where."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{what}: no room left in {directory or tempfile.gettempdir()}") from error
        raise


def _write(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
