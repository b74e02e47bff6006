"""This module traces which files (tree) or bytes (blob) a start really reads, in the order of their first read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from harness.lazyfs.messages import ReadRange, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Trace:
    """Records the reads of each file with their times. What continues a read is one with it."""

    def __init__(self, t0_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.t0_ns = t0_ns
        self._clock_ns = clock_ns
        self._files: dict[tuple[int, int], list[list[int]]] = {}
        """Holds, for each (layer, entry), [begin, end, time] of its reads."""

    def note(self, layer: int, entry: int, offset: int, size: int) -> None:
        """Notes a read of ``size`` bytes of an entry of a layer."""
        reads = self._files.setdefault((layer, entry), [])
        if reads and reads[-1][0] <= offset <= reads[-1][1]:
            reads[-1][1] = max(reads[-1][1], offset + size)
        else:
            reads.append([offset, offset + size, self._clock_ns()])

    def first_touches(self, name: Callable[[int, int], str]) -> list[Touch]:
        """Returns what was read, in first-touch order; ``name(layer, entry)`` gives a path."""
        return [
            touch_of(name(layer, entry), layer, [(b, e - b, (at_ns - self.t0_ns) / 1e9) for b, e, at_ns in reads])
            for (layer, entry), reads in self._files.items()
        ]


def touch_of(path: str, layer: int, reads: Sequence[tuple[int, int, float]]) -> Touch:
    """Returns a file's touch, made from its reads, which are (offset, size, seconds after T0)."""
    begin, end = min(offset for offset, _, _ in reads), max(offset + size for offset, size, _ in reads)
    return Touch(path, layer, begin, end - begin, min(at_s for _, _, at_s in reads), tuple(reads))


class BlockTrace:
    """Traces a blob: first reads of 64 KiB blocks of each layer's address space, mapped to files afterwards."""

    BLOCK = 64 << 10

    def __init__(self, t0_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.t0_ns = t0_ns
        self._clock_ns = clock_ns
        self._blocks: dict[tuple[int, int], int] = {}
        self._reads: dict[tuple[int, int, int], int] = {}

    def note(self, layer: int, offset: int, size: int) -> None:
        """Notes a read of a layer's address space."""
        self._reads.setdefault((layer, offset, offset + size), self._clock_ns())
        for block in range(offset // self.BLOCK, (offset + size - 1) // self.BLOCK + 1):
            if (layer, block) not in self._blocks:
                self._blocks[layer, block] = self._clock_ns()

    def touched(self) -> list[tuple[int, int, int, float]]:
        """Returns (layer, begin, end, seconds after T0) of each touched block, in first-touch order."""
        return [
            (layer, block * self.BLOCK, (block + 1) * self.BLOCK, (at_ns - self.t0_ns) / 1e9)
            for (layer, block), at_ns in self._blocks.items()
        ]

    def read_ranges(self) -> list[ReadRange]:
        """Returns each read as the kernel asked for it, in order."""
        return [
            ReadRange(layer, begin, end, (at_ns - self.t0_ns) / 1e9)
            for (layer, begin, end), at_ns in self._reads.items()
        ]
