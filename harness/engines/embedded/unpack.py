"""This module unpacks one layer's tar stream into a directory in OverlayFS's form (whiteout devices, opaque
attributes).

Written for CPU seconds, which is what a small machine lacks: names are resolved once per directory, a file costs
open, write, utimensat and close, payload bytes go from the decompressor's buffer to the kernel without a copy, and
owner, mode and attributes are touched only where creation did not make them right. Nothing is fsynced, as in Docker.

Where an entry goes and what it replaces or hides is said by ``harness.formats.tar.reading``; here it is done. What
hides lower layers is made when the layer has ended, since it never touches the layer's own entries.

Source: kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from harness.engines.embedded.directories import DirectoryTree
from harness.errors import FormatError
from harness.formats.table import Kind
from harness.formats.tar.entry_reader import REGULAR_FILE, EntryReader
from harness.formats.tar.limits import MAX_TIME_S, MIN_TIME_S, OPAQUE_XATTR, held_time, held_xattrs
from harness.formats.tar.names import entry_of
from harness.formats.tar.reading import IMPLIED, Action
from harness.formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.formats.tar.scanner import TarEntry

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS = 0o7000
_TOO_LARGE = (errno.ENOSPC, errno.E2BIG)
"""What ext4 and others answer to an attribute that does not fit beside the inode."""
_ROOM_BYTES = 1 << 20
_NODE_TYPES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_PASS, _LINK, _CLEAR = Action.PASS, Action.LINK, Action.CLEAR


class LayerUnpacker:
    """Unpacks the pieces of one layer's decompressed tar, fed in order, into the empty directory ``root``.

    The process's umask must be 0. ``feed`` and ``finish`` raise FormatError (UnsafePath for an entry that would leave
    the root) and OSError (a full disk among others). ``close`` releases descriptors, whatever happened before.
    """

    def __init__(self, root: str) -> None:
        self.entries = 0
        self.payload_bytes = 0
        self.opaque_root = False
        """Whether the layer hides everything below it."""
        self.unresolved_links: list[tuple[bytes, bytes]] = []
        """After ``finish``: (name, target) of hard links whose target is in a lower layer, if anywhere."""
        self._tree = DirectoryTree(root)
        self._scanner = TarScanner()
        self._reader = EntryReader()
        self._fed = 0
        self._directories: dict[int, TarEntry] = {}
        self._file = -1
        self._entry: TarEntry | None = None
        self._left = 0
        self._fragments: Iterator[tuple[int, int]] | None = None
        self._offset = self._fragment_left = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the stream, of any size."""
        start = self._fed
        size = len(piece)
        self._fed = start + size
        entries = self._scanner.feed(piece)
        view = memoryview(piece)
        if self._entry is not None:
            self._payload(view[: self._left])
        for entry in entries:
            self.entries += 1
            self._make(entry)
            if self._entry is None:
                continue
            at = entry.payload_offset - start
            end = at + self._left
            if end <= size and self._fragments is None:
                self.payload_bytes += self._left
                _write_all(self._file, view[at:end])
                self._finish_file()
            else:
                self._payload(view[at:end])

    def finish(self) -> None:
        """Declare the stream's end: resolve late hard links, hide what is hidden, give directories their metadata."""
        self._scanner.close()
        if self._entry is not None:
            raise FormatError(entry_of(self._entry.name), "the layer ends inside this file")
        tree, reading = self._tree, self._reader.finish()
        for path in reading.directories:
            if reading.number_of(path) == IMPLIED:  # the others are there
                tree.descriptor(path)
        for name, target in reading.late_links:
            self._link(name, target, replace=False)
        for number, target in reading.lower_links.items():
            self.unresolved_links += [(name, target) for name in reading.paths_of(number)]
        for path in reading.aufs:
            self._remove(path)
        for path in reading.whiteouts:
            parent, _, name = path.rpartition(b"/")
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=tree.descriptor(parent))
        for path in reading.directories:
            entry = self._directories.get(reading.number_of(path))
            self._finish_directory(path, entry, opaque=path in reading.opaque)
        self.opaque_root = b"" in reading.opaque

    def close(self) -> None:
        """Release all descriptors; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._tree.close()

    def _make(self, entry: TarEntry) -> None:
        reader = self._reader
        action = reader.read(entry)
        if action is _PASS:
            return
        name = reader.base
        tree = self._tree
        parent = tree.cached(reader.parent)
        if parent is None:
            parent = tree.descriptor(reader.parent)
        kind = Kind.REG if entry.flag == REGULAR_FILE else entry.kind
        if action is _LINK:
            self._link(reader.path, reader.target, replace=True)
        elif action is _CLEAR:
            self._remove(reader.path)
        elif kind is Kind.REG:
            try:
                descriptor = os.open(name, _CREATE, entry.mode & 0o7777, dir_fd=parent)
            except FileExistsError:
                tree.remove(reader.path, name, parent)
                descriptor = os.open(name, _CREATE, entry.mode & 0o7777, dir_fd=parent)
            self._file, self._entry, self._left = descriptor, entry, entry.stored_bytes
            if entry.sparse is not None:
                os.truncate(descriptor, entry.size)
                self._fragments = iter(entry.sparse)
                self._fragment_left = 0
            if not self._left:
                self._finish_file()
        elif kind is Kind.DIR:
            self._directory(entry, name, parent)
        else:
            self._node(entry, kind, reader.path, name, parent)

    def _payload(self, view: memoryview) -> None:
        """Write payload bytes of the open file."""
        size = len(view)
        if not size:
            return
        if self._fragments is None:
            _write_all(self._file, view)
        else:
            self._sparse_payload(view)
        self.payload_bytes += size
        self._left -= size
        if not self._left:
            self._finish_file()

    def _sparse_payload(self, view: memoryview) -> None:
        assert self._fragments is not None
        while view:
            if not self._fragment_left:
                self._offset, self._fragment_left = next(self._fragments, (0, -1))
                if self._fragment_left < 0:
                    return  # stored bytes that no fragment names
                continue
            written = os.pwrite(self._file, view[: self._fragment_left], self._offset)
            self._offset += written
            self._fragment_left -= written
            view = view[written:]

    def _finish_file(self) -> None:
        entry, descriptor = self._entry, self._file
        assert entry is not None
        if entry.uid or entry.gid:
            os.fchown(descriptor, entry.uid, entry.gid)
            if entry.mode & _SPECIAL_BITS:  # chown took them away
                os.fchmod(descriptor, entry.mode & 0o7777)
        if entry.pax:
            _set_xattrs(descriptor, entry)
        seconds = entry.mtime_s
        if not entry.mtime_ns and MIN_TIME_S <= seconds <= MAX_TIME_S:
            os.utime(descriptor, (seconds, seconds))  # half the time of the other way
        else:
            nanoseconds = _time_ns(entry)
            os.utime(descriptor, ns=(nanoseconds, nanoseconds))
        self._file, self._entry, self._fragments = -1, None, None
        os.close(descriptor)

    def _directory(self, entry: TarEntry, name: bytes, parent: int) -> None:
        self._directories[self._reader.count - 1] = entry
        if not name:
            return
        for _ in range(2):
            try:
                # setgid comes at the end: what is made below must not inherit the group
                os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
                return
            except FileExistsError:
                if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    return
                os.unlink(name, dir_fd=parent)

    def _finish_directory(self, path: bytes, entry: TarEntry | None, *, opaque: bool) -> None:
        descriptor = self._tree.descriptor(path)
        nanoseconds, mode = 0, 0o755
        if entry is not None:
            if entry.uid or entry.gid:
                os.fchown(descriptor, entry.uid, entry.gid)
            mode = entry.mode & 0o7777
            nanoseconds = _time_ns(entry)
        # always: the directory may be an earlier entry's, or the one that was there before
        os.fchmod(descriptor, mode)
        if entry is not None and entry.pax:
            _set_xattrs(descriptor, entry)
        if opaque:
            os.setxattr(descriptor, OPAQUE_XATTR, b"y")
        os.utime(descriptor, ns=(nanoseconds, nanoseconds))

    def _remove(self, path: bytes) -> None:
        """Take away what stands at ``path``, if something does."""
        parent, _, name = path.rpartition(b"/")
        with suppress(FileNotFoundError):
            self._tree.remove(path, name, self._tree.descriptor(parent, make=False))

    def _link(self, path: bytes, target: bytes, replace: bool) -> None:
        """Make hard link ``path`` to ``target``, which is there."""
        source_dir, _, source = target.rpartition(b"/")
        parent_path, _, name = path.rpartition(b"/")
        tree = self._tree
        # a descriptor is valid until the next call: hold the first one by a copy
        from_directory = os.dup(tree.descriptor(source_dir, make=False))
        try:
            parent = tree.descriptor(parent_path)
            if replace:
                with suppress(FileNotFoundError):
                    tree.remove(path, name, parent)
            os.link(source, name, src_dir_fd=from_directory, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EMLINK):
                raise FormatError(entry_of(path), f"cannot be a hard link to {os.fsdecode(target)}") from None
            raise
        finally:
            os.close(from_directory)

    def _node(self, entry: TarEntry, kind: Kind, path: bytes, name: bytes, parent: int) -> None:
        """A symlink, device or fifo."""
        for attempt in range(2):
            try:
                if kind is Kind.SYMLINK:
                    os.symlink(entry.linkname, name, dir_fd=parent)
                else:
                    device = os.makedev(entry.devmajor, entry.devminor) if kind is not Kind.FIFO else 0
                    os.mknod(name, _NODE_TYPES[kind] | entry.mode & 0o7777, device, dir_fd=parent)
                break
            except FileExistsError:
                if attempt:
                    raise
                self._tree.remove(path, name, parent)
        if entry.uid or entry.gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            if kind is not Kind.SYMLINK and entry.mode & _SPECIAL_BITS:
                os.chmod(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", entry.mode & 0o7777)
        if entry.pax:
            _set_xattrs(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", entry)
        nanoseconds = _time_ns(entry)
        os.utime(name, ns=(nanoseconds, nanoseconds), dir_fd=parent, follow_symlinks=False)


def _write_all(descriptor: int, view: memoryview) -> None:
    """Write at the file's end; write(2) may take less than it is given."""
    while (written := os.write(descriptor, view)) < len(view):
        view = view[written:]


def _time_ns(entry: TarEntry) -> int:
    seconds, nanoseconds = entry.mtime_s, entry.mtime_ns
    if not MIN_TIME_S <= seconds <= MAX_TIME_S:
        seconds, nanoseconds = held_time(seconds, nanoseconds)
    return seconds * 1_000_000_000 + nanoseconds


def _set_xattrs(target: int | str, entry: TarEntry) -> None:
    """Set the entry's extended attributes; those that cannot be held here are left out, as in Docker."""
    for key, value in held_xattrs(entry.kind, entry.xattrs).items():
        if key == OPAQUE_XATTR:
            continue
        try:
            os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _TOO_LARGE and _has_room(target):
                what = f"attribute {os.fsdecode(key)} of {len(value)} bytes, more than the file system here holds"
                raise FormatError(entry_of(entry.name), what) from None
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
                raise


def _has_room(target: int | str) -> bool:
    """Whether "no space" is said of an attribute and not of the disk."""
    status = os.statvfs(target)
    return status.f_bavail * status.f_frsize > _ROOM_BYTES
