"""This module writes an eStargz layer from a tar: members compressed on all cores, the blob in order, the TOC at its
end.

Each member is an independent gzip member, so batches of them are compressed side by side while the calling thread
hashes and writes the finished ones in order; the bytes depend on the input and the options alone, never on timing.

The compressor is libdeflate at level 6. On 1543 files of Python packages (41 MB; one member per file) it makes 12.72 MB
at 89 MB/s, where zlib at level 9 makes 12.70 MB at 9 MB/s, zlib at 6 12.81 MB at 34 MB/s, and igzip at 3 14.12 MB at
272 MB/s (2.1 GHz Xeon).
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import deflate

from harness.errors import FormatError
from harness.formats.estargz.footer import encode_footer
from harness.formats.estargz.layout import ZEROS, Chunk, Member, members
from harness.formats.estargz.order import Item, order_entries
from harness.formats.estargz.toc import (
    TOC_DIGEST_ANNOTATION,
    TOC_NAME,
    UNCOMPRESSED_SIZE_ANNOTATION,
    TocEntry,
    encode_toc,
)
from harness.formats.table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor
    from typing import BinaryIO

    from harness.formats.tar.scanner import TarEntry

DEFAULT_CHUNK_BYTES = 4 << 20
COMPRESSION_LEVEL = 6
TOC_COMPRESSION_LEVEL = 9
"""The TOC is compressed so hard, since every cold start downloads it before it can do anything else, and it is made
only once.
"""

BATCH_BYTES = 4 << 20
BATCHES_IN_FLIGHT = 6

_BLOCK = 512
_TYPE_NAMES = {
    Kind.REG: "reg", Kind.DIR: "dir", Kind.CHAR: "char", Kind.BLOCK: "block", Kind.FIFO: "fifo",
    Kind.SYMLINK: "symlink", Kind.HARDLINK: "hardlink",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EstargzOptions:
    """Says how to write.

    ``chunk_size`` is in bytes of a file, ``min_chunk_size`` in decompressed bytes of a member (0: one chunk each);
    ``prioritized`` names come first, in this order.
    """

    chunk_size: int = DEFAULT_CHUNK_BYTES
    min_chunk_size: int = 0
    prioritized: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EstargzBlob:
    """Holds what was written.

    ``missing`` are prioritised names the layer has no entry for, ``unencodable_names`` how many names or targets are
    not UTF-8 and so stand altered in the TOC (a limit of the format).
    """

    size: int
    digest: str
    diff_id: str
    toc_digest: str
    uncompressed_size: int
    entries: int
    missing: tuple[str, ...]
    unencodable_names: int

    @property
    def annotations(self) -> dict[str, str]:
        """Returns the annotations for the layer's descriptor."""
        return {TOC_DIGEST_ANNOTATION: self.toc_digest, UNCOMPRESSED_SIZE_ANNOTATION: str(self.uncompressed_size)}


@dataclass(frozen=True, slots=True)
class _Done:
    """Holds a batch after its compression: decompressed bytes, members, and each chunk's place and digest in it."""

    raw: bytes
    compressed: list[bytearray]
    chunks: list[list[tuple[Chunk, int, str]]]


def write_estargz(
    tar: int,
    entries: Iterable[TarEntry],
    out: BinaryIO,
    options: EstargzOptions,
    *,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None] = lambda _: None,
) -> EstargzBlob:
    """Writes the eStargz form of the tar behind descriptor ``tar`` (``entries`` are all of its entries, in order).

    The tar must reach the end of the last entry's padding. ``pool`` compresses; ``progress`` is told decompressed
    bytes done. Raises FormatError or UnsafePath for entries the format cannot hold.
    """
    order = order_entries(entries, options.prioritized)
    toc = _TocBuilder(order.items)
    blob, diff = hashlib.sha256(), hashlib.sha256()
    offset = uncompressed = 0
    for batch in _compressed(tar, members(order.items, options.chunk_size, options.min_chunk_size), pool):
        diff.update(batch.raw)
        uncompressed += len(batch.raw)
        for compressed, chunks in zip(batch.compressed, batch.chunks, strict=True):
            for chunk, at, digest in chunks:
                toc.add_chunk(chunk, offset, digest, memoryview(batch.raw)[at : at + chunk.size])
            offset += len(compressed)
        together = b"".join(batch.compressed)
        blob.update(together)
        out.write(together)
        progress(len(batch.raw))

    document = encode_toc(toc.entries())
    info = tarfile.TarInfo(TOC_NAME)
    info.size, info.mode = len(document), 0
    ending = info.tobuf(tarfile.USTAR_FORMAT) + document + bytes(-len(document) % _BLOCK + 2 * _BLOCK)
    diff.update(ending)
    tail = bytes(deflate.gzip_compress(ending, TOC_COMPRESSION_LEVEL)) + encode_footer(offset)
    blob.update(tail)
    out.write(tail)
    return EstargzBlob(
        size=offset + len(tail),
        digest=f"sha256:{blob.hexdigest()}",
        diff_id=f"sha256:{diff.hexdigest()}",
        toc_digest="sha256:" + hashlib.sha256(document).hexdigest(),
        uncompressed_size=uncompressed + len(ending),
        entries=len(order.items),
        missing=tuple(order.missing),
        unencodable_names=toc.unencodable_names,
    )


def _compressed(tar: int, cut: Iterator[Member], pool: ThreadPoolExecutor) -> Iterator[_Done]:
    """Yields batches in order, a bounded number of them in flight."""
    waiting: deque[Future[_Done]] = deque()
    try:
        for batch in _batches(cut):
            waiting.append(pool.submit(_compress, tar, batch))
            if len(waiting) >= BATCHES_IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        # The descriptor belongs to the caller, who may close it: let running batches end first.
        for future in waiting:
            if not future.cancelled():
                future.exception()


