"""This module builds the zTOC of one layer in a single pass over its stored bytes."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING

from harness.formats.gzip.checkpoints import index_gzip
from harness.formats.piece_digests import PieceDigests
from harness.formats.soci.ztoc_layout import GZIP, TYPES, UNCOMPRESSED
from harness.formats.soci.ztoc_spool import CheckpointStore, EntrySpool
from harness.formats.soci.ztoc_write import PlainCheckpoints, serialise
from harness.formats.tar.entry_reader import EntryReader
from harness.formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from harness.formats.tar.reading import LayerReading
    from harness.formats.tar.scanner import TarEntry

DEFAULT_SPAN_BYTES = 4 << 20
COMPRESSIONS = {"gzip": GZIP, "none": UNCOMPRESSED}


class LayerIndexer:
    """Reads a layer once, then writes its zTOC. ``compression`` is ``gzip`` or ``none``.

    ``on_entry`` sees every tar entry. Memory stays below 200 MB whatever the layer's size (see ``ztoc_spool``). Use
    as a context manager, or call :meth:`close`.

    After :meth:`read`: ``reading`` is what the layer means and ``diff_id`` the digest of its tar; ``obstacle`` says why
    the layer can have no zTOC that gives back its files (empty when it can: a zTOC knows one extent per file and seven
    types of entries); ``plain_attributes`` whether no entry has extended attributes and no directory is opaque.
    """

    def __init__(
        self,
        compression: str,
        span_size: int = DEFAULT_SPAN_BYTES,
        on_entry: Callable[[TarEntry], object] | None = None,
    ) -> None:
        self.algorithm = COMPRESSIONS[compression]
        self.span_size = span_size
        self.entries = EntrySpool()
        self.obstacle = ""
        self.plain_attributes = True
        self._on_entry = on_entry
        self._reader = EntryReader()
        self.reading: LayerReading | None = None
        self.diff_id = ""
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
        self.entries.close()

    def read(self, pieces: Iterable[bytes], on_piece: Callable[[bytes], object] | None = None) -> None:
        """Takes the stored layer; ``on_piece`` sees each piece (to verify a digest, to show progress).

        Raises FormatError for damaged gzip or tar data.
        """
        scanner = TarScanner()
        whole = hashlib.sha256()

        def on_output(view: memoryview) -> None:
            whole.update(view)
            self._take(scanner.feed(view))

        if self.algorithm == GZIP:
            store = CheckpointStore(self.span_size)
            self._checkpoints = store
            found = index_gzip(pieces, self.span_size, store.add, on_output, on_piece)
            self.span_starts = [checkpoint.out_offset for checkpoint in found.checkpoints]
            self.span_digests = found.span_digests
            self.compressed_bytes = found.compressed_bytes
        else:
            self._read_plain(pieces, on_output, on_piece)
        scanner.close()
        self.diff_id = f"sha256:{whole.hexdigest()}"
        self.reading = self._reader.finish()
        self.plain_attributes = self.plain_attributes and not self.reading.opaque
        self.archive_bytes = scanner.position

    def _read_plain(
        self,
        pieces: Iterable[bytes],
        on_output: Callable[[memoryview], object],
        on_piece: Callable[[bytes], object] | None,
    ) -> None:
        spans = PieceDigests(self.span_size)
        for piece in pieces:
            if on_piece is not None:
                on_piece(piece)
            on_output(memoryview(piece))
            spans.update(piece)
            self.compressed_bytes += len(piece)
        self.span_digests = spans.finish()
        self.span_starts = list(range(0, self.compressed_bytes, self.span_size))
        self._checkpoints = PlainCheckpoints(self.span_size, self.compressed_bytes)

    def _take(self, entries: list[TarEntry]) -> None:
        for entry in entries:
            self._reader.read(entry)
            if entry.pax:
                self.plain_attributes = self.plain_attributes and not entry.xattrs
            if entry.sparse is not None or entry.flag not in TYPES:
                name = entry.name[:200].decode("utf-8", "replace")
                odd = f"{name!r} is of tar type {chr(entry.flag)!r}, which a zTOC cannot hold"
                self.obstacle = self.obstacle or (odd if entry.flag not in TYPES else f"{name!r} is a sparse file")
            if self._on_entry is not None:
                self._on_entry(entry)
        self.entries.extend(entries)

    def write(self, file: IO[bytes], tool: str) -> tuple[str, int]:
        """Writes the zTOC; returns its digest (``sha256:<hex>``) and size in bytes."""
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
