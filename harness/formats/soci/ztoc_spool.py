"""This module keeps, bounded, what building a zTOC would otherwise hold in memory: checkpoints, entries and the file
table.

Each store lives in memory up to a limit and in an unnamed temporary file beyond, so that a layer of any size is
indexed in the memory of a middling one.
"""

from __future__ import annotations

import marshal
import tempfile
from operator import attrgetter
from typing import TYPE_CHECKING

from harness.formats.gzip.checkpoints import WINDOW_BYTES
from harness.formats.soci.ztoc_layout import FIXED, HEADER
from harness.formats.tar.scanner import TarEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.formats.gzip.checkpoints import Checkpoint

MEMORY_BYTES = 32 << 20
ENTRIES = 1 << 16
"""A spool keeps so many entries as objects (about 0.5 KB each)."""

_FIELDS = (
    "name", "linkname", "uname", "gname", "flag", "mode", "uid", "gid", "size", "mtime_s", "mtime_ns", "devmajor",
    "devminor", "payload_offset", "header_offset", "pax",
)  # fmt: skip
_fields_of = attrgetter(*_FIELDS)


class Spool:
    """Keeps pieces of bytes, given back in the order they came or in the opposite one."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 -- closed by close()
        self._ends = [0]

    def add(self, piece: bytes) -> None:
        self._file.write(piece)
        self._ends.append(self._ends[-1] + len(piece))

    def _read(self, index: int) -> bytes:
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index])

    def __reversed__(self) -> Iterator[bytes]:
        for index in range(len(self._ends) - 2, -1, -1):
            yield self._read(index)

    def close(self) -> None:
        self._file.close()


class CheckpointStore:
    """Keeps checkpoints in their serialised form."""

    def __init__(self, span_size: int) -> None:
        self._span_size = span_size
        self._count = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 -- closed by close()

    def add(self, checkpoint: Checkpoint, window: bytes) -> None:
        """Appends one checkpoint (a sink for ``index_gzip``)."""
        self._count += 1
        self._file.write(FIXED.pack(*checkpoint))
        self._file.write(window)

    @property
    def size(self) -> int:
        return HEADER.size + self._count * (FIXED.size + WINDOW_BYTES)

    def pieces(self) -> Iterator[bytes]:
        yield HEADER.pack(self._count, self._span_size)
        self._file.seek(0)
        while piece := self._file.read(1 << 20):
            yield piece

    def close(self) -> None:
        self._file.close()


class EntrySpool:
    """Keeps tar entries in order, read back last first; older ones lose what a zTOC does not hold (sparse maps)."""

    def __init__(self) -> None:
        self._recent: list[TarEntry] = []
        self._older = Spool()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, entries: list[TarEntry]) -> None:
        self._recent += entries
        self._count += len(entries)
        while len(self._recent) > ENTRIES:
            self._older.add(marshal.dumps([_fields_of(entry) for entry in self._recent[:ENTRIES]]))
            del self._recent[:ENTRIES]

    def __reversed__(self) -> Iterator[TarEntry]:
        yield from reversed(self._recent)
        for piece in reversed(self._older):
            for values in reversed(marshal.loads(piece)):
                entry = TarEntry()
                for name, value in zip(_FIELDS, values, strict=True):
                    setattr(entry, name, value)
                entry.sparse, entry.stored_bytes = None, entry.size
                yield entry

    def close(self) -> None:
        self._older.close()
