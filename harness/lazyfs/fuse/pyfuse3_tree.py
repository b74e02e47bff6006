"""This module serves the same namespace and policies through pyfuse3, with which many file systems are written.

It is there to be compared with our own session. The library gives ``read`` and ``readdir`` a handle and no inode, so
the kernel cannot leave out opens, releases and listings. The row of preset ``pyfuse3`` shows what they cost.
"""

from __future__ import annotations

import errno
import os
import time
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyfuse3
import trio

from harness.lazyfs.counters import Counters
from harness.lazyfs.fuse.namespace import BLOCK_BYTES, Namespace
from harness.model.policy import LazyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from harness.lazyfs.fuse.connection import Presentation
    from harness.lazyfs.fuse.namespace import Attributes

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = frozenset(
    {"fsname=coldbench", "subtype=lazyfs", "ro", "nosuid", "nodev", "allow_other", "default_permissions"}
)


def _counted(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """Counts and times the calls of a method; the time in the library's own queue is not visible from here."""

    def wrap(method: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @wraps(method)
        async def counted(*arguments: P.args, **named: P.kwargs) -> R:
            started = time.perf_counter_ns()
            try:
                return await method(*arguments, **named)
            finally:
                tree: Any = arguments[0]
                tree.counters.opcode(name).record(started, started)

        return counted

    return wrap


class Tree(pyfuse3.Operations):
    """Answers from a namespace, which may be replaced once: the tree is mounted before there is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.namespace = Namespace(LazyPolicy(), self.counters)

    def _entry(self, found: Attributes) -> Any:
        policy = self.namespace.policy
        entry: Any = pyfuse3.EntryAttributes()
        entry.st_ino, entry.generation = found.inode, 0
        entry.entry_timeout, entry.attr_timeout = policy.entry_timeout_s, policy.attr_timeout_s
        entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid = found.mode, found.links, found.uid, found.gid
        entry.st_rdev, entry.st_size = found.rdev, found.size
        entry.st_blksize, entry.st_blocks = BLOCK_BYTES, found.blocks
        entry.st_atime_ns = found.atime_s * 10**9 + found.atime_ns
        entry.st_mtime_ns = found.mtime_s * 10**9 + found.mtime_ns
        entry.st_ctime_ns = found.ctime_s * 10**9 + found.ctime_ns
        return entry

    @_counted("lookup")
    async def lookup(self, parent_inode: Any, name: Any, ctx: Any) -> Any:
        found = self.namespace.lookup(parent_inode, name)
        if found is not None:
            return self._entry(found)
        if self.namespace.policy.negative_timeout_s <= 0:
            raise pyfuse3.FUSEError(errno.ENOENT)
        nothing: Any = pyfuse3.EntryAttributes()
        nothing.st_ino, nothing.entry_timeout = 0, self.namespace.policy.negative_timeout_s
        return nothing

    @_counted("getattr")
    async def getattr(self, inode: Any, ctx: Any) -> Any:
        return self._entry(self.namespace.attributes(inode))

    @_counted("readlink")
    async def readlink(self, inode: Any, ctx: Any) -> Any:
        target = self.namespace.readlink(inode)
        if target is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return target

    @_counted("open")
    async def open(self, inode: Any, flags: Any, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_counted("opendir")
    async def opendir(self, inode: Any, ctx: Any) -> Any:
        return inode

    @_counted("release")
    async def release(self, fh: Any) -> None:
        """Nothing is kept per open file."""

    @_counted("releasedir")
    async def releasedir(self, fh: Any) -> None:
        """Nothing is kept per open directory."""

    @_counted("read")
    async def read(self, fh: Any, off: int, size: int) -> Any:
        data = self.namespace.read_now(fh, off, size)
        if data is None:
            data = await self.namespace.read(fh, off, size)
        if isinstance(data, int):
            raise pyfuse3.FUSEError(-data)
        return bytes(data)

    @_counted("readdir")
    async def readdir(self, fh: Any, start_id: int, token: Any) -> Any:
        namespace = self.namespace
        for position, (name, subtree, number) in enumerate(namespace.entries(fh)[start_id:], start_id + 1):
            if subtree is None:
                continue  # the kernel makes the dots itself
            if not pyfuse3.readdir_reply(token, name, self._entry(namespace.attributes_of(subtree, number)), position):
                return

    @_counted("getxattr")
    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> Any:
        if not self.namespace.has_xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        value = self.namespace.xattrs(inode).get(name)
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    @_counted("listxattr")
    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        if not self.namespace.has_xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        return list(self.namespace.xattrs(inode))

    @_counted("statfs")
    async def statfs(self, ctx: Any) -> Any:
        found: Any = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = BLOCK_BYTES
        found.f_blocks, found.f_bfree, found.f_bavail = self.namespace.blocks, 0, 0
        found.f_files, found.f_ffree, found.f_favail = self.namespace.inodes, 0, 0
        found.f_namemax = 255
        return found


class LibrarySession:
    """Serves one mount through pyfuse3, with what a tree needs of ``harness.lazyfs.fuse.connection.Session``."""

    def __init__(self, mountpoint: str) -> None:
        """Mount at ``mountpoint``. Raises OSError or RuntimeError."""
        self._tree = Tree()
        self._scope: trio.CancelScope | None = None
        self.closed = False
        pyfuse3.init(self._tree, os.fspath(mountpoint), set(_OPTIONS))

    @property
    def survivor(self) -> int | None:
        """Returns None: the library keeps its descriptor to itself."""
        return None

    def resend(self) -> None:
        """Does nothing: nothing was taken over."""

    async def serve(self) -> None:
        """Answer requests until unmounted or ``close``d."""
        try:
            with trio.CancelScope() as self._scope:
                await pyfuse3.main()
        finally:
            self.closed = True
            pyfuse3.close(unmount=False)

    def show_tree(self, namespace: Namespace, counters: Counters) -> None:
        """Makes ``namespace`` answer from now on."""
        self._tree.counters = counters
        self._tree.namespace = namespace

    def present(self, presentation: Presentation, counters: Counters) -> None:
        """Refuses: only trees are served through the library."""
        raise NotImplementedError("pyfuse3 serves trees")

    def store_pages(self, inode: int, offset: int, data: Sequence[bytes | memoryview]) -> bool:
        """Returns False: nothing is pushed through the library."""
        return False

    def drop_pages(self, inode: int) -> bool:
        """Returns False: nothing was pushed."""
        return False

    def close(self) -> None:
        """Make ``serve`` end."""
        self.closed = True
        if self._scope is not None:
            self._scope.cancel()
