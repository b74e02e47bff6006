"""First touches: which files (tree) or which bytes (blob) a start really reads, in the order of their first read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from harness.lazyfs.messages import ReadRange, Touch

if TYPE_CHECKING:
    from collections.abc import Callable


class Trace:
    """One record per file: the time of its first read, and the extent that all its reads cover."""

    def __init__(self, t0_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.t0_ns = t0_ns
        self._clock_ns = clock_ns
        self._files: dict[tuple[int, int], list[int]] = {}

    def note(self, layer: int, entry: int, offset: int, size: int) -> None:
        """A read of ``size`` bytes of an entry of a layer."""
        known = self._files.get((layer, entry))
        if known is None:
            self._files[layer, entry] = [offset, offset + size, self._clock_ns()]
        else:
            known[0] = min(known[0], offset)
            known[1] = max(known[1], offset + size)

    def first_touches(self, name: Callable[[int, int], str]) -> list[Touch]:
        """What was read, in first-touch order; ``name(layer, entry)`` gives a path."""
        return [
            Touch(name(layer, entry), layer, begin, end - begin, (at_ns - self.t0_ns) / 1e9)
            for (layer, entry), (begin, end, at_ns) in self._files.items()
        ]


class BlockTrace:
    """The blob's form: first reads of 64 KiB blocks of each layer's address space, mapped to files afterwards."""

    BLOCK = 64 << 10

    def __init__(self, t0_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.t0_ns = t0_ns
        self._clock_ns = clock_ns
        self._blocks: dict[tuple[int, int], int] = {}
        self._reads: dict[tuple[int, int, int], int] = {}

    def note(self, layer: int, offset: int, size: int) -> None:
        """A read of a layer's address space."""
        self._reads.setdefault((layer, offset, offset + size), self._clock_ns())
        for block in range(offset // self.BLOCK, (offset + size - 1) // self.BLOCK + 1):
            if (layer, block) not in self._blocks:
                self._blocks[layer, block] = self._clock_ns()

    def touched(self) -> list[tuple[int, int, int, float]]:
        """(layer, begin, end, seconds after T0) of each touched block, in first-touch order."""
        return [
            (layer, block * self.BLOCK, (block + 1) * self.BLOCK, (at_ns - self.t0_ns) / 1e9)
            for (layer, block), at_ns in self._blocks.items()
        ]

    def read_ranges(self) -> list[ReadRange]:
        """Each read as the kernel asked for it, in order."""
        return [
            ReadRange(layer, begin, end, (at_ns - self.t0_ns) / 1e9)
            for (layer, begin, end), at_ns in self._reads.items()
        ]
