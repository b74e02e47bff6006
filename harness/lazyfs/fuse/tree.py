"""This module serves the tree on our own session: it turns the namespace's values into messages of the FUSE protocol.

OverlayFS stacks what it shows. Without handlers for open and opendir the kernel opens files and directories by itself,
keeps what was read and what was listed, and never asks again (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT).
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from harness.lazyfs.fuse import protocol as fuse
from harness.lazyfs.fuse.namespace import BLOCK_BYTES

if TYPE_CHECKING:
    from harness.lazyfs.fuse.connection import Handler, Reply
    from harness.lazyfs.fuse.namespace import Attributes, Namespace

_DIRENT_BYTES = fuse.DIRENT.size
_pack = fuse.ATTRIBUTES.pack
_pack_entry = fuse.ENTRY_WITH_ATTRIBUTES.pack
_read_in = fuse.READ_IN.unpack_from


class TreePresentation:
    """Presents the tree, read-only; the mount's own ``ro`` refuses anything else first."""

    def __init__(self, namespace: Namespace) -> None:
        policy = namespace.policy
        self._namespace = namespace
        self._attributes_s = policy.attr_timeout_s
        self._valid = fuse.validity(policy.entry_timeout_s, policy.attr_timeout_s)
        self._negative: bytes | int = -errno.ENOENT
        if policy.negative_timeout_s > 0:
            self._negative = fuse.entry(0, policy.negative_timeout_s, 0, bytes(fuse.ATTRIBUTES.size))

    def handlers(self) -> dict[int, Handler]:
        """Returns the handlers of ``harness.lazyfs.fuse.connection.Presentation``."""
        found: dict[int, Handler] = {
            fuse.LOOKUP: self.lookup,
            fuse.GETATTR: self.getattr,
            fuse.READLINK: self.readlink,
            fuse.READ: self.read,
            fuse.READDIR: self.readdir,
            fuse.READDIRPLUS: self.readdirplus,
            fuse.STATFS: self.statfs,
        }
        if self._namespace.has_xattrs:
            found[fuse.GETXATTR] = self.getxattr
            found[fuse.LISTXATTR] = self.listxattr
        if not self._namespace.policy.skip_open:
            opened = fuse.OPEN_OUT.pack(0, fuse.KEEP_CACHE, 0)
            listed = fuse.OPEN_OUT.pack(0, 0, 0)
            found[fuse.OPEN] = lambda inode, message: opened
            found[fuse.OPENDIR] = lambda inode, message: listed
            found[fuse.RELEASE] = found[fuse.RELEASEDIR] = lambda inode, message: b""
        return found

    def _entry(self, attributes: Attributes) -> bytes:
        return _pack_entry(attributes[0], 0, *self._valid, *attributes, BLOCK_BYTES, 0)

    def lookup(self, parent: int, message: bytes) -> Reply:
        found = self._namespace.lookup(parent, fuse.name_of(message))
        return self._negative if found is None else self._entry(found)

    def getattr(self, inode: int, message: bytes) -> Reply:
        packed = _pack(*self._namespace.attributes(inode), BLOCK_BYTES, 0)
        return fuse.attributes_reply(self._attributes_s, packed)

    def readlink(self, inode: int, message: bytes) -> Reply:
        target = self._namespace.readlink(inode)
        return -errno.EINVAL if target is None else target

    def read(self, inode: int, message: bytes) -> Reply:
        _, offset, size = _read_in(message, fuse.ARGUMENTS)
        data = self._namespace.read_now(inode, offset, size)
        return self._namespace.read(inode, offset, size) if data is None else data

    def readdir(self, inode: int, message: bytes) -> Reply:
        return self._list(inode, message, attributes=False)

    def readdirplus(self, inode: int, message: bytes) -> Reply:
        return self._list(inode, message, attributes=True)

    def _list(self, inode: int, message: bytes, *, attributes: bool) -> bytes:
        _, begin, room = _read_in(message, fuse.ARGUMENTS)
        parts: list[bytes] = []
        prefix = len(fuse.NO_ENTRY) if attributes else 0
        entries, attributes_of = self._namespace.entries(inode), self._namespace.attributes_of
        for position in range(begin, len(entries)):
            name, subtree, number = entries[position]
            room -= prefix + _DIRENT_BYTES + (len(name) + 7 & ~7)
            if room < 0:
                break
            if subtree is None:
                # The kernel takes the names "." and ".." from here, and nothing else.
                if attributes:
                    parts.append(fuse.NO_ENTRY)
                parts.append(fuse.directory_entry(number, position + 1, stat.S_IFDIR, name))
                continue
            found = attributes_of(subtree, number)
            if attributes:
                parts.append(self._entry(found))
            parts.append(fuse.directory_entry(found.inode, position + 1, found.mode, name))
        return b"".join(parts)

    def getxattr(self, inode: int, message: bytes) -> Reply:
        value = self._namespace.xattrs(inode).get(fuse.xattr_name(message))
        return -errno.ENODATA if value is None else fuse.xattr_reply(message, value)

    def listxattr(self, inode: int, message: bytes) -> Reply:
        return fuse.xattr_reply(message, b"".join(name + b"\0" for name in self._namespace.xattrs(inode)))

    def statfs(self, inode: int, message: bytes) -> Reply:
        return fuse.statfs_reply(BLOCK_BYTES, self._namespace.blocks, self._namespace.inodes)
