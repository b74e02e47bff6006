"""This module is the lazy-layer seam: what every lazy format boils down to, whatever its bytes look like.

A *lazy layer* is a table of entries plus one flat address space of decompressed bytes in which each regular file's
payload is a contiguous extent. For SOCI the address space is the decompressed tar itself; for eStargz it is the
payloads one after the other, each starting at a multiple of 512. Presentations (the FUSE tree, EROFS metadata) see
only this, never a format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

OPAQUE_MARKER = b".wh..wh..opq"
WHITEOUT_PREFIX = b".wh."


class Kind(IntEnum):
    """Lists entry types; the values are EROFS's dirent types where one exists."""

    REG = 1
    DIR = 2
    CHAR = 3
    BLOCK = 4
    FIFO = 5
    SYMLINK = 7
    HARDLINK = 8


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Holds entries of one layer in tar order, one column per field (index i is entry i in all of them).

    ``names`` are cleaned paths: no leading ``/`` or ``./``, no trailing ``/``, no ``.``, ``..`` or empty component
    (the root directory itself is ``b""``). Format-internal entries (TOC, landmarks) are already gone; whiteout
    (``.wh.NAME``) and opaque (``.wh..wh..opq``) markers are kept as they stand, for whoever merges or presents layers.
    Names may repeat (the later entry wins) and parents may be missing (they exist with mode 0755, owner 0:0, time 0).

    ``sizes`` and ``offsets`` are in bytes of the layer's address space (offset -1 where there is no payload),
    ``mtimes_s`` in seconds since the epoch (may be negative), ``mtimes_ns`` 0..999 999 999. ``modes`` are the 07777
    bits. ``links`` maps an entry to its symlink target (raw) or hard-link target (cleaned path). ``rdevs`` maps device
    entries to (major, minor). ``xattrs`` maps an entry to {full name: value}.
    """

    names: Sequence[bytes]
    kinds: npt.NDArray[np.uint8]
    modes: npt.NDArray[np.uint16]
    uids: npt.NDArray[np.uint32]
    gids: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    mtimes_s: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.uint32]
    links: dict[int, bytes] = field(default_factory=dict)
    rdevs: dict[int, tuple[int, int]] = field(default_factory=dict)
    xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    address_space_bytes: int = 0

    def __len__(self) -> int:
        return len(self.names)


class RangeSource(Protocol):
    """Gives random access to a blob's stored bytes; it is a file, a bytes object, or a registry over HTTP."""

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``; raises FormatError past the end."""
        ...


class ByteSource(Protocol):
    """Gives verified random access to one layer's flat address space of decompressed bytes (synchronous form)."""

    @property
    def size(self) -> int:
        """Counts the bytes in the address space."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes at ``offset``, shorter only at the end of the address space; raises DigestMismatch or
        FormatError.
        """
        ...
