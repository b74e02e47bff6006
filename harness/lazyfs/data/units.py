"""This module defines units: the pieces of a lazy layer that are fetched, verified and inflated on their own.

A *unit* is a SOCI span, an eStargz chunk, or a block of an uncompressed blob. Units are numbered in address order and
do not overlap; addresses between them (eStargz's alignment gaps) read as zeros. The store knows nothing else of a
format. Methods may be called from any thread and must not touch the network, ``load`` excepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Rest(Protocol):
    """Inflates the part of a unit that is not inflated yet."""

    def inflate(self, size: int) -> list[bytes]:
        """Returns the next ``size`` bytes (fewer only at the end), in pieces as they came. Raises FormatError."""
        ...


class Decoded(NamedTuple):
    """Holds a unit's bytes from its start, in pieces; ``rest`` is None when they are all of it."""

    unit: int
    pieces: list[bytes]
    rest: Rest | None


class Units(Protocol):
    """Describes one layer's units; unit i lies from ``starts[i]`` to ``ends[i]`` in the ``size`` bytes of addresses."""

    size: int
    starts: Sequence[int]
    ends: Sequence[int]

    def extent(self, unit: int) -> tuple[int, int]:
        """Returns (offset, size), in the blob, of the bytes that hold the unit."""
        ...

    def ready(self, unit: int) -> bool:
        """Says whether ``decode`` has all it takes without ``load``."""
        ...

    def load(self, units: Sequence[int]) -> None:
        """Gets what else decoding these units takes (windows kept apart); may block on the network.

        What came is verified here, or by ``decode``.
        """
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
