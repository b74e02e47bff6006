"""The blob presentation: one file, ``image``: EROFS metadata from memory, then each layer's address space.

The kernel's EROFS is mounted over it (``harness.lazyfs.mounts``), so names, attributes and the page cache are the
kernel's; the only requests that ever come here are reads of bytes that nobody has read yet. Parts start at multiples
of 4096; the padding between them reads as zeros, and so does what no unit holds (alignment gaps).

Cached or not, measured with ``import pandas`` of python-data and twice more (kernel 6.18): the same CPU in
the noise (1.65 s against 1.69 for all of the machine), 1 350 requests against 1 170, and without ``direct_io``
every byte read stands in the page cache twice, below EROFS and in it (65 MB more). So ``direct_io`` is the default.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import pyfuse3
from pyfuse3 import FUSEError

from harness.errors import ColdbenchError

if TYPE_CHECKING:
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.policy import Policy
    from harness.lazyfs.session import Reader
    from harness.lazyfs.store import Layer, Store
    from harness.lazyfs.trace import BlockTrace

log = logging.getLogger(__name__)

ROOT, IMAGE = 1, 2
NAME = "image"
ALIGN = 4096


class BlobOperations(pyfuse3.Operations):
    """Read-only; ``parts`` are (start in the file, layer), ascending, behind the metadata."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, policy: Policy, counters: Counters, trace: BlockTrace | None = None) -> None:
        super().__init__()
        self.reader: Reader | None = None
        self._policy = policy
        self._counters = counters
        self._trace = trace
        self._metadata = memoryview(b"")
        self._starts: list[int] = []
        self._layers: list[Layer | None] = []
        self._store: Store | None = None
        self.size = 0
        self._read_op = counters.opcode("read")
        self._file = pyfuse3.FileInfo(fh=IMAGE, keep_cache=True, direct_io=policy.direct_io)

    def present(self, store: Store, metadata: bytes, starts: list[int], size: int) -> None:
        """Show the file: ``starts[i]`` is where layer i's address space begins in it, ``size`` the whole's.

        ValueError when parts overlap or leave the file.
        """
        position = len(metadata)
        for start, layer in zip(starts, store.layers, strict=True):
            if start < position or start % 512:
                raise ValueError(f"layer {layer.index} starts at {start}, inside what precedes it")
            position = start + layer.size
        if position > size:
            raise ValueError(f"{position} bytes of parts in a file of {size}")
        self._store = store
        self._metadata = memoryview(metadata)
        self._starts = [0, *starts]
        self._layers = [None, *store.layers]
        self.size = size

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry: Any = pyfuse3.EntryAttributes()
        entry.entry_timeout = entry.attr_timeout = self._policy.attr_timeout_s
        entry.st_ino = inode
        if inode == ROOT:
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o700, 2
        elif inode == IMAGE:
            entry.st_mode, entry.st_nlink, entry.st_size = stat.S_IFREG | 0o400, 1, self.size
            entry.st_blocks = self.size >> 9
        else:
            raise FUSEError(errno.ENOENT)
        filled: pyfuse3.EntryAttributes = entry
        return filled

    def _count(self, name: str, started: int) -> None:
        self._counters.opcode(name).record(self.reader.arrived_ns, started)  # type: ignore[union-attr]

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        started = time.perf_counter_ns()
        if parent != ROOT or name != NAME.encode() or self._store is None:
            raise FUSEError(errno.ENOENT)
        self._count("lookup", started)
        return self._attributes(IMAGE)

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        self._count("getattr", time.perf_counter_ns())
        return self._attributes(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        started = time.perf_counter_ns()
        if inode != IMAGE or flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        self._count("open", started)
        return self._file

    async def release(self, fh: int) -> None:
        self._count("release", time.perf_counter_ns())

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def releasedir(self, fh: int) -> None:
        return

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        if self._store is not None and start_id == 0:
            pyfuse3.readdir_reply(token, NAME.encode(), self._attributes(IMAGE), 1)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        raise FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        raise FUSEError(errno.ENOSYS)

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        raise FUSEError(errno.ENOSYS)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data: Any = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = ALIGN
        data.f_blocks, data.f_files, data.f_namemax = self.size // ALIGN, 2, 255
        filled: pyfuse3.StatvfsData = data
        return filled

    async def forget(self, inode_list: Any) -> None:
        return

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]
        started = time.perf_counter_ns()
        reader: Any = self.reader
        arrived = reader.arrived_ns
        size = min(size, self.size - off)
        try:
            if size <= 0:
                return b""
            part = bisect_right(self._starts, off) - 1
            layer = self._layers[part]
            if layer is not None:
                offset = off - self._starts[part]
                if offset + size <= layer.size:
                    if self._trace is not None:
                        self._trace.note(layer.index, offset, size)
                    store: Any = self._store
                    data: bytes | memoryview | None = store.read_now(layer, offset, size, layer.size)
                    if data is None:
                        reader.release()
                        data = await store.read(layer, offset, size, layer.size)
                    return data
            elif off + size <= len(self._metadata):
                return self._metadata[off : off + size]
            reader.release()
            return await self._across(off, size)
        except ColdbenchError as error:
            self._counters.read_errors += 1
            log.warning("read of %d bytes at %d: %s", size, off, error)
            raise FUSEError(errno.EIO) from error
        finally:
            self._read_op.record(arrived, started)

    async def _across(self, off: int, size: int) -> bytes:
        """A read that touches padding or several parts."""
        parts: list[bytes | memoryview] = []
        end = off + size
        while off < end:
            part = bisect_right(self._starts, off) - 1
            stop = min(end, self._starts[part + 1] if part + 1 < len(self._starts) else self.size)
            layer = self._layers[part]
            begin = off - self._starts[part]
            length = len(self._metadata) if layer is None else layer.size
            inside = max(0, min(stop - self._starts[part], length) - begin)
            if inside and layer is None:
                parts.append(self._metadata[begin : begin + inside])
            elif inside and layer is not None:
                assert self._store is not None
                if self._trace is not None:
                    self._trace.note(layer.index, begin, inside)
                parts.append(await self._store.read(layer, begin, inside, layer.size))
            parts.append(bytes(stop - off - inside))
            off = stop
        return b"".join(parts)
