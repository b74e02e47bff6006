"""A blob read in regions of fixed size, each fetched once: how stargz-snapshotter keeps what it downloads.

Every read is rounded out to whole regions, and what is local already is not asked for again. A long read is done in
steps, since the reference reads a chunk through a buffer of 2 MiB.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.formats.table import RangeSource
    from harness.lazyfs.data.disk_cache import SparseFile


class RegionSource:
    """A RangeSource over ``source``, a blob of ``size`` bytes; ``file`` keeps the regions (None: nothing is kept).

    For several threads at once; a region is fetched by one of them while the others wait.
    """

    def __init__(self, source: RangeSource, size: int, region_bytes: int, step: int, file: SparseFile | None) -> None:
        if region_bytes <= 0:
            raise ValueError(f"regions of {region_bytes} bytes")
        self.size = size
        self._source = source
        self._region = region_bytes
        self._step = step or size or 1
        self._file = file
        self._local: set[int] = set()
        self._busy: set[int] = set()
        self._changed = threading.Condition()

    def read_range(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; raises what ``source`` raises."""
        end = offset + size
        if size <= 0 or offset < 0 or end > self.size:
            return self._source.read_range(offset, size)
        parts = []
        for start in range(offset, end, self._step):
            parts.append(self._read(start, min(start + self._step, end)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def bring(self, offset: int, size: int) -> None:
        """Make a range local in as few requests as there are holes, whatever the step."""
        if size > 0 and self._file is not None:
            self._fetch(offset, offset + size)

    def _read(self, start: int, end: int) -> bytes:
        brought = self._fetch(start, end)
        kept = self._file.read(start, end - start) if self._file is not None and not brought else None
        if kept is not None:
            return kept
        if not brought:  # the disk does not give back what it took
            return self._source.read_range(start, end - start)
        return b"".join(self._pieces(start, end, brought))

    def _pieces(self, start: int, end: int, brought: dict[int, bytes]) -> Iterator[bytes]:
        """The range from what just came and, around it, from the file."""
        for region in range(start // self._region, -(-end // self._region)):
            low, high = max(start, region * self._region), min(end, (region + 1) * self._region)
            data = brought.get(region)
            if data is not None:
                yield data[low - region * self._region : high - region * self._region]
                continue
            kept = self._file.read(low, high - low) if self._file is not None else None
            yield kept if kept is not None else self._source.read_range(low, high - low)

    def _fetch(self, start: int, end: int) -> dict[int, bytes]:
        """Fetch the regions under a range that are nowhere, one request per run of them; wait for others' fetches."""
        regions = range(start // self._region, -(-end // self._region))
        brought: dict[int, bytes] = {}
        while True:
            with self._changed:
                missing = [r for r in regions if r not in self._local and r not in self._busy and r not in brought]
                if not missing:
                    if not any(r in self._busy for r in regions):
                        return brought
                    self._changed.wait()
                    continue
                self._busy.update(missing)
            try:
                for first, last in _runs(missing):
                    brought.update(self._fetch_run(first, last))
            finally:
                with self._changed:
                    self._busy.difference_update(missing)
                    self._changed.notify_all()

    def _fetch_run(self, first: int, last: int) -> dict[int, bytes]:
        begin, end = first * self._region, min((last + 1) * self._region, self.size)
        data = self._source.read_range(begin, end - begin)
        if self._file is not None and self._file.write(begin, data):
            with self._changed:
                self._local.update(range(first, last + 1))
        return {r: data[(r - first) * self._region : (r - first + 1) * self._region] for r in range(first, last + 1)}


def _runs(regions: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of neighbours in ascending numbers."""
    first = last = regions[0]
    for region in regions[1:]:
        if region != last + 1:
            yield first, last
            first = region
        last = region
    yield first, last
