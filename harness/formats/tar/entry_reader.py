"""This module reads a tar's entries: it cleans names, refuses values that no kernel takes, and puts each where it
goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.formats.table import Kind
from harness.formats.tar.limits import OPAQUE_XATTR, check_device, check_owner, check_symlink
from harness.formats.tar.names import NAME_MAX, clean_name, clean_target
from harness.formats.tar.reading import Action, LayerReader

if TYPE_CHECKING:
    from harness.formats.tar.scanner import TarEntry

REGULAR_FILE = ord("0")
GLOBAL_HEADER = ord("g")
"""This PAX header is for all later entries: as in Go, it is an entry of its own, which describes no file."""


class EntryReader(LayerReader):
    """This ``LayerReader`` is given entries as the scanner finds them; global headers do not count."""

    def __init__(self) -> None:
        super().__init__()
        self._cleaned: dict[bytes, bytes] = {}
        """Maps directories as files' names write them to their cleaned form."""

    def read(self, entry: TarEntry) -> Action:
        """Says what to do with the next entry. Raises FormatError, which names it, and UnsafePath."""
        flag = entry.flag
        if flag == REGULAR_FILE:
            return self._read_file(entry)
        if flag == GLOBAL_HEADER:
            return Action.PASS
        kind = entry.kind
        name = clean_name(entry.name)
        if entry.uid or entry.gid:
            check_owner(name, entry.uid, entry.gid)
        if kind is Kind.REG:
            return self.take(name, kind)
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

    def _read_file(self, entry: TarEntry) -> Action:
        """Reads a regular file: most entries are, and nothing has to be decided of most of them."""
        raw = entry.name
        parent, _, base = raw.rpartition(b"/")
        cleaned = self._cleaned.get(parent)
        # What sorts before "/" is empty or may begin with a dot: a component to clean away, a marker, or just a name.
        plain = base > b"/" and len(raw) <= NAME_MAX and b"\0" not in base
        if cleaned is not None and plain and self.add_file(cleaned, base):
            if entry.uid or entry.gid:
                check_owner(raw, entry.uid, entry.gid)
            return Action.MAKE
        name = clean_name(raw)
        if entry.uid or entry.gid:
            check_owner(name, entry.uid, entry.gid)
        if plain:
            self._cleaned[parent] = name.rpartition(b"/")[0]
        return self.take(name, Kind.REG)
