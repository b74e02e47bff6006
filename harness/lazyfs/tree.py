"""The tree presentation: one FUSE session in which directory ``N`` is layer N, for OverlayFS to stack.

pyfuse3 hands ``read`` and ``readdir`` only the handle, so the handle is the inode number. Inode numbers are given once
and never change: 1 is the session's root, then each layer's entries follow as a block. Nothing is allocated per entry
until it is looked up, and nothing is kept afterwards: with timeouts without end the kernel does not ask twice.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import pyfuse3
from pyfuse3 import FUSEError

from harness.errors import ColdbenchError, FormatError
from harness.formats.table import Kind
from harness.lazyfs.directory_index import OPAQUE_XATTR, DirectoryIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.table import LayerTable
    from harness.lazyfs.counters import Counters, Opcode
    from harness.lazyfs.policy import Policy
    from harness.lazyfs.session import Reader
    from harness.lazyfs.store import Layer, Store
    from harness.lazyfs.trace import Trace

log = logging.getLogger(__name__)

ROOT = 1
_TYPE: dict[int, int] = {
    Kind.REG: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO, Kind.SYMLINK: stat.S_IFLNK,
}  # fmt: skip
_BLOCK = 4096


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
        self.table = table
        self.index = DirectoryIndex(table)
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


class TreeOperations(pyfuse3.Operations):
    """Read-only; anything else is EROFS, which the mount's own ``ro`` says first."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, policy: Policy, counters: Counters, trace: Trace | None = None) -> None:
        super().__init__()
        self.reader: Reader | None = None
        self.store: Store | None = None
        self.subtrees: list[Subtree] = []
        self._names: dict[bytes, Subtree] = {}
        self._foreign: dict[int, tuple[Subtree, int]] = {}
        """Hard links whose target is in a lower layer: inode -> that layer's entry."""
        self._bases: list[int] = []
        self._trace = trace
        self._counters = counters
        self._no_xattrs = False
        self._attributes = pyfuse3.EntryAttributes()
        self._negative = pyfuse3.EntryAttributes()
        self._file = pyfuse3.FileInfo(keep_cache=True)
        self._op: dict[str, Opcode] = {}
        names = ("lookup", "getattr", "readlink", "open", "read", "release", "opendir", "readdir", "releasedir",
                 "getxattr", "listxattr", "statfs", "forget", "access")  # fmt: skip
        for name in names:
            self._op[name] = counters.opcode(name)
        self._read_op, self._lookup_op = self._op["read"], self._op["lookup"]
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Timeouts for every answer from now on."""
        self._skip_xattrs = policy.skip_xattrs
        self._attributes.entry_timeout = policy.entry_timeout_s
        self._attributes.attr_timeout = policy.attr_timeout_s
        self._negative.entry_timeout = policy.negative_timeout_s
        self._negative_is_error = policy.negative_timeout_s <= 0

    def add_layers(self, store: Store, tables: list[LayerTable], numbers: list[int]) -> None:
        """Make all layers appear, bottom first, each under its number. Raises FormatError for a table that lies."""
        self.store = store
        base = ROOT + 1
        subtrees: list[Subtree] = []
        for table, layer, number in zip(tables, store.layers, numbers, strict=True):
            subtree = Subtree(number, base, table, layer)
            for link in subtree.index.dangling:
                self._foreign[base + link] = _find_below(subtree, link, subtrees)
            subtrees.append(subtree)
            self._bases.append(base)
            self._names[str(number).encode()] = subtree
            base = subtree.end
        self.subtrees = subtrees
        self._no_xattrs = self._skip_xattrs and not any(
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

    def name_touches(self, trace: Trace) -> list[dict[str, Any]]:
        """The trace with paths as the container sees them and the image's layer numbers."""

        def name(layer: int, entry: int) -> str:
            return "/" + os.fsdecode(self.subtrees[layer].index.name(entry))

        touches = trace.first_touches(name)
        for touch in touches:
            touch["layer"] = self.subtrees[touch["layer"]].number
        return touches

    # Attributes

    def _subtree(self, inode: int) -> Subtree:
        position = bisect_right(self._bases, inode) - 1
        if position < 0 or inode >= self.subtrees[position].end:
            raise FUSEError(errno.ENOENT)
        return self.subtrees[position]

    def _fill(self, subtree: Subtree, number: int) -> pyfuse3.EntryAttributes:
        """Attributes of an entry, in the one object that every answer is copied from."""
        entry: Any = self._attributes
        index = subtree.index
        if number >= len(subtree.kinds):
            return self._fill_plain(
                entry, subtree.base + number, stat.S_IFDIR | 0o755, 2 + index.subdirectories(number)
            )
        kind = subtree.kinds[number]
        if index.is_whiteout(number):
            return self._fill_plain(entry, subtree.base + number, stat.S_IFCHR, 1)
        if kind == Kind.HARDLINK:
            foreign = self._foreign.get(subtree.base + number)
            if foreign is not None:
                return self._fill(*foreign)
            number = index.resolve(number)
            kind = subtree.kinds[number]
        entry.st_ino = subtree.base + number
        # Linux has no modes of symbolic links: an unpacked one is always 0777, whatever the tar says.
        entry.st_mode = _TYPE[kind] | (0o777 if kind == Kind.SYMLINK else subtree.modes[number])
        entry.st_uid = subtree.uids[number]
        entry.st_gid = subtree.gids[number]
        entry.st_nlink = 2 + index.subdirectories(number) if kind == Kind.DIR else index.nlinks.get(number, 1)
        if kind == Kind.REG:
            size = subtree.sizes[number]
        elif kind == Kind.SYMLINK:
            size = len(subtree.links.get(number, b""))
        else:
            size = _BLOCK if kind == Kind.DIR else 0
        entry.st_size = size
        entry.st_blocks = (size + 511) >> 9
        entry.st_rdev = os.makedev(*subtree.rdevs.get(number, (0, 0))) if kind in {Kind.CHAR, Kind.BLOCK} else 0
        time_ns = subtree.mtimes[number] * 1_000_000_000 + subtree.mtimes_ns[number]
        entry.st_mtime_ns = time_ns
        entry.st_ctime_ns = time_ns
        entry.st_atime_ns = time_ns
        filled: pyfuse3.EntryAttributes = entry
        return filled

    @staticmethod
    def _fill_plain(entry: Any, inode: int, mode: int, nlink: int) -> pyfuse3.EntryAttributes:
        entry.st_ino = inode
        entry.st_mode = mode
        entry.st_nlink = nlink
        entry.st_uid = entry.st_gid = entry.st_rdev = 0
        entry.st_size = _BLOCK if stat.S_ISDIR(mode) else 0
        entry.st_blocks = entry.st_size >> 9
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = 0
        filled: pyfuse3.EntryAttributes = entry
        return filled

    def _fill_inode(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode == ROOT:
            return self._fill_plain(self._attributes, ROOT, stat.S_IFDIR | 0o755, 2 + len(self.subtrees))
        subtree = self._subtree(inode)
        return self._fill(subtree, inode - subtree.base)

    # Handlers

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        started = time.perf_counter_ns()
        try:
            if parent == ROOT:
                return self._lookup_layer(name)
            subtree = self._subtree(parent)
            number = parent - subtree.base
            directory = subtree.index.directory(number)
            child = directory.children.get(name)
            if child is None:
                if name == b".":
                    child = number
                elif name == b"..":
                    return self._fill_inode(ROOT if number == subtree.index.root else subtree.base + directory.parent)
                elif self._negative_is_error:
                    raise FUSEError(errno.ENOENT)
                else:
                    return self._negative
            return self._fill(subtree, child)
        finally:
            self._lookup_op.record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    def _lookup_layer(self, name: bytes) -> pyfuse3.EntryAttributes:
        subtree = self._names.get(name)
        if subtree is not None:
            return self._fill(subtree, subtree.index.root)
        if name in {b".", b".."}:
            return self._fill_inode(ROOT)
        raise FUSEError(errno.ENOENT)  # not remembered: layers appear later

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        started = time.perf_counter_ns()
        try:
            return self._fill_inode(inode)
        finally:
            self._op["getattr"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        started = time.perf_counter_ns()
        try:
            subtree = self._subtree(inode)
            target = subtree.links.get(inode - subtree.base)
            if target is None or subtree.kinds[inode - subtree.base] != Kind.SYMLINK:
                raise FUSEError(errno.EINVAL)
            return target
        finally:
            self._op["readlink"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        started = time.perf_counter_ns()
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        self._file.fh = inode
        self._op["open"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]
        return self._file

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]
        started = time.perf_counter_ns()
        reader: Any = self.reader
        arrived = reader.arrived_ns
        subtree = self._subtree(fh)
        number = fh - subtree.base
        length = subtree.sizes[number]
        if off + size > length:
            size = length - off
        data: bytes | memoryview | None = b""
        if size > 0:
            if self._trace is not None:
                self._trace.note(subtree.layer.index, number, off, size)
            start = subtree.offsets[number]
            store: Any = self.store
            try:
                data = store.read_now(subtree.layer, start + off, size, start + length)
                if data is None:
                    reader.release()
                    data = await store.read(subtree.layer, start + off, size, start + length)
            except ColdbenchError as error:
                self._counters.read_errors += 1
                log.warning("read of %r at %d: %s", os.fsdecode(subtree.index.name(number)), off, error)
                raise FUSEError(errno.EIO) from error
            finally:
                self._read_op.record(arrived, started)
        else:
            self._read_op.record(arrived, started)
        return data  # type: ignore[return-value]

    async def release(self, fh: int) -> None:
        self._op["release"].record(self.reader.arrived_ns, time.perf_counter_ns())  # type: ignore[union-attr]

    async def opendir(self, inode: int, ctx: Any) -> int:
        self._op["opendir"].record(self.reader.arrived_ns, time.perf_counter_ns())  # type: ignore[union-attr]
        return inode

    async def releasedir(self, fh: int) -> None:
        self._op["releasedir"].record(self.reader.arrived_ns, time.perf_counter_ns())  # type: ignore[union-attr]

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        started = time.perf_counter_ns()
        reply = pyfuse3.readdir_reply
        if fh == ROOT:
            for position, subtree in enumerate(self.subtrees[start_id:], start_id):
                entry = self._fill(subtree, subtree.index.root)
                if not reply(token, str(subtree.number).encode(), entry, position + 1):
                    break
        else:
            subtree = self._subtree(fh)
            number = fh - subtree.base
            directory = subtree.index.directory(number)
            ordered = directory.ordered
            if ordered is None:
                ordered = directory.ordered = [(b".", number), (b"..", -1), *directory.children.items()]
            fill = self._fill
            for position in range(start_id, len(ordered)):
                name, child = ordered[position]
                if child < 0:
                    entry = self._fill_inode(ROOT if number == subtree.index.root else subtree.base + directory.parent)
                else:
                    entry = fill(subtree, child)
                if not reply(token, name, entry, position + 1):
                    break
        self._op["readdir"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

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

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        started = time.perf_counter_ns()
        try:
            if self._no_xattrs and self.subtrees:
                raise FUSEError(errno.ENOSYS)  # the kernel never asks again, for any file of this mount
            value = self._xattrs(inode).get(name)
            if value is None:
                raise FUSEError(errno.ENODATA)
            return value
        finally:
            self._op["getxattr"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        started = time.perf_counter_ns()
        try:
            if self._no_xattrs and self.subtrees:
                raise FUSEError(errno.ENOSYS)
            return list(self._xattrs(inode))
        finally:
            self._op["listxattr"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        started = time.perf_counter_ns()
        data: Any = pyfuse3.StatvfsData()
        blocks = sum(-(-subtree.table.address_space_bytes // _BLOCK) for subtree in self.subtrees)
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_blocks = blocks
        data.f_files = sum(len(subtree.index) for subtree in self.subtrees)
        data.f_namemax = 255
        self._op["statfs"].record(self.reader.arrived_ns, started)  # type: ignore[union-attr]
        filled: pyfuse3.StatvfsData = data
        return filled

    async def forget(self, inode_list: Any) -> None:
        self._op["forget"].count += len(inode_list)

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        raise FUSEError(errno.ENOSYS)


def _find_below(subtree: Subtree, link: int, lower: list[Subtree]) -> tuple[Subtree, int]:
    """The file of a lower layer that a hard link of this one names; FormatError when there is none."""
    target = subtree.links.get(link, b"")
    for other in reversed(lower):
        found = other.index.find(target)
        if found >= 0:
            if other.index.kind(found) not in {Kind.DIR, Kind.HARDLINK}:
                return other, found
            break
    raise FormatError(
        f"layer {subtree.number}, {os.fsdecode(subtree.index.name(link))}",
        f"hard link to {os.fsdecode(target)}, which is not in this layer or below",
    )
