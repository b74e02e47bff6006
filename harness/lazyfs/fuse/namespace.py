"""This module gives the tree as values: one directory for each layer, with names, attributes, entries and reads.

An encoder brings these values to the kernel: our own session's (``harness.lazyfs.fuse.tree``) or pyfuse3's
(``harness.lazyfs.fuse.pyfuse3_tree``). Inode numbers are given once and never change: 1 is the root, then each layer's
entries follow as a block. Nothing is allocated per entry until it is looked up, and nothing is kept afterwards.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.errors import ColdbenchError
from harness.formats.table import Kind
from harness.formats.tar.limits import held_table
from harness.lazyfs.fuse.directory_index import OPAQUE_XATTR, DirectoryIndex, link_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.formats.table import LayerTable
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store
    from harness.lazyfs.messages import FileRange, Touch
    from harness.lazyfs.trace import Trace
    from harness.model.policy import LazyPolicy

ROOT = 1
BLOCK_BYTES = 4096
_TYPE: dict[int, int] = {
    Kind.REG: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO, Kind.SYMLINK: stat.S_IFLNK,
}  # fmt: skip
_DOTS = frozenset({b".", b".."})


class Attributes(NamedTuple):
    """Holds what stat(2) says of an inode, in the order of struct fuse_attr."""

    inode: int
    size: int
    blocks: int
    """Counts blocks of 512 bytes."""
    atime_s: int
    mtime_s: int
    ctime_s: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int


_REG, _DIR, _SYMLINK = int(Kind.REG), int(Kind.DIR), int(Kind.SYMLINK)
"""Are plain numbers: looking members up takes a third of the time of a lookup."""
_new = tuple.__new__
"""Makes the tuple without its class's own constructor, which takes twice as long (0.2 us of 2 us per lookup)."""


class Entry(NamedTuple):
    """Holds a name of a directory, and the entry that it names, ``number`` of ``subtree``.

    Without a subtree ``number`` is a directory's inode.
    """

    name: bytes
    subtree: Subtree | None
    number: int


def _cells(column: Any) -> memoryview:
    """Returns a column whose single cells are cheap to read (40 ns; a numpy scalar takes three times that)."""
    return memoryview(np.ascontiguousarray(column).data)


class Subtree:
    """Holds one layer in the tree: its table's columns as plain memory views."""

    __slots__ = (
        "base", "end", "gids", "index", "kinds", "layer", "links", "modes", "mtimes", "mtimes_ns", "nlinks", "number",
        "offsets", "rdevs", "sizes", "table", "uids", "whiteouts", "xattrs",
    )  # fmt: skip

    def __init__(self, number: int, base: int, table: LayerTable, layer: Layer) -> None:
        self.number = number
        self.base = base
        """Says the inode number of entry 0."""
        self.table = table = held_table(table)
        self.index = DirectoryIndex(table, f"layer {number}")
        self.nlinks = self.index.nlinks
        self.whiteouts = self.index.whiteouts
        self.layer = layer
        self.end = base + len(self.index)
        self.kinds = _cells(table.kinds)
        self.modes = _cells(table.modes)
        self.uids = _cells(table.uids)
        self.gids = _cells(table.gids)
        self.sizes = _cells(table.sizes)
        self.offsets = _cells(table.offsets)
        self.mtimes = _cells(table.mtimes_s)
        self.mtimes_ns = _cells(table.mtimes_ns)
        self.links = table.links
        self.rdevs = table.rdevs
        self.xattrs = table.xattrs


