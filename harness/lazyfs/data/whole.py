"""This module fetches layers whole and inflates them into the disk cache at start.

It does so for layers that cannot be read in part (zstd, or any without an index).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import DigestMismatch, DiskFull, FormatError
from harness.formats.gzip import igzip
from harness.formats.gzip.inflate import Pusher
from harness.formats.sniff import GZIP, SNIFFED_BYTES, compression_of
from harness.lazyfs.data import span_stream
from harness.lazyfs.data.unit_file import LayerSums
from harness.oci.batches import Batches

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from harness.formats.erofs.spans import IndexedLayer
    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.oci.store import BlobStore

_PIECE_BYTES = 256 << 10


class WholeLayer(NamedTuple):
    """Says what fetching a layer whole cost; ``refetched`` says why it was fetched a second time, if it was."""

    received_bytes: int
    sums: list[array[int]]
    """Holds the checksums of the index's spans as they were written (``harness.lazyfs.data.unit_file``)."""
    requests: int = 1
    refetched: str = ""


def fetch_whole(
    store: BlobStore, digest: str, compression: str, size: int, sink: SparseFile, *, layer: IndexedLayer | None = None
) -> WholeLayer:
    """Fill ``sink`` with a layer's ``size`` decompressed bytes. Blocks.

    ``layer`` is the index's description of the same layer. Where blob and index agree, inflating by spans costs less;
    where they do not, the blob is fetched once more and inflated as a stream. Raises DigestMismatch when the blob is
    another, FormatError when it inflates to another size, DiskFull.
    """
    as_stream = _Filling(store, digest, size, sink, layer)
    if layer is None or not span_stream.fits(layer):
        return WholeLayer(as_stream.as_stream(compression), as_stream.sums.sums)
    by_spans = _Filling(store, digest, size, sink, layer)
    try:
        return WholeLayer(by_spans.by_spans(layer), by_spans.sums.sums)
    except span_stream.Disagreement as disagreement:
        received = by_spans.received_bytes + as_stream.as_stream(compression)
        return WholeLayer(
            received, as_stream.sums.sums, 2, str(disagreement) or "the index and the stream do not agree"
        )


class _Filling:
    """Fills the sink in one attempt."""

    def __init__(self, store: BlobStore, digest: str, size: int, sink: SparseFile, layer: IndexedLayer | None) -> None:
        self._store = store
        self._digest = digest
        self._size = size
        self._sink = sink
        self._where = f"layer {digest[:19]}"
        self._position = 0
        self.received_bytes = 0
        self.sums = LayerSums(layer.starts, layer.ends) if layer is not None else LayerSums([0], [size])

    def _write(self, data: bytes | memoryview) -> None:
        room = self._size - self._position
        if room > 0 and data:
            data = data[:room]
            self._write_at(self._sink, self._position, data)
            self.sums.feed(self._position, data)
        self._position += len(data)

    @staticmethod
    def _write_at(sink: SparseFile, position: int, data: bytes | memoryview) -> None:
        if not sink.write(position, data):
            raise DiskFull("the machine's disk has no room for the decompressed layers; give the shape a larger one")

    def by_spans(self, layer: IndexedLayer) -> int:
        sink = self._sink.uncached()

        def write(position: int, data: memoryview) -> None:
            self._write_at(sink, position, data)
            self.sums.feed(position, data)
            self._position = min(self._size, position + len(data))

        try:
            stream = span_stream.SpanStream(layer, write)
            return self._fill(stream.feed, stream.finish)
        finally:
            sink.close()

    def as_stream(self, compression: str) -> int:
        inflater = _Inflater(self._write, self._where)
        return self._fill(inflater.feed, inflater.finish)

    def _fill(self, feed: Callable[[bytes], None], finish: Callable[[], None]) -> int:
        hasher = hashlib.sha256()

        def hashed(data: bytes) -> None:
            self.received_bytes += len(data)
            hasher.update(data)
            feed(data)

        batches = Batches(_PIECE_BYTES, hashed)
        self._store.stream_blob(self._digest, batches.take)
        batches.flush()
        actual = "sha256:" + hasher.hexdigest()
        if actual != self._digest:
            raise DigestMismatch(self._where, self._digest, actual)
        finish()
        if self._position < self._size:
            raise FormatError(self._where, f"inflates to {self._position} bytes, and the index promises {self._size}")
        return self.received_bytes


class _Inflater:
    """Inflates as ``Pusher`` does, but gzip by ISA-L's own interface if there is one.

    That one takes one buffer and no CRC (the input is hashed).
    """

    def __init__(self, write: Callable[[bytes | memoryview], None], where: str) -> None:
        self._write = write
        self._where = where
        self._head = b""
        self._chosen: igzip.StreamInflater | Pusher | None = None

    def _choose(self, first: bytes) -> igzip.StreamInflater | Pusher:
        if igzip.available and compression_of(first, self._where) == GZIP:
            return igzip.StreamInflater(self._write, self._where)
        return Pusher(self._write, self._where)

    def feed(self, data: bytes) -> None:
        if self._chosen is None:
            data, self._head = self._head + data, b""
            if len(data) < SNIFFED_BYTES:
                self._head = data
                return
            self._chosen = self._choose(data)
        self._chosen.feed(data)

    def finish(self) -> None:
        if self._chosen is None:
            self._chosen = self._choose(self._head)
            self._chosen.feed(self._head)
        self._chosen.finish()
