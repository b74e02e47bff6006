"""Builds the zTOC of one layer in a single pass over its stored bytes."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING

from harness.formats.gzip_index import index_gzip
from harness.formats.table import OPAQUE_MARKER
from harness.formats.tar import TarEntry, TarScanner
from harness.formats.ztoc_write import GZIP, TYPES, UNCOMPRESSED, CheckpointStore, PlainCheckpoints, serialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_SPAN_BYTES = 4 << 20
COMPRESSIONS = {"gzip": GZIP, "none": UNCOMPRESSED}


class LayerIndexer:
    """Reads a layer once, then writes its zTOC. ``compression`` is ``gzip`` or ``none``.

    Windows of checkpoints go to an unnamed file beyond 64 MiB, so memory grows with the number of entries only
    (about a kilobyte each). Use as a context manager, or call :meth:`close`.
    """

    def __init__(self, compression: str, span_size: int = DEFAULT_SPAN_BYTES) -> None:
        self.algorithm = COMPRESSIONS[compression]
        self.span_size = span_size
        self.entries: list[TarEntry] = []
        self.span_starts: list[int] = []
        self.span_digests: list[bytes] = []
        self.compressed_bytes = 0
        self.archive_bytes = 0
        self._checkpoints: CheckpointStore | PlainCheckpoints | None = None

    def __enter__(self) -> LayerIndexer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()

    def read(self, pieces: Iterable[bytes], on_piece: Callable[[bytes], object] | None = None) -> None:
        """Take the stored layer; ``on_piece`` sees each piece (to verify a digest, to show progress).

        Raises FormatError for damaged gzip or tar data.
        """
        scanner = TarScanner()
        if self.algorithm == GZIP:
            store = CheckpointStore(self.span_size)
            self._checkpoints = store
            found = index_gzip(
                pieces, self.span_size, store.add, lambda view: self.entries.extend(scanner.feed(view)), on_piece
            )
            self.span_starts = [checkpoint.out_offset for checkpoint in found.checkpoints]
            self.span_digests = found.span_digests
            self.compressed_bytes = found.compressed_bytes
        else:
            self._read_plain(pieces, scanner, on_piece)
        scanner.close()
        self.archive_bytes = scanner.position

    def _read_plain(
        self, pieces: Iterable[bytes], scanner: TarScanner, on_piece: Callable[[bytes], object] | None
    ) -> None:
        digest, left = hashlib.sha256(), self.span_size
        for piece in pieces:
            if on_piece is not None:
                on_piece(piece)
            self.entries.extend(scanner.feed(piece))
            view = memoryview(piece)
            while view:
                part = view[:left]
                digest.update(part)
                left -= len(part)
                view = view[len(part) :]
                if not left:
                    self.span_digests.append(digest.digest())
                    digest, left = hashlib.sha256(), self.span_size
            self.compressed_bytes += len(piece)
        if left < self.span_size:
            self.span_digests.append(digest.digest())
        self.span_starts = list(range(0, self.compressed_bytes, self.span_size))
        self._checkpoints = PlainCheckpoints(self.span_size, self.compressed_bytes)

    @property
    def obstacle(self) -> str:
        """Why this layer can have no zTOC that gives back its files; empty when it can.

        A zTOC knows one extent per file, and seven types of entries.
        """
        for entry in self.entries:
            name = entry.name[:200].decode("utf-8", "replace")
            if entry.sparse is not None:
                return f"{name!r} is a sparse file"
            if entry.flag not in TYPES:
                return f"{name!r} is of tar type {chr(entry.flag)!r}, which a zTOC cannot hold"
        return ""

    @property
    def plain_attributes(self) -> bool:
        """Whether no entry has extended attributes and no directory is opaque."""
        return not any(
            entry.name.rpartition(b"/")[2] == OPAQUE_MARKER or (entry.pax and entry.xattrs) for entry in self.entries
        )

    def write(self, file: IO[bytes], tool: str) -> tuple[str, int]:
        """Write the zTOC; returns its digest (``sha256:<hex>``) and size in bytes."""
        assert self._checkpoints is not None
        digest, size = hashlib.sha256(), 0
        for piece in serialise(
            self.entries,
            self._checkpoints,
            self.span_digests,
            algorithm=self.algorithm,
            tool=tool,
            compressed_bytes=self.compressed_bytes,
            archive_bytes=self.archive_bytes,
        ):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        return f"sha256:{digest.hexdigest()}", size