class Namespace:
    """Shows all layers, each below the root under its number.

    Whiteouts and opaque directories have OverlayFS's form.
    """

    def __init__(self, policy: LazyPolicy, counters: Counters, trace: Trace | None = None) -> None:
        self.policy = policy
        self.subtrees: list[Subtree] = []
        self.has_xattrs = True
        """Says whether any file has extended attributes, or the policy says that they are answered anyway."""
        self._store: Store | None = None
        self._names: dict[bytes, Subtree] = {}
        self._foreign: dict[int, tuple[Subtree, int]] = {}
        """Maps the inodes of hard links whose target is in a lower layer to that layer's entry."""
        self._bases: list[int] = []
        self._trace = trace
        self._counters = counters

    def add_layers(self, store: Store, tables: list[LayerTable], numbers: list[int]) -> None:
        """Make all layers appear, bottom first, each under its number. Raises FormatError for a table that lies."""
        self._store = store
        base = ROOT + 1
        subtrees: list[Subtree] = []
        for table, layer, number in zip(tables, store.layers, numbers, strict=True):
            subtree = Subtree(number, base, table, layer)
            subtrees.append(subtree)
            self._bases.append(base)
            self._names[str(number).encode()] = subtree
            base = subtree.end
        self.subtrees = subtrees
        for (upper, link), (lower, target) in link_layers([tree.index for tree in subtrees], numbers).items():
            self._foreign[subtrees[upper].base + link] = subtrees[lower], target
        self.has_xattrs = not self.policy.skip_xattrs or any(
            subtree.xattrs or subtree.index.has_opaque() for subtree in self.subtrees
        )

    def extents_of(self, files: Iterable[FileRange]) -> list[tuple[int, int, int]]:
        """Returns (layer, begin, end) of parts of files as the layers together show them; unknown ones are left out."""
        extents = []
        for file in files:
            name = os.fsencode(file.path.strip("/"))
            for subtree in reversed(self.subtrees):
                number = subtree.index.find(name)
                if number >= 0:
                    size = subtree.sizes[number] if number < len(subtree.kinds) else 0
                    end = size if file.size is None else min(size, file.offset + file.size)
                    if file.offset < end and subtree.kinds[number] == Kind.REG:
                        begin = subtree.offsets[number]
                        extents.append((subtree.layer.index, begin + file.offset, begin + end))
                    break
        return extents

    def name_touches(self, trace: Trace) -> list[Touch]:
        """Returns the trace with paths as the container sees them and the image's layer numbers."""

        def name(layer: int, entry: int) -> str:
            return "/" + os.fsdecode(self.subtrees[layer].index.name(entry))

        return [
            dataclasses.replace(touch, layer=self.subtrees[touch.layer].number) for touch in trace.first_touches(name)
        ]

    # Attributes

    def _subtree(self, inode: int) -> Subtree:
        """Returns whose inode it is.

        Raises LookupError for others: the kernel knows only what it was told, so that is its error or a stale handle's.
        """
        position = bisect_right(self._bases, inode) - 1
        if position < 0 or inode >= self.subtrees[position].end:
            raise LookupError(f"inode {inode} was never given out")
        return self.subtrees[position]

    def attributes_of(self, subtree: Subtree, number: int) -> Attributes:
        """Returns the attributes of an entry."""
        if number >= len(subtree.kinds):
            return _plain(subtree.base + number, stat.S_IFDIR | 0o755, 2 + subtree.index.subdirectories(number))
        kind = subtree.kinds[number]
        mode, size, rdev = subtree.modes[number], 0, 0
        links = subtree.nlinks.get(number, 1)
        if number in subtree.whiteouts:
            return _plain(subtree.base + number, stat.S_IFCHR, 1)
        if kind == _REG:
            size = subtree.sizes[number]
        elif kind == _DIR:
            size, links = BLOCK_BYTES, 2 + subtree.index.subdirectories(number)
        elif kind == _SYMLINK:
            # Linux has no modes of symbolic links: an unpacked one is always 0777, whatever the tar says.
            mode, size = 0o777, len(subtree.links.get(number, b""))
        elif kind == Kind.HARDLINK:
            return self.attributes_of(*self._foreign[subtree.base + number])
        elif kind in {Kind.CHAR, Kind.BLOCK}:
            rdev = os.makedev(*subtree.rdevs.get(number, (0, 0))) & 0xFFFFFFFF
        at, at_ns = subtree.mtimes[number], subtree.mtimes_ns[number]
        return _new(Attributes, (
            subtree.base + number, size, (size + 511) >> 9, at, at, at, at_ns, at_ns, at_ns, _TYPE[kind] | mode, links,
            subtree.uids[number], subtree.gids[number], rdev,
        ))  # fmt: skip

    def attributes(self, inode: int) -> Attributes:
        """Returns the attributes of an inode; raises LookupError for one that was never given out."""
        if inode == ROOT:
            return _plain(ROOT, stat.S_IFDIR | 0o755, 2 + len(self.subtrees))
        subtree = self._subtree(inode)
        return self.attributes_of(subtree, inode - subtree.base)

    # Names

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Returns the attributes of what a directory has under this name, None for nothing."""
        if parent == ROOT:
            layer = self._names.get(name)
            if layer is not None:
                return self.attributes_of(layer, layer.index.root)
            return self.attributes(ROOT) if name in _DOTS else None
        subtree = self._subtree(parent)
        number = parent - subtree.base
        child = subtree.index.directory(number).children.get(name)
        if child is not None:
            return self.attributes_of(subtree, child)
        if name == b".":
            return self.attributes_of(subtree, number)
        return self.attributes(self._parent(subtree, number)) if name == b".." else None

    @staticmethod
    def _parent(subtree: Subtree, number: int) -> int:
        """Returns the inode of the directory above this one."""
        return ROOT if number == subtree.index.root else subtree.base + subtree.index.directory(number).parent

    def entries(self, inode: int) -> Sequence[Entry]:
        """Returns all names of a directory, dots first, always in the same order."""
        if inode == ROOT:
            return [
                Entry(b".", None, ROOT),
                Entry(b"..", None, ROOT),
                *(Entry(str(tree.number).encode(), tree, tree.index.root) for tree in self.subtrees),
            ]
        subtree = self._subtree(inode)
        number = inode - subtree.base
        directory = subtree.index.directory(number)
        if directory.ordered is None:
            directory.ordered = [
                Entry(b".", None, inode),
                Entry(b"..", None, self._parent(subtree, number)),
                *(Entry(name, subtree, child) for name, child in directory.children.items()),
            ]
        return directory.ordered

    def readlink(self, inode: int) -> bytes | None:
        """Returns where a symbolic link leads, None for what is none."""
        subtree = self._subtree(inode)
        number = inode - subtree.base
        if number >= len(subtree.kinds) or subtree.kinds[number] != Kind.SYMLINK:
            return None
        return subtree.links.get(number)

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """Returns the extended attributes of an inode."""
        if inode == ROOT:
            return {}
        subtree = self._subtree(inode)
        number = inode - subtree.base
        if number < len(subtree.kinds) and subtree.index.is_whiteout(number):
            return {}
        own = subtree.xattrs.get(number, {})
        if subtree.index.kind(number) == Kind.DIR and subtree.index.directory(number).opaque:
            return {**own, **OPAQUE_XATTR}
        return own

    @property
    def blocks(self) -> int:
        """Returns the size of everything, in blocks of BLOCK_BYTES."""
        return sum(-(-subtree.table.address_space_bytes // BLOCK_BYTES) for subtree in self.subtrees)

    @property
    def inodes(self) -> int:
        return sum(len(subtree.index) for subtree in self.subtrees)

    # Reading

    def read_now(self, inode: int, offset: int, size: int) -> bytes | memoryview | int | None:
        """Returns bytes of a file where that takes no waiting, a negative errno, or None where ``read`` has to wait."""
        subtree = self._subtree(inode)
        number = inode - subtree.base
        length = subtree.sizes[number]
        if offset + size > length:
            size = length - offset
        if size <= 0:
            return b""
        layer, start, store = subtree.layer, subtree.offsets[number], self._store
        assert store is not None
        if self._trace is not None:
            self._trace.note(layer.index, number, offset, size)
        try:
            return store.read_now(layer, start + offset, size, start + length)
        except ColdbenchError as error:
            return self._failed(subtree, number, offset, error)

    async def read(self, inode: int, offset: int, size: int) -> bytes | memoryview | int:
        """Returns the bytes that ``read_now`` did not have; a negative errno when they cannot be had."""
        subtree = self._subtree(inode)
        number = inode - subtree.base
        start, length, store = subtree.offsets[number], subtree.sizes[number], self._store
        assert store is not None
        try:
            return await store.read(subtree.layer, start + offset, min(size, length - offset), start + length)
        except ColdbenchError as error:
            return self._failed(subtree, number, offset, error)

    def _failed(self, subtree: Subtree, number: int, offset: int, error: ColdbenchError) -> int:
        self._counters.note_read_error(f"read of {os.fsdecode(subtree.index.name(number))!r} at {offset}", error)
        return -errno.EIO


def _plain(inode: int, mode: int, links: int) -> Attributes:
    """Returns the attributes of what has no entry in any layer."""
    size = BLOCK_BYTES if stat.S_ISDIR(mode) else 0
    return Attributes(inode, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0)
