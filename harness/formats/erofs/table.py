"""This module makes a layer's table straight from its tar headers, sparse files included: the index's input without
another TOC.

The address space is the decompressed tar itself, so a payload's offset is where it stands in the stream. What a lazy
layer's table cannot say, that a sparse file's payload comes in pieces, is kept beside it (``fragments``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.errors import FormatError
from harness.formats.table import Kind, LayerTable
from harness.formats.tar.limits import check_owner
from harness.formats.tar.names import clean_name, clean_target, entry_of
from harness.formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.formats.erofs.merge import Fragment
    from harness.formats.tar.scanner import TarEntry

_GLOBAL_HEADER = ord("g")
HIDDEN_NAMES = frozenset({b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"})
"""These entries at the root belong to eStargz, not to the image (a layer in that form is an ordinary tar otherwise)."""


class TarTable:
    """Collects a layer's entries from its decompressed bytes; raises FormatError and UnsafePath."""

    def __init__(self, *, hidden: frozenset[bytes] = HIDDEN_NAMES) -> None:
        self._scanner = TarScanner()
        self.hidden = hidden
        self._names: list[bytes] = []
        self._numbers: list[tuple[int, int, int, int, int, int, int, int]] = []
        self._links: dict[int, bytes] = {}
        self._rdevs: dict[int, tuple[int, int]] = {}
        self._xattrs: dict[int, dict[bytes, bytes]] = {}
        self.fragments: dict[int, list[Fragment]] = {}

    def feed(self, data: bytes | memoryview) -> None:
        """Takes the next decompressed bytes."""
        self.add(self._scanner.feed(data))

    def add(self, entries: Iterable[TarEntry]) -> None:
        """Takes entries that a scanner found."""
        for entry in entries:
            if entry.flag == _GLOBAL_HEADER:
                continue
            kind = entry.kind
            name = clean_name(entry.name)
            if name in self.hidden:
                continue
            index = len(self._names)
            check_owner(name, entry.uid, entry.gid)
            if entry.size >= 1 << 62:
                raise FormatError(entry_of(name), f"a size of {entry.size} bytes")
            size, offset = (entry.size, entry.payload_offset) if kind == Kind.REG and entry.size else (0, -1)
            if entry.sparse is not None and size:
                self._sparse(index, entry)
                offset = -1
            self._names.append(name)
            self._numbers.append(
                (kind, entry.mode & 0o7777, entry.uid, entry.gid, size, offset, entry.mtime_s, entry.mtime_ns)
            )
            if kind == Kind.SYMLINK:
                self._links[index] = entry.linkname
            elif kind == Kind.HARDLINK:
                self._links[index] = clean_target(entry.linkname)
            elif kind in {Kind.CHAR, Kind.BLOCK}:
                self._rdevs[index] = (entry.devmajor, entry.devminor)
            if entry.pax and (xattrs := entry.xattrs):
                self._xattrs[index] = xattrs

    def _sparse(self, index: int, entry: TarEntry) -> None:
        at = entry.payload_offset
        pieces: list[Fragment] = []
        for offset, length in entry.sparse or ():
            if length:
                pieces.append((offset, length, at))
            at += length
        self.fragments[index] = pieces

    def finish(self, address_space_bytes: int) -> LayerTable:
        """Returns the table of what was fed; ``address_space_bytes`` is the decompressed layer's size, padding
        included.
        """
        self._scanner.close()
        columns = np.array(self._numbers, dtype=np.int64).reshape(-1, 8).T
        return LayerTable(
            names=self._names,
            kinds=columns[0].astype(np.uint8),
            modes=columns[1].astype(np.uint16),
            uids=columns[2].astype(np.uint32),
            gids=columns[3].astype(np.uint32),
            sizes=columns[4].copy(),
            offsets=columns[5].copy(),
            mtimes_s=columns[6].copy(),
            mtimes_ns=columns[7].astype(np.uint32),
            links=self._links,
            rdevs=self._rdevs,
            xattrs=self._xattrs,
            address_space_bytes=address_space_bytes,
        )
