"""This module reads a blob in regions of fixed size, each fetched once, as stargz-snapshotter keeps what it downloads.

Every read is rounded out to whole regions, and what is local already is not asked for again. A long read is done in
steps, since the reference reads a chunk through a buffer of 2 MiB.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from harness.lazyfs.data.unit_file import UnitFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.formats.table import RangeSource
    from harness.lazyfs.data.disk_cache import SparseFile


class RegionSource:
    """Serves a blob of ``size`` bytes as a RangeSource over ``source``; ``file``, unless None, keeps the regions.

    Several threads may use it at once: one of them fetches a region while the others wait.
    """

    def __init__(self, source: RangeSource, size: int, region_bytes: int, step: int, file: SparseFile | None) -> None:
        if region_bytes <= 0:
            raise ValueError(f"regions of {region_bytes} bytes")
        self.size = size
        self._source = source
        self._region = region_bytes
        self._step = step or size or 1
        self._file = UnitFile(file, self._extent) if file is not None else None
        self._local: set[int] = set()
        self._busy: set[int] = set()
        self._changed = threading.Condition()

    def _extent(self, region: int) -> tuple[int, int]:
        begin = region * self._region
        return begin, min(self._region, self.size - begin)

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``; raises what ``source`` raises."""
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
        return b"".join(self._pieces(start, end, self._fetch(start, end)))

    def _pieces(self, start: int, end: int, brought: dict[int, bytes]) -> Iterator[bytes | memoryview]:
        """Yields the range: from what just came, else from the file, or anew where the disk does not give it back."""
        for region in range(start // self._region, -(-end // self._region)):
            low, high = max(start, region * self._region), min(end, (region + 1) * self._region)
            data = brought.get(region)
            if data is not None:
                yield data[low - region * self._region : high - region * self._region]
                continue
            kept = None
            if self._file is not None:
                kept = self._file.read(region, low - region * self._region, high - low)
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
        regions = {r: data[(r - first) * self._region : (r - first + 1) * self._region] for r in range(first, last + 1)}
        if self._file is not None:
            written = [region for region, part in regions.items() if self._file.write(region, [part])]
            with self._changed:
                self._local.update(written)
        return regions


def _runs(regions: list[int]) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of each run of neighbours in ascending numbers."""
    first = last = regions[0]
    for region in regions[1:]:
        if region != last + 1:
            yield first, last
            first = region
        last = region
    yield first, last
