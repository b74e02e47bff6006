"""The tree presentation: one FUSE session in which directory ``N`` is layer N, for OverlayFS to stack.

Inode numbers are given once and never change: 1 is the session's root, then each layer's entries follow as a block.
Nothing is allocated per entry until it is looked up, and nothing is kept afterwards: with timeouts without end the
kernel does not ask twice.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import stat
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import ColdbenchError
from harness.formats.table import Kind
from harness.formats.tar.limits import held_table
from harness.lazyfs.fuse import protocol as fuse
from harness.lazyfs.fuse.directory_index import OPAQUE_XATTR, DirectoryIndex, link_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.table import LayerTable
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store
    from harness.lazyfs.fuse.connection import Handler, Reply
    from harness.lazyfs.messages import Touch
    from harness.lazyfs.trace import Trace
    from harness.model.policy import LazyPolicy

log = logging.getLogger(__name__)

ROOT = 1
_TYPE: dict[int, int] = {
    Kind.REG: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO, Kind.SYMLINK: stat.S_IFLNK,
}  # fmt: skip
_BLOCK = 4096
_GENERATION = bytes(8)
_DOTS = frozenset({b".", b".."})
_DIRENT_BYTES = fuse.DIRENT.size
_pack_attributes = fuse.ATTRIBUTES.pack
_read_in = fuse.READ_IN.unpack_from
_inode_and_mode = struct.Struct("<Q52xI").unpack_from
"""Of packed attributes."""


def _cells(column: Any) -> memoryview:
    """A column whose single cells are cheap to read (40 ns; a numpy scalar takes three times that)."""
    return memoryview(np.ascontiguousarray(column).data)


class Subtree:
    """One layer in the tree: its table's columns as plain memory views."""

    __slots__ = (
        "base", "end", "gids", "index", "kinds", "layer", "links", "modes", "mtimes", "mtimes_ns", "number", "offsets",
        "rdevs", "sizes", "table", "uids", "xattrs",
    )  # fmt: skip

    def __init__(self, number: int, base: int, table: LayerTable, layer: Layer) -> None:
        self.number = number
        self.base = base
        """Inode number of entry 0."""
        self.table = table = held_table(table)
        self.index = DirectoryIndex(table, f"layer {number}")
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


