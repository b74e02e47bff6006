"""This module keeps units in a file on the machine's disk, and checks them when they are read back.

A disk may lose or change what was written to it, and say nothing. So a checksum of each 64 KiB of a unit is kept in
memory, and whatever is read back is held against it: the caller then fetches the unit again instead of serving a wrong
byte. The checksum is a CRC-32, because a failing disk is no adversary: nobody else can reach the (unlinked) file.
"""

from __future__ import annotations

import logging
import mmap
import os
from array import array
from typing import TYPE_CHECKING

from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from harness.lazyfs.data.disk_cache import SparseFile

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 10
_DIRECT_ALIGN = 4096
_DIRECT_BYTES = 1 << 20


class UnitFile:
    """Keeps units in ``file``, unit i at ``extent(i)``, (offset, size); what was not written is never given out."""

    def __init__(
        self,
        file: SparseFile,
        extent: Callable[[int], tuple[int, int]],
        written: dict[int, array[int]] | None = None,
        note: Callable[[int, array[int]], None] | None = None,
    ) -> None:
        """``written`` holds the checksums of units that are in the file already; ``note`` hears of each new one."""
        self.file = file
        self._extent = extent
        self._sums: dict[int, array[int]] = written or {}
        self._note = note

    def __iter__(self) -> Iterator[int]:
        """Returns an iterator over the units that were written."""
        return iter(self._sums)

    def write(self, unit: int, pieces: Iterable[bytes | memoryview]) -> bool:
        """Writes a whole unit; returns False when the disk takes nothing any more."""
        offset, size = self._extent(unit)
        writing = UnitSums(size)
        for piece in pieces:
            writing.feed(piece)
            if not self.file.write(offset, piece):
                return False
            offset += len(piece)
        self.note_written(unit, writing.sums)
        return True

    def note_written(self, unit: int, sums: array[int]) -> None:
        """Notes that the unit is in the file, with these checksums."""
        self._sums[unit] = sums
        if self._note is not None:
            self._note(unit, sums)

    def read(self, unit: int, begin: int, size: int) -> bytes | memoryview | None:
        """Returns ``size`` bytes of a unit from ``begin`` on; None when the disk does not give what was written."""
        sums = self._sums.get(unit)
        if sums is None:
            return None
        start, length = self._extent(unit)
        first = begin // BLOCK_BYTES
        low, high = first * BLOCK_BYTES, min(length, -(-(begin + size) // BLOCK_BYTES) * BLOCK_BYTES)
        data = self.file.read(start + low, high - low)
        if data is None or not _fits(data, sums, first):
            log.warning("the disk cache does not give back what was written to it; the bytes are fetched again")
            return None
        if begin == low and size == len(data):
            return data
        return memoryview(data)[begin - low : begin - low + size]

    def bad_on_disk(self, units: Iterable[int]) -> list[int]:
        """Returns those of the units that the disk itself does not hold, whatever the page cache says. Blocks.

        The file has to be synced before. Where the file system cannot be read past the page cache, its pages are
        dropped first.
        """
        os.posix_fadvise(self.file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            direct = os.open(f"/proc/self/fd/{self.file.descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            direct = os.dup(self.file.descriptor)
        buffer = mmap.mmap(-1, _DIRECT_BYTES + 2 * _DIRECT_ALIGN)
        try:
            return [unit for unit in units if not self._holds(direct, buffer, unit)]
        finally:
            buffer.close()
            os.close(direct)

    def _holds(self, descriptor: int, buffer: mmap.mmap, unit: int) -> bool:
        sums = self._sums.get(unit)
        if sums is None:
            return False
        start, length = self._extent(unit)
        position = 0
        while position < length:
            wanted = min(_DIRECT_BYTES, length - position)
            place = self.file.base + start + position
            over = place % _DIRECT_ALIGN
            room = -(-(over + wanted) // _DIRECT_ALIGN) * _DIRECT_ALIGN
            view = memoryview(buffer)
            try:
                got = os.preadv(descriptor, [view[:room]], place - over)
                good = got >= over + wanted and _fits(view[over : over + wanted], sums, position // BLOCK_BYTES)
            except OSError:
                return False
            finally:
                view.release()
            if not good:
                return False
            position += wanted
        return True


class UnitSums:
    """Computes the checksums of a unit of ``size`` bytes as its bytes go by."""

    def __init__(self, size: int) -> None:
        self.sums = array("I", bytes(4 * max(1, -(-size // BLOCK_BYTES))))
        self._position = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Takes the next bytes of the unit."""
        done = 0
        view = memoryview(data)
        while done < len(data):
            block, inside = divmod(self._position, BLOCK_BYTES)
            taken = min(len(data) - done, BLOCK_BYTES - inside)
            self.sums[block] = isal_zlib.crc32(view[done : done + taken], self.sums[block])
            self._position += taken
            done += taken


class LayerSums:
    """Computes the checksums of all units of a layer as it goes by from its first byte to its last."""

    def __init__(self, starts: Sequence[int], ends: Sequence[int]) -> None:
        self._starts = starts
        self._units = [UnitSums(end - start) for start, end in zip(starts, ends, strict=True)]
        self._ends = ends
        self._unit = 0

    def feed(self, position: int, data: bytes | memoryview) -> None:
        """Takes bytes at ``position``, none of which are before what was fed last."""
        view = memoryview(data)
        while self._unit < len(self._units) and self._starts[self._unit] < position + len(view):
            low, high = self._starts[self._unit], self._ends[self._unit]
            self._units[self._unit].feed(view[max(0, low - position) : max(0, high - position)])
            if high > position + len(view):
                return
            self._unit += 1

    @property
    def sums(self) -> list[array[int]]:
        return [unit.sums for unit in self._units]


def _fits(data: bytes | memoryview, sums: array[int], first: int) -> bool:
    """Says whether ``data``, which begins with block ``first``, is what the checksums are of."""
    view = memoryview(data)
    return all(
        isal_zlib.crc32(view[at : at + BLOCK_BYTES]) == sums[first + number]
        for number, at in enumerate(range(0, len(data), BLOCK_BYTES))
    )
