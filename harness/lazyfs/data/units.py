"""The unit seam: how one lazy layer is cut into pieces that are fetched, verified and inflated on their own.

A *unit* is a SOCI span, an eStargz chunk, or a block of an uncompressed blob. Units are numbered in address order and
do not overlap; addresses between them (eStargz's alignment gaps) read as zeros. The store knows nothing else of a
format. Methods may be called from any thread and must not touch the network, ``load`` excepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Rest(Protocol):
    """The part of a unit that is not inflated yet."""

    def inflate(self, size: int) -> list[bytes]:
        """The next ``size`` bytes (fewer only at the unit's end), in pieces as they came; raises FormatError."""
        ...


class Decoded(NamedTuple):
    """A unit's bytes from its start, in pieces; ``rest`` is None when they are all of it."""

    unit: int
    pieces: list[bytes]
    rest: Rest | None


class Units(Protocol):
    """One layer's units; ``starts[i]`` and ``ends[i]`` are unit i's place in the address space of ``size`` bytes."""

    size: int
    starts: Sequence[int]
    ends: Sequence[int]

    def extent(self, unit: int) -> tuple[int, int]:
        """(offset, size) in the blob of the bytes that hold the unit."""
        ...

    def ready(self, unit: int) -> bool:
        """Whether ``decode`` has all it takes without ``load``."""
        ...

    def load(self, units: Sequence[int]) -> None:
        """Get what else decoding these units takes (windows kept apart), verified; may block on the network."""
        ...

    def verify(self, unit: int, packed: bytes | memoryview) -> None:
        """Check the stored bytes where the format's digest is over them (SOCI); raises DigestMismatch."""
        ...

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        """Inflate at least the unit's first ``upto`` bytes from *verified* stored bytes.

        Formats whose digest is over the inflated bytes (eStargz) inflate all of it and verify here. Where several
        units share stored bytes, all of them may be returned. Raises DigestMismatch or FormatError.
        """
        ...
