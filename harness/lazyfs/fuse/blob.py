"""This module presents an image as one file, ``image``: EROFS metadata from memory, then each layer's address space.

The kernel's EROFS is mounted over it (``harness.lazyfs.mounting.mounts``), so names, attributes and the page cache
are the kernel's; the only requests that ever come here are reads of bytes that nobody has read yet. Parts start at
multiples of 4096; the padding between them reads as zeros, and so does what no unit holds (alignment gaps).

The file is cached below EROFS, so that what is inflated can be handed over before it is read
(``harness.lazyfs.fuse.kernel_pages``): ``import pandas`` of python-data makes 220 requests so, 1 120 with
``direct_io`` and 950 when cached only. It costs memory: bytes stand in the page cache twice, below EROFS and in it,
until the kernel wants the room or the mount is handed over.
"""

from __future__ import annotations

import errno
import logging
import stat
from bisect import bisect_right
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError
from harness.lazyfs.fuse import protocol as fuse

if TYPE_CHECKING:
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.pack import StartPack
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store
    from harness.lazyfs.fuse.connection import Handler, Reply
    from harness.lazyfs.trace import BlockTrace
    from harness.model.policy import LazyPolicy

log = logging.getLogger(__name__)

ROOT, IMAGE = 1, 2
NAME = "image"
ALIGN = 4096
_pack_attributes = fuse.ATTRIBUTES.pack
_read_in = fuse.READ_IN.unpack_from


