"""This module is the FUSE session: it reads the kernel's requests from /dev/fuse and answers them, on trio.

pyfuse3's would not do: it hands ``read`` and ``readdir`` only a handle and ``opendir`` no flags, so that the kernel can
neither skip opens nor cache directories; and its loop costs more than most of these answers do. Here a handler is a
plain function from message to reply; only what has to wait becomes a task. docs/performance.md has both side by side.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Any, Protocol

import trio

from harness.errors import MachineError
from harness.kernel.syscalls import MS_NODEV, MS_NOSUID
from harness.kernel.syscalls import mount as _mount
from harness.lazyfs.counters import Counters
from harness.lazyfs.fuse import protocol as fuse
from harness.lazyfs.fuse.tree import TreePresentation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from harness.lazyfs.counters import Opcode
    from harness.lazyfs.fuse.namespace import Namespace

    Reply = bytes | memoryview | int | Coroutine[Any, Any, "bytes | memoryview | int"]
    """Is a payload, a negative errno, or a coroutine that gives one of them."""
    Handler = Callable[[int, bytes], Reply]
    """Takes (inode, message) and gives a reply; the message's arguments begin at ``fuse.ARGUMENTS``."""

log = logging.getLogger(__name__)

ROOT = 1
IN_A_ROW = 64
"""Counts the requests answered before other tasks get a turn, when more are always there."""
_BUFFER_BYTES = 16 << 10
"""Exceeds the protocol's least (8 KiB); nobody writes to us, so no request is large."""
_MAX_PAGES = 256
_MAX_BACKGROUND = 64
_CONTAINED = 1 | MS_NOSUID | MS_NODEV
"""Allows no writes, set-user-ID programs or device nodes: whose image it is nobody knows."""
_INIT_WAIT_S = 30.0
_WANTED = (
    fuse.ASYNC_READ | fuse.EXPORT_SUPPORT | fuse.DO_READDIRPLUS | fuse.ASYNC_DIO | fuse.PARALLEL_DIROPS
    | fuse.NO_OPEN_SUPPORT | fuse.NO_OPENDIR_SUPPORT | fuse.MAX_PAGES | fuse.CACHE_SYMLINKS | fuse.EXPLICIT_INVAL_DATA
    | fuse.INIT_EXT
)  # fmt: skip


class Presentation(Protocol):
    """Answers for what a session shows."""

    def handlers(self) -> Mapping[int, Handler]:
        """Returns a handler for each opcode; others are answered with ENOSYS, so that the kernel stops asking."""
        ...


class AnySession(Protocol):
    """Answers the kernel for a mount: this is ours, or the library's (``harness.lazyfs.fuse.pyfuse3_tree``)."""

    @property
    def survivor(self) -> int | None:
        """Returns the descriptor with which another process can take the mount over; None where none can."""
        ...

    def resend(self) -> None: ...

    def present(self, presentation: Presentation, counters: Counters) -> None: ...

    def show_tree(self, namespace: Namespace, counters: Counters) -> None: ...

    async def serve(self) -> None: ...

    def store_pages(self, inode: int, offset: int, data: Sequence[bytes | memoryview]) -> bool: ...

    def drop_pages(self, inode: int) -> bool: ...

    def close(self) -> None: ...


