"""This module shows the names of one layer as directories, numbered for inodes, from which a FUSE tree answers.

``harness.formats.tar.reading`` says which entry has which name, and what the layer hides. Whiteouts and opaque
directories are turned into OverlayFS's form here (a character device 0/0 of the hidden name; an attribute of the
directory; see kernel documentation, filesystems/overlayfs.rst).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.formats.tar.limits import OPAQUE_XATTR as _OPAQUE
from harness.formats.tar.reading import IMPLIED
from harness.formats.tar.stack import lower_links
from harness.formats.tar.table_reading import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.table import LayerTable

OPAQUE_XATTR = {_OPAQUE: b"y"}


class Directory:
    """Holds a directory: ``children`` maps names to entry numbers; ``opaque`` hides what lower layers have in it."""

    __slots__ = ("children", "opaque", "ordered", "parent", "path")

    def __init__(self, path: bytes, parent: int, children: dict[bytes, int], *, opaque: bool) -> None:
        self.path = path
        self.parent = parent
        self.children = children
        self.opaque = opaque
        self.ordered: list[Any] | None = None
        """Holds the entries in order, for who lists it: they are kept between the parts of a listing."""


class DirectoryIndex:
    """Finds the names and directories of one layer by their entry numbers.

    Entry numbers are the table's; numbers from ``len(table)`` on are directories that have no entry of their own. A
    name's number is that of its inode: all names of a hard-linked file have one. ``root`` is the entry number of the
    layer's root directory. Raises FormatError for a table that no unpacker could make.
    """

    def __init__(self, table: LayerTable, where: str = "layer") -> None:
        self.table = table
        self.reading = reading = read_table(table, where)
        self.nlinks = dict(reading.nlinks)
        """Counts the names of entries with more than one."""
        self._names = table.names
        self._kinds: Any = memoryview(np.ascontiguousarray(table.kinds).data)
        self._synthetic: list[bytes] = []
        self._moved: dict[int, bytes] = {}
        self._known: dict[int, Directory] = {}
        self._directories: dict[bytes, dict[bytes, int]] = dict(reading.directories)
        self.root = reading.root if reading.root >= 0 else self._synthesise(b"")
        for path in reading.implied:
            prefix = path + b"/" if path else b""
            self._directories[path] = {
                base: self._synthesise(prefix + base) if number == IMPLIED else number
                for base, number in reading.directories[path].items()
            }
        self.whiteouts = frozenset(reading.whiteouts.values())
        """Holds the markers of removed names."""
        hidden: dict[bytes, dict[bytes, int]] = {}
        for path, marker in reading.whiteouts.items():
            parent, _, base = path.rpartition(b"/")
            hidden.setdefault(parent, {})[base] = marker
        for parent, markers in hidden.items():
            self._directories[parent] = {**self._directories[parent], **markers}

    def _synthesise(self, path: bytes) -> int:
        self._synthetic.append(path)
        return len(self._names) + len(self._synthetic) - 1

    def __len__(self) -> int:
        return len(self._names) + len(self._synthetic)

    def kind(self, number: int) -> int:
        """Returns the ``Kind`` of an entry; directories without an entry are directories."""
        return int(self._kinds[number]) if number < len(self._names) else Kind.DIR

    def name(self, number: int) -> bytes:
        """Returns a path of the entry within the layer (of a file with several names, one)."""
        count = len(self._names)
        if number >= count:
            return self._synthetic[number - count]
        name = self._names[number]
        if number not in self.whiteouts and self.find(name) != number:
            paths = self.reading.paths_of(number)
            return paths[0] if paths else name
        return name

    def find(self, path: bytes) -> int:
        """Returns the entry shown at this path, -1 if there is none (whiteouts too)."""
        if not path:
            return self.root
        parent, _, base = path.rpartition(b"/")
        number = self._directories.get(parent, {}).get(base, -1)
        return -1 if number in self.whiteouts else number

    def directory(self, number: int) -> Directory:
        """Returns the directory with this entry number."""
        known = self._known.get(number)
        if known is None:
            path = self._path_of(number)
            parent = self.find(path[: max(0, path.rfind(b"/"))]) if path else number
            opaque = path in self.reading.opaque
            known = self._known[number] = Directory(path, parent, self._directories[path], opaque=opaque)
        return known

    def _path_of(self, number: int) -> bytes:
        """Returns the path of a directory, which has only one."""
        if number >= len(self._names):
            return self._synthetic[number - len(self._names)]
        path = self._names[number]
        if self.find(path) != number:  # led elsewhere by a symbolic link
            if not self._moved:
                self._moved = {self.find(path): path for path in self._directories}
            path = self._moved[number]
        return path

    def is_whiteout(self, number: int) -> bool:
        """Says whether this entry is the marker of a removed name."""
        return number in self.whiteouts

    def subdirectories(self, number: int) -> int:
        """Counts the directories that a directory holds (its link count is two more)."""
        kinds, known = self._kinds, len(self._names)
        whiteouts = self.whiteouts
        return sum(
            child >= known or (kinds[child] == 2 and child not in whiteouts)  # Kind.DIR
            for child in self.directory(number).children.values()
        )

    def has_opaque(self) -> bool:
        """Says whether any directory of the layer is opaque."""
        return bool(self.reading.opaque)


def link_layers(indexes: Sequence[DirectoryIndex], numbers: Sequence[int]) -> dict[tuple[int, int], tuple[int, int]]:
    """Returns hard links into lower layers: (layer, entry) -> (layer, entry) of the inode, whose link count grows.

    Layers are counted as in ``indexes``, bottom first; ``numbers`` are the image's. Raises FormatError for a link to
    nothing.
    """
    found: dict[tuple[int, int], tuple[int, int]] = {}
    try:
        links = lower_links([index.reading for index in indexes], lambda n: f"layer {numbers[n]}")
    except FormatError as error:
        if list(numbers) == list(range(len(numbers))):
            raise
        what = f"{error.what}; a layer that is not indexed may have it: index every layer"
        raise FormatError(error.where, what) from None
    for link in links:
        found[link.layer, link.number] = link.lower, link.target
        nlinks = indexes[link.lower].nlinks
        nlinks[link.target] = nlinks.get(link.target, 1) + len(link.paths)
    return found
