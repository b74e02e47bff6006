"""This module takes a layer's stored bytes and gives its tar, spooled to a file with its entries."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from harness.errors import DiskFull, FormatError
from harness.formats.gzip.inflate import inflate
from harness.formats.tar.entry_reader import EntryReader
from harness.formats.tar.scanner import BLOCK, TarEntry, TarScanner

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from harness.formats.tar.reading import LayerReading


@dataclass(frozen=True, slots=True)
class SpooledTar:
    """Holds a layer's tar in an unlinked file: ``entries`` in order and their meaning, ``size`` bytes, ``sha256:…`` of
    them.

    It is a context manager that closes the file. The file is padded with zeros where the tar leaves out the last
    padding.
    """

    file: IO[bytes]
    entries: list[TarEntry]
    reading: LayerReading
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
    where: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> SpooledTar:
    """Decompresses a layer into a temporary file and reads its headers on the way.

    ``where`` names the layer in errors. ``progress`` is told the stored bytes taken. Raises FormatError (also for what
    no mode could show), or DiskFull when ``directory`` has no room.
    """

    def counted() -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            progress(len(piece))

    scanner, reader, digest, size = TarScanner(), EntryReader(), hashlib.sha256(), 0
    entries: list[TarEntry] = []
    file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - handed to the caller
    try:
        with room_for(where, directory), errors_of(where):
            for piece in inflate(counted(), where):
                digest.update(piece)
                size += len(piece)
                _write(file, piece)
                found = scanner.feed(piece)
                for entry in found:
                    reader.read(entry)
                entries += found
            scanner.close()
            reading = reader.finish()
            end = max((entry.end_offset for entry in entries), default=0)
            if end > size:
                file.truncate(end + BLOCK)
    except BaseException:
        file.close()
        raise
    return SpooledTar(file, entries, reading, size, f"sha256:{digest.hexdigest()}")


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Lets each FormatError name the layer, once."""
    try:
        yield
    except FormatError as error:
        if error.where.startswith(where):
            raise
        raise type(error)(f"{where}, {error.where}", error.what) from None


@contextmanager
def room_for(what: str, directory: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turns a full disk or quota into DiskFull, which says what there was no room for and where."""
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