class Empty:
    """Shows an empty directory, until the image is there."""

    def handlers(self) -> Mapping[int, Handler]:
        attributes = fuse.ATTRIBUTES.pack(ROOT, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
        return {
            fuse.LOOKUP: lambda inode, message: -errno.ENOENT,
            fuse.GETATTR: lambda inode, message: fuse.attributes_reply(0, attributes),
            fuse.STATFS: lambda inode, message: fuse.statfs_reply(4096, 0, 1),
            fuse.OPENDIR: lambda inode, message: fuse.OPEN_OUT.pack(0, 0, 0),
            fuse.READDIR: lambda inode, message: b"",
            fuse.READDIRPLUS: lambda inode, message: b"",
            fuse.RELEASEDIR: lambda inode, message: b"",
            fuse.GETXATTR: lambda inode, message: -errno.ENODATA,
            fuse.LISTXATTR: lambda inode, message: fuse.xattr_reply(message, b""),
        }


class Failing:
    """Answers everything with an I/O error: what the mount shows is there, and cannot be had at the moment."""

    def handlers(self) -> Mapping[int, Handler]:
        return dict.fromkeys(set(fuse.NAMES) - fuse.SILENT, lambda inode, message: -errno.EIO)


class Session:
    """Serves one mount. Everything after construction runs on the event loop."""

    def __init__(self, mountpoint: str, taken: int | None = None) -> None:
        """Mounts at ``mountpoint`` and agrees with the kernel on the protocol. Raises OSError or MachineError.

        ``taken`` is the descriptor of a session that another process has made, and that this one goes on with: the
        kernel is agreed with, and nothing is mounted. ``resend`` has to be called then, once there is somebody to
        answer.
        """
        self._resends = taken is not None
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK) if taken is None else taken
        try:
            if taken is None:
                options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
                _mount("coldbench", mountpoint, "fuse.lazyfs", _CONTAINED, options)
                self._initialise()
        except BaseException:
            os.close(self._fd)
            raise
        self.closed = False
        self._nursery: trio.Nursery | None = None
        self._read_ns = time.perf_counter_ns()
        self._handlers: dict[int, tuple[Handler, Opcode]] = {}
        self._waiting: dict[int, trio.CancelScope] = {}
        """Holds the requests that have to wait, by their number, so that a killed reader can take its own back."""
        self.present(Empty(), Counters())

    def _initialise(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(_INIT_WAIT_S * 1000):
            raise MachineError("the kernel did not greet the new FUSE session")
        message = os.read(self._fd, _BUFFER_BYTES)
        _, opcode, unique, *_ = fuse.REQUEST.unpack_from(message)
        major, minor, read_ahead, flags = fuse.INIT_IN.unpack_from(message, fuse.ARGUMENTS)
        if opcode != fuse.INIT or major != fuse.MAJOR or minor < 23:
            raise MachineError(f"the kernel speaks FUSE {major}.{minor}; 7.23 or newer is needed (Linux 3.15)")
        further = 0
        if flags & fuse.INIT_EXT:
            further = fuse.INIT_IN_FURTHER.unpack_from(message, fuse.ARGUMENTS)[0] & fuse.HAS_RESEND
        self._resends = bool(further)
        reply = fuse.INIT_OUT.pack(
            fuse.MAJOR, min(minor, fuse.MINOR), read_ahead, flags & _WANTED, _MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4,
            4096, 1, _MAX_PAGES if flags & fuse.MAX_PAGES else 0, 0, further, 0,
        )  # fmt: skip
        self._answer(unique, reply)

    @property
    def survivor(self) -> int | None:
        """Returns the descriptor as ``AnySession`` says: the kernel must send again what a dead process has read."""
        return self._fd if self._resends else None

    def resend(self) -> None:
        """Have the kernel send again what another process has read and not answered. Raises OSError."""
        self._notify(fuse.NOTIFY_RESEND, [])

    def present(self, presentation: Presentation, counters: Counters) -> None:
        """Makes ``presentation`` answer from now on; each request is counted and timed in ``counters``."""
        given = presentation.handlers()
        self._handlers = {
            opcode: (given.get(opcode, _not_supported), counters.opcode(name)) for opcode, name in fuse.NAMES.items()
        }

    def show_tree(self, namespace: Namespace, counters: Counters) -> None:
        """Makes this tree answer from now on."""
        self.present(TreePresentation(namespace), counters)

    async def serve(self) -> None:
        """Answer requests until unmounted or ``close``d."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.closed = True
            os.close(self._fd)

    async def _serve(self) -> None:
        fd, read = self._fd, os.read
        while not self.closed:
            for _ in range(IN_A_ROW):
                try:
                    message = read(fd, _BUFFER_BYTES)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in {errno.ENOENT, errno.EINTR}:  # a request taken back while it was read
                        continue
                    if error.errno not in {errno.ENODEV, errno.ECONNABORTED}:  # unmounted, or by force
                        log.exception("reading requests")
                    return
                self._handle(message)
            else:
                await trio.lowlevel.checkpoint()
                continue
            try:
                await trio.lowlevel.wait_readable(fd)
            except (trio.ClosedResourceError, OSError):
                return
            self._read_ns = time.perf_counter_ns()

    def _handle(self, message: bytes) -> None:
        _, opcode, unique, inode, *_ = fuse.REQUEST.unpack_from(message)
        # Found waiting behind another one, it was there when that was read at the earliest.
        arrived, started = self._read_ns, time.perf_counter_ns()
        self._read_ns = started
        if opcode == fuse.INTERRUPT:
            (wanted,) = fuse.INTERRUPT_IN.unpack_from(message, fuse.ARGUMENTS)
            if wanted in self._waiting:
                self._waiting[wanted].cancel()
            return
        known = self._handlers.get(opcode)
        if known is None:
            if opcode not in fuse.SILENT:
                self._answer(unique, b"" if opcode == fuse.DESTROY else -errno.ENOSYS)
            return
        handler, counter = known
        if opcode in fuse.SILENT:
            counter.record(arrived, started)
            return
        try:
            reply = handler(inode, message)
        except Exception:
            log.exception("request %s of inode %d", fuse.NAMES[opcode], inode)
            reply = -errno.EIO
        if isinstance(reply, (bytes, int, memoryview)):
            self._answer(unique, reply)
            counter.record(arrived, started)
        else:
            assert self._nursery is not None
            self._nursery.start_soon(self._finish, unique, reply, counter, arrived, started)

    async def _finish(
        self,
        unique: int,
        work: Coroutine[Any, Any, bytes | memoryview | int],
        counter: Opcode,
        arrived: int,
        started: int,
    ) -> None:
        """Answer what had to wait: with EINTR where whoever asked was killed meanwhile."""
        reply: bytes | memoryview | int = -errno.EIO
        try:
            with trio.CancelScope() as scope:
                self._waiting[unique] = scope
                reply = await work
            if scope.cancelled_caught:
                reply = -errno.EINTR
        except Exception:
            log.exception("a request that had to wait")
        finally:
            del self._waiting[unique]
            self._answer(unique, reply)
            counter.record(arrived, started)

    def _answer(self, unique: int, reply: bytes | memoryview | int) -> None:
        try:
            if isinstance(reply, int):
                os.write(self._fd, fuse.REPLY.pack(fuse.REPLY.size, reply, unique))
            else:
                os.writev(self._fd, (fuse.REPLY.pack(fuse.REPLY.size + len(reply), 0, unique), reply))
        except OSError as error:
            # ENOENT: whoever asked is gone; ENODEV: unmounted meanwhile.
            if error.errno not in {errno.ENOENT, errno.ENODEV}:
                raise

    def store_pages(self, inode: int, offset: int, data: Sequence[bytes | memoryview]) -> bool:
        """Puts ``data`` into the kernel's cache of a file it knows; returns False when that is gone. Raises OSError.

        It blocks while the kernel waits for a reply about these pages: never call it on the event loop.
        """
        size = sum(map(len, data))
        return self._notify(fuse.NOTIFY_STORE, [fuse.NOTIFY_STORE_OUT.pack(inode, offset, size, 0), *data])

    def drop_pages(self, inode: int) -> bool:
        """Makes the kernel forget what it keeps of a file; blocks, returns and raises as ``store_pages`` does."""
        return self._notify(fuse.NOTIFY_INVALIDATE, [fuse.NOTIFY_INVALIDATE_OUT.pack(inode, 0, 0)])

    def _notify(self, code: int, payload: Sequence[bytes | memoryview]) -> bool:
        if self.closed:  # the descriptor's number may be another file's by now
            return False
        try:
            os.writev(self._fd, [fuse.REPLY.pack(fuse.REPLY.size + sum(map(len, payload)), code, 0), *payload])
        except OSError as error:
            # ENOENT: the kernel has forgotten the inode; ENODEV: unmounted; EBADF: closed meanwhile.
            if error.errno in {errno.ENOENT, errno.ENODEV, errno.EBADF}:
                return False
            raise
        return True

    def close(self) -> None:
        """Make ``serve`` end: what still waits is answered with an error, later accesses fail (ENOTCONN)."""
        self.closed = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


def _not_supported(inode: int, message: bytes) -> int:
    return -errno.ENOSYS