class TreePresentation:
    """Read-only; anything else is refused by the mount's own ``ro`` first."""

    def __init__(self, policy: LazyPolicy, counters: Counters, trace: Trace | None = None) -> None:
        self.store: Store | None = None
        self.subtrees: list[Subtree] = []
        self._names: dict[bytes, Subtree] = {}
        self._foreign: dict[int, tuple[Subtree, int]] = {}
        """Hard links whose target is in a lower layer: inode -> that layer's entry."""
        self._bases: list[int] = []
        self._trace = trace
        self._counters = counters
        self._policy = policy
        self._no_xattrs = False
        self._valid = fuse.valid(policy.entry_timeout_s, policy.attr_timeout_s)
        negative_s = policy.negative_timeout_s
        self._negative: bytes | int = -errno.ENOENT
        if negative_s > 0:
            self._negative = fuse.entry(0, negative_s, 0, bytes(fuse.ATTRIBUTES.size))

    def handlers(self) -> dict[int, Handler]:
        """See ``harness.lazyfs.fuse.connection.Presentation``.

        Without handlers for open and opendir the kernel opens files and directories by itself, keeps what was read
        and what was listed, and never asks again (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT).
        """
        found: dict[int, Handler] = {
            fuse.LOOKUP: self.lookup,
            fuse.GETATTR: self.getattr,
            fuse.READLINK: self.readlink,
            fuse.READ: self.read,
            fuse.READDIR: self.readdir,
            fuse.READDIRPLUS: self.readdirplus,
            fuse.STATFS: self.statfs,
        }
        if not self._no_xattrs:
            found[fuse.GETXATTR] = self.getxattr
            found[fuse.LISTXATTR] = self.listxattr
        if not self._policy.skip_open:
            opened = fuse.OPEN_OUT.pack(0, fuse.KEEP_CACHE, 0)
            listed = fuse.OPEN_OUT.pack(0, 0, 0)
            found[fuse.OPEN] = lambda inode, message: opened
            found[fuse.OPENDIR] = lambda inode, message: listed
            found[fuse.RELEASE] = found[fuse.RELEASEDIR] = lambda inode, message: b""
        return found

    def add_layers(self, store: Store, tables: list[LayerTable], numbers: list[int]) -> None:
        """Make all layers appear, bottom first, each under its number. Raises FormatError for a table that lies."""
        self.store = store
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
        self._no_xattrs = self._policy.skip_xattrs and not any(
            subtree.xattrs or subtree.index.has_opaque() for subtree in self.subtrees
        )

    def extents_of(self, paths: Sequence[str]) -> list[tuple[int, int, int]]:
        """(layer, begin, end) of each path's file where the stack of layers shows it; unknown paths are left out."""
        extents = []
        for path in paths:
            name = os.fsencode(path.strip("/"))
            for subtree in reversed(self.subtrees):
                number = subtree.index.find(name)
                if number >= 0:
                    size = subtree.sizes[number] if number < len(subtree.kinds) else 0
                    if size > 0 and subtree.kinds[number] == Kind.REG:
                        begin = subtree.offsets[number]
                        extents.append((subtree.layer.index, begin, begin + size))
                    break
        return extents

    def name_touches(self, trace: Trace) -> list[Touch]:
        """The trace with paths as the container sees them and the image's layer numbers."""

        def name(layer: int, entry: int) -> str:
            return "/" + os.fsdecode(self.subtrees[layer].index.name(entry))

        return [
            dataclasses.replace(touch, layer=self.subtrees[touch.layer].number) for touch in trace.first_touches(name)
        ]

    # Attributes

    def _subtree(self, inode: int) -> Subtree:
        """Whose inode it is; the kernel knows only what it was told, so another is its error or a stale handle's."""
        position = bisect_right(self._bases, inode) - 1
        if position < 0 or inode >= self.subtrees[position].end:
            raise LookupError(f"inode {inode} was never given out")
        return self.subtrees[position]

    def _attributes(self, subtree: Subtree, number: int) -> bytes:
        """Attributes of an entry as the protocol has them; they begin with its inode number."""
        index = subtree.index
        if number >= len(subtree.kinds):
            links = 2 + index.subdirectories(number)
            return _plain(subtree.base + number, stat.S_IFDIR | 0o755, links)
        kind = subtree.kinds[number]
        if index.is_whiteout(number):
            return _plain(subtree.base + number, stat.S_IFCHR, 1)
        if kind == Kind.HARDLINK:
            return self._attributes(*self._foreign[subtree.base + number])
        mode, size, rdev = subtree.modes[number], 0, 0
        links = index.nlinks.get(number, 1)
        if kind == Kind.REG:
            size = subtree.sizes[number]
        elif kind == Kind.DIR:
            size, links = _BLOCK, 2 + index.subdirectories(number)
        elif kind == Kind.SYMLINK:
            # Linux has no modes of symbolic links: an unpacked one is always 0777, whatever the tar says.
            mode, size = 0o777, len(subtree.links.get(number, b""))
        elif kind in {Kind.CHAR, Kind.BLOCK}:
            rdev = os.makedev(*subtree.rdevs.get(number, (0, 0))) & 0xFFFFFFFF
        at, at_ns = subtree.mtimes[number], subtree.mtimes_ns[number]
        return _pack_attributes(
            subtree.base + number, size, (size + 511) >> 9, at, at, at, at_ns, at_ns, at_ns, _TYPE[kind] | mode, links,
            subtree.uids[number], subtree.gids[number], rdev, _BLOCK, 0,
        )  # fmt: skip

    def _attributes_of(self, inode: int) -> bytes:
        if inode == ROOT:
            return _plain(ROOT, stat.S_IFDIR | 0o755, 2 + len(self.subtrees))
        subtree = self._subtree(inode)
        return self._attributes(subtree, inode - subtree.base)

    def _entry(self, attributes: bytes) -> bytes:
        return attributes[:8] + _GENERATION + self._valid + attributes

    # Handlers

    def lookup(self, parent: int, message: bytes) -> Reply:
        name = fuse.name_of(message)
        if parent == ROOT:
            layer = self._names.get(name)
            if layer is not None:
                return self._entry(self._attributes(layer, layer.index.root))
            return self._entry(self._attributes_of(ROOT)) if name in _DOTS else self._negative
        subtree = self._subtree(parent)
        number = parent - subtree.base
        directory = subtree.index.directory(number)
        child = directory.children.get(name)
        if child is not None:
            return self._entry(self._attributes(subtree, child))
        if name == b".":
            return self._entry(self._attributes(subtree, number))
        if name == b"..":
            return self._entry(self._attributes_of(self._parent(subtree, number)))
        return self._negative

    @staticmethod
    def _parent(subtree: Subtree, number: int) -> int:
        """Inode of the directory above this one."""
        return ROOT if number == subtree.index.root else subtree.base + subtree.index.directory(number).parent

    def getattr(self, inode: int, message: bytes) -> Reply:
        return fuse.attributes_reply(self._policy.attr_timeout_s, self._attributes_of(inode))

    def readlink(self, inode: int, message: bytes) -> Reply:
        subtree = self._subtree(inode)
        target = subtree.links.get(inode - subtree.base)
        if target is None or subtree.kinds[inode - subtree.base] != Kind.SYMLINK:
            return -errno.EINVAL
        return target

    def read(self, inode: int, message: bytes) -> Reply:
        _, off, size = _read_in(message, fuse.ARGUMENTS)
        subtree = self._subtree(inode)
        number = inode - subtree.base
        length = subtree.sizes[number]
        if off + size > length:
            size = length - off
        if size <= 0:
            return b""
        layer, start, store = subtree.layer, subtree.offsets[number], self.store
        assert store is not None
        if self._trace is not None:
            self._trace.note(layer.index, number, off, size)
        try:
            data = store.read_now(layer, start + off, size, start + length)
        except ColdbenchError as error:
            return self._failed(subtree, number, off, error)
        return self._read_later(subtree, number, off, size) if data is None else data

    async def _read_later(self, subtree: Subtree, number: int, off: int, size: int) -> bytes | memoryview | int:
        start, store = subtree.offsets[number], self.store
        assert store is not None
        try:
            return await store.read(subtree.layer, start + off, size, start + subtree.sizes[number])
        except ColdbenchError as error:
            return self._failed(subtree, number, off, error)

    def _failed(self, subtree: Subtree, number: int, off: int, error: ColdbenchError) -> int:
        self._counters.note_read_error(f"read of {os.fsdecode(subtree.index.name(number))!r} at {off}", error)
        return -errno.EIO

    def readdir(self, inode: int, message: bytes) -> Reply:
        return self._list(inode, message, attributes=False)

    def readdirplus(self, inode: int, message: bytes) -> Reply:
        return self._list(inode, message, attributes=True)

    def _list(self, inode: int, message: bytes, *, attributes: bool) -> bytes:
        _, begin, room = _read_in(message, fuse.ARGUMENTS)
        parts: list[bytes] = []
        valid, prefix = self._valid, len(fuse.NO_ENTRY) if attributes else 0
        names = self._names_in(inode)
        for position in range(begin, len(names)):
            name, subtree, number = names[position]
            room -= prefix + _DIRENT_BYTES + (len(name) + 7 & ~7)
            if room < 0:
                break
            if subtree is None:
                # The kernel takes the names "." and ".." from here, and nothing else.
                if attributes:
                    parts.append(fuse.NO_ENTRY)
                parts.append(fuse.directory_entry(number, position + 1, stat.S_IFDIR, name))
                continue
            packed = self._attributes(subtree, number)
            if attributes:
                parts += (packed[:8], _GENERATION, valid, packed)
            found, mode = _inode_and_mode(packed)
            parts.append(fuse.directory_entry(found, position + 1, mode, name))
        return b"".join(parts)

    def _names_in(self, inode: int) -> list[tuple[bytes, Subtree | None, int]]:
        """Names of a directory with whose entries they are; without a subtree the number is an inode's."""
        if inode == ROOT:
            return [
                (b".", None, ROOT),
                (b"..", None, ROOT),
                *((str(tree.number).encode(), tree, tree.index.root) for tree in self.subtrees),
            ]
        subtree = self._subtree(inode)
        number = inode - subtree.base
        directory = subtree.index.directory(number)
        if directory.ordered is None:
            directory.ordered = [
                (b".", None, inode),
                (b"..", None, self._parent(subtree, number)),
                *((name, subtree, child) for name, child in directory.children.items()),
            ]
        return directory.ordered

    def _xattrs(self, inode: int) -> dict[bytes, bytes]:
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

    def getxattr(self, inode: int, message: bytes) -> Reply:
        value = self._xattrs(inode).get(fuse.xattr_name(message))
        return -errno.ENODATA if value is None else fuse.xattr_reply(message, value)

    def listxattr(self, inode: int, message: bytes) -> Reply:
        return fuse.xattr_reply(message, b"".join(name + b"\0" for name in self._xattrs(inode)))

    def statfs(self, inode: int, message: bytes) -> Reply:
        blocks = sum(-(-subtree.table.address_space_bytes // _BLOCK) for subtree in self.subtrees)
        return fuse.statfs_reply(_BLOCK, blocks, sum(len(subtree.index) for subtree in self.subtrees))


def _plain(inode: int, mode: int, links: int) -> bytes:
    """Attributes of what has no entry in any layer."""
    size = _BLOCK if stat.S_ISDIR(mode) else 0
    return _pack_attributes(inode, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, _BLOCK, 0)
