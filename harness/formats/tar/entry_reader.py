"""Reads a tar's entries: names cleaned, values that no kernel takes refused, and each put where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.formats.table import Kind
from harness.formats.tar.limits import OPAQUE_XATTR, check_device, check_owner, check_symlink
from harness.formats.tar.names import clean_name, clean_target
from harness.formats.tar.reading import Action, LayerReader

if TYPE_CHECKING:
    from harness.formats.tar.scanner import TarEntry

GLOBAL_HEADER = ord("g")
"""A PAX header for all later entries: as in Go, an entry of its own, which describes no file."""


class EntryReader(LayerReader):
    """A ``LayerReader`` that is given entries as the scanner finds them; global headers do not count."""

    def read(self, entry: TarEntry) -> Action:
        """What to do with the next entry. Raises FormatError, which names it, and UnsafePath."""
        if entry.flag == GLOBAL_HEADER:
            return Action.PASS
        kind = entry.kind
        name = clean_name(entry.name)
        if entry.uid or entry.gid:
            check_owner(name, entry.uid, entry.gid)
        if kind is Kind.REG:
            return self.take_file(name)
        if kind is Kind.DIR:
            opaque = bool(entry.pax) and entry.xattrs.get(OPAQUE_XATTR) == b"y"
            return self.take(name, kind, opaque=opaque)
        if kind is Kind.SYMLINK:
            check_symlink(name, entry.linkname)
            return self.take(name, kind, entry.linkname)
        if kind is Kind.HARDLINK:
            return self.take(name, kind, clean_target(entry.linkname))
        if kind is Kind.FIFO:
            return self.take(name, kind)
        check_device(name, entry.devmajor, entry.devminor)
        whiteout = kind is Kind.CHAR and not entry.devmajor and not entry.devminor
        return self.take(name, kind, whiteout=whiteout)