class BlobPresentation:
    """Presents the image file, read-only: its parts are the metadata and then the layers, each from its start on."""

    def __init__(self, policy: LazyPolicy, counters: Counters, trace: BlockTrace | None = None) -> None:
        self._policy = policy
        self._counters = counters
        self._trace = trace
        self.cached = not policy.direct_io and trace is None
        """Says whether the kernel keeps the file's pages; a trace must see every read."""
        self.pack: StartPack | None = None
        """Is asked before the layers, where a start has a pack."""
        self.metadata = memoryview(b"")
        self._starts: list[int] = []
        self._layers: list[Layer | None] = []
        self._store: Store | None = None
        self.size = 0

    def handlers(self) -> dict[int, Handler]:
        """Returns the handlers of ``harness.lazyfs.fuse.connection.Presentation``."""
        flags = fuse.KEEP_CACHE | (0 if self.cached else fuse.DIRECT_IO)
        opened = fuse.OPEN_OUT.pack(0, flags, 0)

        def open_file(inode: int, message: bytes) -> Reply:
            if self.pack is not None:
                self.pack.opened()
            return opened

        return {
            fuse.LOOKUP: self.lookup,
            fuse.GETATTR: self.getattr,
            fuse.OPEN: open_file,
            fuse.RELEASE: lambda inode, message: b"",
            fuse.READ: self.read,
            fuse.READDIR: self.readdir,
            fuse.STATFS: lambda inode, message: fuse.statfs_reply(ALIGN, self.size // ALIGN, 2),
        }

    def present(self, store: Store, metadata: bytes, starts: list[int], size: int) -> None:
        """Shows the file: ``starts[i]`` is where layer i's address space begins in it, ``size`` the whole's.

        Raises ValueError when parts overlap or leave the file.
        """
        position = len(metadata)
        for start, layer in zip(starts, store.layers, strict=True):
            if start < position or start % 512:
                raise ValueError(f"layer {layer.index} starts at {start}, inside what precedes it")
            position = start + layer.size
        if position > size:
            raise ValueError(f"{position} bytes of parts in a file of {size}")
        self._store = store
        self.metadata = memoryview(metadata)
        self._starts = [0, *starts]
        self._layers = [None, *store.layers]
        self.size = size

    def _attributes(self, inode: int) -> bytes | None:
        if inode == ROOT:
            return _pack_attributes(ROOT, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o700, 2, 0, 0, 0, ALIGN, 0)
        if inode == IMAGE:
            size = self.size
            return _pack_attributes(
                IMAGE, size, size >> 9, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o400, 1, 0, 0, 0, ALIGN, 0
            )
        return None

    def lookup(self, parent: int, message: bytes) -> Reply:
        attributes = self._attributes(IMAGE)
        if parent != ROOT or attributes is None or fuse.name_of(message) != NAME.encode():
            return -errno.ENOENT
        return fuse.entry(IMAGE, self._policy.entry_timeout_s, self._policy.attr_timeout_s, attributes)

    def getattr(self, inode: int, message: bytes) -> Reply:
        attributes = self._attributes(inode)
        return -errno.ENOENT if attributes is None else fuse.attributes_reply(self._policy.attr_timeout_s, attributes)

    def readdir(self, inode: int, message: bytes) -> Reply:
        _, position, _ = _read_in(message, fuse.ARGUMENTS)
        return b"" if position else fuse.directory_entry(IMAGE, 1, stat.S_IFREG, NAME.encode())

    def read(self, inode: int, message: bytes) -> Reply:
        _, off, size = _read_in(message, fuse.ARGUMENTS)
        size = min(size, self.size - off)
        if size <= 0:
            return b""
        part = bisect_right(self._starts, off) - 1
        layer = self._layers[part]
        if layer is None:
            if off + size <= len(self.metadata):
                return self.metadata[off : off + size]
            return self._read_later(None, off, size)
        pack = self.pack
        if pack is not None:
            data = pack.answer(off, size)
            if data is not None:
                return data
            if pack.may_have(off, size):
                return self._read_packed(pack, off, size)
        return self._read_layers(part, layer, off, size)

    async def _read_packed(self, pack: StartPack, off: int, size: int) -> bytes | memoryview | int:
        """Answers a read from the start pack if that has the bytes soon, else from the layers' own bytes."""
        data = await pack.wait(off, size)
        if data is not None:
            return data
        part = bisect_right(self._starts, off) - 1
        layer = self._layers[part]
        assert layer is not None
        reply = self._read_layers(part, layer, off, size)
        return reply if isinstance(reply, (bytes, memoryview, int)) else await reply

    def _read_layers(self, part: int, layer: Layer, off: int, size: int) -> Reply:
        """Answers a read that begins in a layer."""
        offset = off - self._starts[part]
        if offset + size > layer.size:
            return self._read_later(None, off, size)
        if self._trace is not None:
            self._trace.note(layer.index, offset, size)
        store = self._store
        assert store is not None
        try:
            data = store.read_now(layer, offset, size, layer.size)
        except ColdbenchError as error:
            return self._failed(off, size, error)
        return self._read_later(layer, off, size) if data is None else data

    async def _read_later(self, layer: Layer | None, off: int, size: int) -> bytes | memoryview | int:
        """Answers a read that has to wait, of one layer, or else one that touches padding or several parts."""
        try:
            if layer is None:
                return await self._across(off, size)
            assert self._store is not None
            return await self._store.read(layer, off - self._starts[layer.index + 1], size, layer.size)
        except ColdbenchError as error:
            return self._failed(off, size, error)

    def _failed(self, off: int, size: int, error: ColdbenchError) -> int:
        self._counters.note_read_error(f"read of {size} bytes at {off}", error)
        return -errno.EIO

    async def _across(self, off: int, size: int) -> bytes:
        """Answers a read that touches padding or several parts."""
        parts: list[bytes | memoryview] = []
        end = off + size
        while off < end:
            part = bisect_right(self._starts, off) - 1
            stop = min(end, self._starts[part + 1] if part + 1 < len(self._starts) else self.size)
            layer = self._layers[part]
            begin = off - self._starts[part]
            length = len(self.metadata) if layer is None else layer.size
            inside = max(0, min(stop - self._starts[part], length) - begin)
            if inside and layer is None:
                parts.append(self.metadata[begin : begin + inside])
            elif inside and layer is not None:
                assert self._store is not None
                if self._trace is not None:
                    self._trace.note(layer.index, begin, inside)
                parts.append(await self._store.read(layer, begin, inside, layer.size))
            parts.append(bytes(stop - off - inside))
            off = stop
        return b"".join(parts)
