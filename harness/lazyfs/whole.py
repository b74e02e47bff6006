"""Layers without a way in (zstd, or any without an index): fetched whole and inflated into the disk cache at start."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import zstandard
from isal import isal_zlib

from harness.errors import DigestMismatch, DiskFull, FormatError, UnsupportedMediaType
from harness.lazyfs import igzip
from harness.oci.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.lazyfs.disk_cache import SparseFile
    from harness.oci.store import BlobStore

_PIECE_BYTES = 256 << 10


class _Inflater:
    """Pushes decompressed bytes of a stream of members or frames to ``write``."""

    def __init__(self, compression: str, write: Callable[[bytes | memoryview], None], where: str) -> None:
        self._write = write
        self._where = where
        self._compression = compression
        self._member: isal_zlib.decompressobj | None = None  # type: ignore[valid-type]
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._stream = igzip.StreamInflater(write, where) if compression == "gzip" and igzip.available else None
        if compression not in {"gzip", "zstd", "none"}:
            raise UnsupportedMediaType(f"{where}: compression {compression!r} is not supported")

    def feed(self, data: bytes) -> None:
        isal_error: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub declares an instance
        try:
            if self._compression == "none":
                self._write(data)
            elif self._stream is not None:
                self._stream.feed(data)
            elif self._compression == "gzip":
                self._feed_gzip(data)
            else:
                self._feed_zstd(data)
        except (isal_error, zlib.error, zstandard.ZstdError) as error:
            raise FormatError(self._where, f"damaged compressed data ({error})") from None

    def _feed_gzip(self, data: bytes) -> None:
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")  # padding between or after members
                if not data:
                    return
                self._member = isal_zlib.decompressobj(31)
            member = self._member
            self._write(member.decompress(data, 1 << 20))
            while not member.eof and member.unconsumed_tail:
                self._write(member.decompress(member.unconsumed_tail, 1 << 20))
            data = b""
            if member.eof:
                data, self._member = member.unused_data, None

    def _feed_zstd(self, data: bytes) -> None:
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            frame = self._frame
            self._write(frame.decompress(data))
            data = b""
            if frame.eof:
                data, self._frame = frame.unused_data, None

    def finish(self) -> None:
        """FormatError when the stream ends inside a member or frame."""
        if self._stream is not None:
            self._stream.finish()
        if self._member is not None or self._frame is not None:
            raise FormatError(self._where, "the compressed data ends early")


def fetch_whole(store: BlobStore, digest: str, compression: str, size: int, sink: SparseFile) -> int:
    """Fill ``sink`` with a layer's ``size`` decompressed bytes; the stored bytes received. Blocks.

    Raises DigestMismatch when the blob is another, FormatError when it inflates to another size, DiskFull.
    """
    where = f"layer {digest[:19]}"
    position = 0

    def write(data: bytes | memoryview) -> None:
        nonlocal position
        if position < size and data and not sink.write(position, data[: size - position]):
            raise DiskFull("the machine's disk has no room for the decompressed layers; give the shape a larger one")
        position += len(data)

    inflater = _Inflater(compression, write, where)
    hasher = hashlib.sha256()
    received = 0

    def hashed(data: bytes) -> None:
        nonlocal received
        received += len(data)
        hasher.update(data)
        inflater.feed(data)

    batches = Batches(_PIECE_BYTES, hashed)
    store.stream_blob(digest, batches.take)
    batches.flush()
    inflater.finish()
    actual = "sha256:" + hasher.hexdigest()
    if actual != digest:
        raise DigestMismatch(where, digest, actual)
    if position < size:
        raise FormatError(where, f"inflates to {position} bytes, and the index promises {size}")
    return received
