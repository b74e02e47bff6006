"""This module indexes one layer for EROFS: a single pass over its stored bytes gives its table, spans and windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from harness.formats.erofs.spans import GZIP, PLAIN, WHOLE, LayerSpans, pack_window
from harness.formats.erofs.table import TarTable
from harness.formats.gzip.checkpoints import index_gzip
from harness.formats.gzip.inflate import inflate
from harness.formats.piece_digests import PieceDigests
from harness.formats.sniff import sniffed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from harness.formats.erofs.merge import Fragment
    from harness.formats.gzip.checkpoints import Checkpoint
    from harness.formats.table import LayerTable

_WINDOW_LEVEL = 9


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """Holds what one pass over a layer found."""

    spans: LayerSpans
    table: LayerTable
    fragments: Mapping[int, Sequence[Fragment]]
    diff_id: str


def build_layer(
    pieces: Iterable[bytes],
    *,
    digest: str,
    span_bytes: int,
    where: str,
    on_piece: Callable[[bytes], object] = lambda _: None,
) -> BuiltLayer:
    """Reads a layer once: gzip (eStargz included), a plain tar, or zstd (which has no way in), as its first bytes say.

    ``on_piece`` sees every stored piece, for progress and for checking the layer's digest. Raises FormatError for
    damaged data. It holds in memory the table, and about a third of 32 KiB per span.
    """
    table = _HashedTable()
    compression, pieces = sniffed(pieces, where)
    if compression == GZIP:
        spans = _gzip(pieces, table, digest, span_bytes, on_piece)
    elif compression == PLAIN:
        spans = _plain(pieces, table, digest, span_bytes, on_piece)
    else:
        spans = _whole(pieces, table, digest, where=where, on_piece=on_piece)
    return BuiltLayer(spans, table.finish(spans.size), table.fragments, table.diff_id)


class _HashedTable(TarTable):
    """Makes a table, and hashes the tar on the way."""

    def __init__(self) -> None:
        super().__init__()
        self._digest = hashlib.sha256()

    def feed(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        super().feed(data)

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def _gzip(
    pieces: Iterable[bytes], table: TarTable, digest: str, span_bytes: int, on_piece: Callable[[bytes], object]
) -> LayerSpans:
    compressor = zstandard.ZstdCompressor(level=_WINDOW_LEVEL)
    windows: list[bytes] = []

    def keep(_: Checkpoint, window: bytes) -> None:
        windows.append(pack_window(window, compressor))

    found = index_gzip(pieces, span_bytes, keep, table.feed, on_piece)
    # An empty member before the first gives a span of no bytes, which the index does not hold.
    points = found.checkpoints
    empty = {n for n in range(len(points) - 1) if points[n].out_offset == points[n + 1].out_offset}
    digests = [digest for n, digest in enumerate(found.span_digests) if n not in empty]
    windows = [window for n, window in enumerate(windows) if n not in empty]
    points = [point for n, point in enumerate(points) if n not in empty] if found.inflated_bytes else []
    return LayerSpans(
        digest=digest,
        compressed_bytes=found.compressed_bytes,
        kind=GZIP,
        size=found.inflated_bytes,
        ins=np.array([point.in_offset for point in points], dtype=np.int64),
        outs=np.array([point.out_offset for point in points], dtype=np.int64),
        bits=np.array([point.bits for point in points], dtype=np.uint8),
        digests=digests if points else [],
        windows=windows if points else [],
    )


def _plain(
    pieces: Iterable[bytes], table: TarTable, digest: str, span_bytes: int, on_piece: Callable[[bytes], object]
) -> LayerSpans:
    spans, size = PieceDigests(span_bytes), 0
    for piece in pieces:
        on_piece(piece)
        table.feed(piece)
        size += len(piece)
        spans.update(piece)
    digests = spans.finish()
    starts = np.arange(0, size, span_bytes, dtype=np.int64)
    return LayerSpans(
        digest, size, PLAIN, size, starts, starts, np.zeros(len(starts), np.uint8), digests, [b""] * len(starts)
    )


def _whole(
    pieces: Iterable[bytes],
    table: TarTable,
    digest: str,
    *,
    where: str,
    on_piece: Callable[[bytes], object],
) -> LayerSpans:
    stored, size = 0, 0
    whole = hashlib.sha256()

    def counted() -> Iterator[bytes]:
        nonlocal stored
        for piece in pieces:
            on_piece(piece)
            whole.update(piece)
            stored += len(piece)
            yield piece

    for piece in inflate(counted(), where):
        table.feed(piece)
        size += len(piece)
    one = np.zeros(1 if size else 0, dtype=np.int64)
    digests = [whole.digest()] * len(one)
    return LayerSpans(digest, stored, WHOLE, size, one, one, one.astype(np.uint8), digests, [b""] * len(one))
