"""This module keeps indexes on disk as they came, so that a daemon that takes over opens layers without the registry.

It remembers what is read of a store until ``seal``: the ranges of zTOCs, TOCs and the EROFS head. They are written out
when the mount is there. The ranges of one blob, the EROFS windows, are remembered for good. Whoever opens the layers
again gets them from the file. They are verified by their digests like what a registry gives.
"""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.oci.over import Over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.oci.store import BlobStore


@dataclass(frozen=True, slots=True)
class Answer:
    """Says that ``size`` bytes of a blob, from ``offset`` on, are at ``place`` of a file; ``checksum`` is a CRC-32."""

    digest: str
    offset: int
    size: int
    place: int
    checksum: int


class Remembered(Over):
    """Serves a BlobStore and remembers in ``file`` what is read of it; ``answers`` are those already in the file."""

    def __init__(self, store: BlobStore, file: SparseFile | None, answers: Sequence[Answer] = ()) -> None:
        super().__init__(store)
        self._file = file
        self._answers: dict[str, list[Answer]] = {}
        for answer in answers:
            self._answers.setdefault(answer.digest, []).append(answer)
        self._end = max((answer.place + answer.size for answer in answers), default=0)
        self._lock = threading.Lock()
        self._came: list[tuple[str, int, bytes]] | None = []
        self._given: set[tuple[str, int, int]] = set()
        self._always: dict[str, Callable[[Answer], None]] = {}

    @property
    def link(self) -> Any:
        """Returns the store's link (``harness.oci.registry.link``); None where it has none."""
        return getattr(self._store, "link", None)

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        """Returns the bytes from the file where it has them, else from the store."""
        wanted = (digest, offset, size)
        # Whoever asks again was given what is wrong.
        if digest in self._answers and wanted not in self._given and (kept := self._kept(*wanted)) is not None:
            self._given.add(wanted)
            return kept
        data = self._store.get_range(digest, offset, size)
        came = self._came
        if digest in self._always:
            with self._lock:
                self._write(digest, offset, data, self._always[digest])
        elif came is not None:
            came.append((digest, offset, data))
        return data

    def go_on(self, digest: str, note: Callable[[Answer], None]) -> None:
        """Remembers at once what is read of this blob, after ``seal``, too; ``note`` hears of it as in ``seal``."""
        self._always[digest] = note

    def _kept(self, digest: str, offset: int, size: int) -> bytes | None:
        parts, position, end = [], offset, offset + size
        while position < end:
            for answer in self._answers[digest]:
                if answer.offset <= position < answer.offset + answer.size:
                    data = self._read(answer)
                    if data is None:
                        return None
                    parts.append(data[position - answer.offset : end - answer.offset])
                    position += len(parts[-1])
                    break
            else:
                return None
        return b"".join(parts)

    def _read(self, answer: Answer) -> bytes | None:
        data = None if self._file is None else self._file.read(answer.place, answer.size)
        return data if data is not None and zlib.crc32(data) == answer.checksum else None

    def seal(self, note: Callable[[Answer], None]) -> None:
        """Write out what came, and remember no more; ``note`` hears of each range that the file has. Blocks."""
        with self._lock:
            came, self._came = self._came, None
            for digest, offset, data in came or ():
                self._write(digest, offset, data, note)

    def _write(self, digest: str, offset: int, data: bytes, note: Callable[[Answer], None]) -> None:
        if self._file is not None and self._file.write(self._end, data):
            note(Answer(digest, offset, len(data), self._end, zlib.crc32(data)))
            self._end += len(data)