def _batches(cut: Iterator[Member]) -> Iterator[list[Member]]:
    batch: list[Member] = []
    size = 0
    for member in cut:
        batch.append(member)
        size += member.size
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _compress(tar: int, batch: list[Member]) -> _Done:
    raw = _read(tar, batch)
    view = memoryview(raw)
    compressed: list[bytearray] = []
    chunks: list[list[tuple[Chunk, int, str]]] = []
    at = 0
    for member in batch:
        compressed.append(deflate.gzip_compress(view[at : at + member.size], COMPRESSION_LEVEL))
        placed = []
        for chunk in member.chunks:
            start = at + chunk.inner_offset
            placed.append((chunk, start, hashlib.sha256(view[start : start + chunk.size]).hexdigest()))
        chunks.append(placed)
        at += member.size
    return _Done(raw, compressed, chunks)


def _read(tar: int, batch: list[Member]) -> bytes:
    """Returns the batch's decompressed bytes; neighbouring members of an unchanged order are one read."""
    together = Member()
    for member in batch:
        for segment in member.segments:
            together.add(segment)
    pieces: list[bytes] = []
    for segment in together.segments:
        if isinstance(segment, bytes):
            pieces.append(segment)
        elif segment[0] == ZEROS:
            pieces.append(bytes(segment[1]))
        else:
            offset, length = segment
            piece = os.pread(tar, length, offset)
            if len(piece) != length:
                raise FormatError(f"tar at offset {offset}", f"{len(piece)} bytes of {length} are there")
            pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _TocBuilder:
    """Collects each item's TOC entries while its chunks come by in order."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items
        self._chunks: dict[int, list[TocEntry]] = {}
        self._file_digest = hashlib.sha256()
        self._owners: tuple[dict[int, bytes], dict[int, bytes]] = {}, {}
        self.unencodable_names = 0

    def add_chunk(self, chunk: Chunk, offset: int, digest: str, data: memoryview) -> None:
        """Records a chunk of the member at ``offset``; ``data`` is its payload."""
        digest = f"sha256:{digest}"
        # As the reference does it: a chunk says its size unless it is a shorter last one.
        entry = TocEntry(
            "", "chunk", offset=offset, inner_offset=chunk.inner_offset, chunk_offset=chunk.file_offset,
            chunk_size=chunk.size if chunk.full else 0, chunk_digest=digest,
        )  # fmt: skip
        if chunk.file_offset == 0:
            self._chunks[chunk.item] = [entry]
            if chunk.last:
                entry.digest = digest
                return
            self._file_digest = hashlib.sha256()
        else:
            self._chunks[chunk.item].append(entry)
        self._file_digest.update(data)
        if chunk.last:
            self._chunks[chunk.item][0].digest = f"sha256:{self._file_digest.hexdigest()}"

    def entries(self) -> Iterator[TocEntry]:
        """Yields all entries in writing order."""
        for number, item in enumerate(self._items):
            head = self._entry(item)
            if item.kind != Kind.REG:
                yield head
                continue
            if item.payload.size == 0:
                head.digest = _EMPTY_DIGEST
                yield head
                continue
            pieces = self._chunks.pop(number)
            head.size, head.digest = item.payload.size, pieces[0].digest
            for piece in pieces:
                target = head if piece is pieces[0] else piece
                target.name = head.name
                target.offset, target.inner_offset = piece.offset, piece.inner_offset
                target.chunk_offset, target.chunk_digest = piece.chunk_offset, piece.chunk_digest
                target.chunk_size = piece.chunk_size
                yield target

    def _entry(self, item: Item) -> TocEntry:
        entry = item.entry
        xattrs = entry.xattrs if entry.pax else {}
        links = item.kind in (Kind.SYMLINK, Kind.HARDLINK)
        device = item.kind in (Kind.CHAR, Kind.BLOCK)
        return TocEntry(
            name=self._text(entry.name),
            type=_TYPE_NAMES[item.kind],
            modtime=_format_time(entry.mtime_s + (entry.mtime_ns >= 500_000_000)),
            link_name=self._text(entry.linkname) if links else "",
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            user_name=self._if_changed(0, entry.uid, entry.uname),
            group_name=self._if_changed(1, entry.gid, entry.gname),
            dev_major=entry.devmajor if device else 0,
            dev_minor=entry.devminor if device else 0,
            xattrs={self._text(key): value for key, value in xattrs.items()} or None,
        )

    def _if_changed(self, which: int, number: int, name: bytes) -> str:
        if not name or self._owners[which].get(number) == name:
            return ""
        self._owners[which][number] = name
        return self._text(name)

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.unencodable_names += 1
            return raw.decode("utf-8", "surrogateescape")


_EMPTY_DIGEST = "sha256:" + hashlib.sha256(b"").hexdigest()
_SECONDS_PER_CYCLE, _YEARS_PER_CYCLE = 146_097 * 86_400, 400


@lru_cache(maxsize=1 << 16)
def _format_time(seconds: int) -> str:
    """Writes RFC 3339 in UTC, "" for the epoch itself; the Gregorian calendar repeats after 400 years, so any year
    works.
    """
    if seconds == 0:
        return ""
    cycles, rest = divmod(seconds, _SECONDS_PER_CYCLE)
    moment = datetime.fromtimestamp(rest, UTC)
    year = moment.year + cycles * _YEARS_PER_CYCLE
    return f"{'-' * (year < 0)}{abs(year):04d}-{moment:%m-%dT%H:%M:%SZ}"
