"""One layer's tar stream into a directory in OverlayFS's form (whiteout devices, opaque attributes).

Written for CPU seconds, which is what a small machine lacks: names are resolved once per directory, a file costs
open, write, utimensat and close, payload bytes go from the decompressor's buffer to the kernel without a copy, and
owner, mode and attributes are touched only where creation did not make them right. Nothing is fsynced, as in Docker.

Sources: OCI image spec 1.1, layer.md (whiteouts, opaque markers); kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from harness.engines.embedded.directories import DirectoryTree
from harness.errors import FormatError, UnsafePath
from harness.formats.table import OPAQUE_MARKER, WHITEOUT_PREFIX, Kind
from harness.formats.tar.scanner import TarScanner, clean_name, clean_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.formats.tar.scanner import TarEntry

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS = 0o7000
_NODE_TYPES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
OPAQUE_XATTR = "trusted.overlay.opaque"
_MAX_PENDING_LINKS = 1 << 20


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
        """After ``finish``: (name, target) of hard links whose target no entry of this layer made."""
        self._tree = DirectoryTree(root)
        self._scanner = TarScanner()
        self._fed = 0
        self._directories: dict[bytes, TarEntry | None] = {}
        self._opaque: set[bytes] = set()
        self._links: list[tuple[bytes, bytes]] = []
        self._file = -1
        self._entry: TarEntry | None = None
        self._left = 0
        self._fragments: Iterator[tuple[int, int]] | None = None
        self._offset = self._fragment_left = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the stream, of any size."""
        start = self._fed
        self._fed = start + len(piece)
        entries = self._scanner.feed(piece)
        view = memoryview(piece)
        if self._entry is not None:
            self._payload(view[: self._left])
        for entry in entries:
            self.entries += 1
            self._make(entry)
            if self._entry is not None:
                at = entry.payload_offset - start
                self._payload(view[at : at + self._left])

    def finish(self) -> None:
        """Declare the stream's end: resolve late hard links, give directories their final modes and times."""
        self._scanner.close()
        if self._entry is not None:
            raise FormatError(os.fsdecode(self._entry.name), "the layer ends inside this file")
        for name, target in self._links:
            if not self._link(name, target, replace=False):
                self.unresolved_links.append((name, target))
        self._note_created()
        self._directories.setdefault(b"", None)
        for path, entry in self._directories.items():
            self._finish_directory(path, entry)

    def close(self) -> None:
        """Release all descriptors; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._tree.close()

    def _make(self, entry: TarEntry) -> None:
        if entry.flag == 0x67:  # a global PAX header describes no file
            return
        raw = entry.name
        path = clean_name(raw)
        parent_path, _, name = path.rpartition(b"/")
        tree = self._tree
        parent = tree.cached(parent_path)
        if parent is None:
            parent = tree.descriptor(parent_path)
            if tree.created:
                self._note_created()
        kind = entry.kind
        if name[:4] == WHITEOUT_PREFIX:
            self._whiteout(name, parent_path, parent)
        elif kind is Kind.REG:
            if not name:
                raise FormatError(repr(raw), "the layer's root is not a directory")
            try:
                descriptor = os.open(name, _CREATE, entry.mode & 0o7777, dir_fd=parent)
            except FileExistsError:
                tree.remove(path, name, parent)
                self._forget(path)
                descriptor = os.open(name, _CREATE, entry.mode & 0o7777, dir_fd=parent)
            self._file, self._entry, self._left = descriptor, entry, entry.stored_bytes
            if entry.sparse is not None:
                os.truncate(descriptor, entry.size)
                self._fragments = iter(entry.sparse)
                self._fragment_left = 0
            if not self._left:
                self._finish_file()
        elif kind is Kind.DIR:
            self._directory(entry, path, name, parent)
        elif not name:
            raise FormatError(repr(raw), "the layer's root is not a directory")
        elif kind is Kind.HARDLINK:
            target = clean_target(entry.linkname)
            if not self._link(path, target, replace=True):
                if len(self._links) >= _MAX_PENDING_LINKS:
                    raise FormatError(repr(raw), "too many hard links to files that did not come yet")
                self._links.append((path, target))
        else:
            self._node(entry, kind, path, name, parent)

    def _payload(self, view: memoryview) -> None:
        """Write payload bytes of the open file."""
        size = len(view)
        if not size:
            return
        if self._fragments is None:
            while True:
                written = os.write(self._file, view)
                if written == len(view):
                    break
                view = view[written:]
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
        nanoseconds = entry.mtime_s * 1_000_000_000 + entry.mtime_ns
        os.utime(descriptor, ns=(nanoseconds, nanoseconds))
        self._file, self._entry, self._fragments = -1, None, None
        os.close(descriptor)

    def _directory(self, entry: TarEntry, path: bytes, name: bytes, parent: int) -> None:
        if name:
            try:
                # setgid comes at the end: what is made below must not inherit the group
                os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
            except FileExistsError:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    hides = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
                    if hides:
                        self._opaque.add(path)
        self._directories[path] = entry

    def _finish_directory(self, path: bytes, entry: TarEntry | None) -> None:
        descriptor = self._tree.descriptor(path)
        nanoseconds = 0
        if entry is not None:
            if entry.uid or entry.gid:
                os.fchown(descriptor, entry.uid, entry.gid)
            # always: the directory may be an earlier entry's, or the one that was there before
            os.fchmod(descriptor, entry.mode & 0o7777)
            if entry.pax:
                _set_xattrs(descriptor, entry)
            nanoseconds = entry.mtime_s * 1_000_000_000 + entry.mtime_ns
        if path in self._opaque:
            os.setxattr(descriptor, OPAQUE_XATTR, b"y")
        os.utime(descriptor, ns=(nanoseconds, nanoseconds))

    def _whiteout(self, name: bytes, parent_path: bytes, parent: int) -> None:
        if name == OPAQUE_MARKER:
            if parent_path:
                self._opaque.add(parent_path)
                self._directories.setdefault(parent_path, None)
            else:
                self.opaque_root = True
            return
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden[:4] == WHITEOUT_PREFIX:  # other aufs bookkeeping means nothing here
            return
        if hidden in (b"", b".", b".."):
            raise UnsafePath(os.fsdecode(name), "a whiteout of the directory itself or its parent")
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            # This layer brings the name itself; what the whiteout hides lies below. A directory must not merge.
            if stat.S_ISDIR(os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode):
                path = parent_path + b"/" + hidden if parent_path else hidden
                self._opaque.add(path)
                self._directories.setdefault(path, None)

    def _link(self, path: bytes, target: bytes, replace: bool) -> bool:
        """Make hard link ``path`` to ``target``; False when that does not exist (yet)."""
        if path == target:
            return True
        source_dir, _, source = target.rpartition(b"/")
        parent_path, _, name = path.rpartition(b"/")
        tree = self._tree
        try:
            # a descriptor is valid until the next call: hold the first one by a copy
            from_directory = os.dup(tree.descriptor(source_dir, make=False))
        except FileNotFoundError:
            return False
        try:
            parent = tree.descriptor(parent_path)
            for _ in range(2):
                try:
                    os.link(source, name, src_dir_fd=from_directory, dst_dir_fd=parent, follow_symlinks=False)
                    return True
                except FileNotFoundError:
                    return False
                except FileExistsError:
                    if not replace or os.path.samestat(
                        os.stat(source, dir_fd=from_directory, follow_symlinks=False),
                        os.stat(name, dir_fd=parent, follow_symlinks=False),
                    ):
                        return True
                    tree.remove(path, name, parent)
                    self._forget(path)
            return True
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EMLINK):
                raise FormatError(os.fsdecode(path), f"cannot be a hard link to {os.fsdecode(target)}") from None
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
                self._forget(path)
        if entry.uid or entry.gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            if kind is not Kind.SYMLINK and entry.mode & _SPECIAL_BITS:
                os.chmod(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", entry.mode & 0o7777)
        if entry.pax:
            _set_xattrs(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", entry)
        nanoseconds = entry.mtime_s * 1_000_000_000 + entry.mtime_ns
        os.utime(name, ns=(nanoseconds, nanoseconds), dir_fd=parent, follow_symlinks=False)

    def _note_created(self) -> None:
        """Directories that no entry describes: 0755, root's, time 0 (the contract of ``LayerTable``)."""
        for path in self._tree.created:
            self._directories.setdefault(path, None)
        self._tree.created.clear()

    def _forget(self, path: bytes) -> None:
        """Drop what is planned for directories at and below ``path``, which was removed."""
        if path in self._directories:
            below = path + b"/"
            for known in [p for p in self._directories if p == path or p.startswith(below)]:
                del self._directories[known]
                self._opaque.discard(known)


def _set_xattrs(target: int | str, entry: TarEntry) -> None:
    """Set the entry's extended attributes; those that cannot be held here are left out.

    As in Docker where the file system has none; also where the kernel finds the value malformed (capabilities).
    """
    for key, value in entry.xattrs.items():
        if key.startswith(_OVERLAY_XATTRS):  # would steer OverlayFS: not the image's to say
            continue
        try:
            os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
                raise
