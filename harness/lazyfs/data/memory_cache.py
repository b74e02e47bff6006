"""This module keeps units in memory, under one budget for all layers of an image; the least recently used go first."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.lazyfs.data.units import Rest

Key = tuple[int, int]
"""Names a unit: (layer, unit)."""


_REST_BYTES = 128 << 10


class Resident:
    """Holds one unit's bytes in memory: stored bytes, or inflated pieces, or both.

    ``filled`` counts the bytes inflated from the start, ``whole`` says that they are all, and ``rest`` goes on from
    there. What was ``release``d is a hole in the pieces. ``busy`` is set while a thread works on it.
    """

    __slots__ = ("busy", "ends", "filled", "held", "packed", "pieces", "rest", "whole")

    def __init__(self, packed: bytes | None = None) -> None:
        self.packed = packed
        self.busy = False
        self.restart()

    def restart(self) -> None:
        """Goes back to the stored bytes alone."""
        self.pieces: list[bytes] = []
        self.ends: list[int] = []
        self.filled = self.held = 0
        self.rest: Rest | None = None
        self.whole = False

    def append(self, pieces: list[bytes], rest: Rest | None, *, keep_packed: bool = False) -> None:
        """Adds inflated bytes; without a rest the unit is whole.

        The stored bytes of a whole unit are let go, unless ``keep_packed`` keeps them so that inflated ones can be
        released.
        """
        for piece in pieces:
            self.pieces.append(piece)
            self.filled += len(piece)
            self.held += len(piece)
            self.ends.append(self.filled)
        self.rest = rest
        if rest is None:
            self.whole = True
            if not keep_packed:
                self.packed = None

    def release(self, begin: int, end: int) -> None:
        """Let go of inflated bytes [begin, end): the kernel has them, and the stored bytes give them back."""
        if self.packed is None:
            return
        kept = list[tuple[int, bytes]]()
        for stop, piece in zip(self.ends, self.pieces, strict=True):
            start = stop - len(piece)
            if stop <= begin or start >= end:
                kept.append((stop, piece))
                continue
            if start < begin:
                kept.append((begin, piece[: begin - start]))
            if stop > end:
                kept.append((stop, piece[end - start :]))
        self.ends = [stop for stop, _ in kept]
        self.pieces = [piece for _, piece in kept]
        self.held = sum(map(len, self.pieces))

    @property
    def complete(self) -> bool:
        """Says whether the pieces are the whole unit."""
        return self.whole and self.held == self.filled

    @property
    def cost(self) -> int:
        """Counts bytes of memory; a rest shares the stored bytes and has an inflater's state and window of its own."""
        packed = len(self.packed) if self.packed is not None else 0
        return self.held + packed + (_REST_BYTES if self.rest is not None else 0) + 256

    def slice(self, begin: int, end: int) -> bytes | memoryview | None:
        """Returns inflated bytes [begin, end) of what was filled; None where some of them were released."""
        index = bisect_right(self.ends, begin)
        if index == len(self.ends):
            return None
        piece = self.pieces[index]
        base = self.ends[index] - len(piece)
        if base > begin:
            return None
        if end <= self.ends[index]:
            if begin == base and end == self.ends[index]:
                return piece
            return memoryview(piece)[begin - base : end - base]
        parts = [memoryview(piece)[begin - base :]]
        while end > self.ends[index]:
            index += 1
            if index == len(self.ends):
                return None
            base = self.ends[index] - len(self.pieces[index])
            if base != self.ends[index - 1]:
                return None
            parts.append(memoryview(self.pieces[index])[: end - base])
        return b"".join(parts)


class MemoryCache:
    """Holds all residents, the coldest first. The caller pays what it adds with ``charge``, evicts with ``victims``."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget = budget_bytes
        self.used = 0
        self._units: OrderedDict[Key, Resident] = OrderedDict()

    def get(self, key: Key) -> Resident | None:
        """Returns the resident, whose place in the order of leaving stays."""
        return self._units.get(key)

    def items(self) -> list[tuple[Key, Resident]]:
        """Returns all residents, the coldest first."""
        return list(self._units.items())

    def use(self, key: Key) -> Resident | None:
        """Returns the resident, which now leaves last."""
        resident = self._units.get(key)
        if resident is not None:
            self._units.move_to_end(key)
        return resident

    def __contains__(self, key: Key) -> bool:
        return key in self._units

    def residents(self) -> list[Resident]:
        """Returns all residents, the coldest first."""
        return list(self._units.values())

    def put(self, key: Key, resident: Resident) -> None:
        old = self._units.pop(key, None)
        if old is not None:
            self.used -= old.cost
        self._units[key] = resident
        self.used += resident.cost

    def charge(self, key: Key, resident: Resident, before: int) -> None:
        """Notes that a resident costs more or less than ``before``; one that is not in here counts for nothing."""
        if self._units.get(key) is resident:
            self.used += resident.cost - before

    def drop(self, key: Key) -> None:
        resident = self._units.pop(key, None)
        if resident is not None:
            self.used -= resident.cost

    def clear(self) -> None:
        self._units.clear()
        self.used = 0

    def victims(self) -> list[tuple[Key, Resident]]:
        """Returns what must leave to be within nine tenths of the budget again; empty while it is kept.

        Half-inflated units leave last: they are kept on disk as stored bytes, and the next read inflates all again.
        """
        if self.used <= self.budget:
            return []
        excess = self.used - self.budget * 9 // 10
        chosen: list[tuple[Key, Resident]] = []
        for partial in (False, True):
            for key, resident in self._units.items():
                if excess <= 0:
                    return chosen
                if not resident.busy and (resident.rest is not None) is partial:
                    chosen.append((key, resident))
                    excess -= resident.cost
        return chosen
