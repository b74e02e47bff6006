"""This module has the FUSE wire protocol, as far as a read-only file system speaks it: opcodes, flags and messages.

Source: Linux, include/uapi/linux/fuse.h, protocol 7.38, and resending of 7.40 (all numbers are in host order; every
host this runs on is little-endian). A request is a header of 40 bytes and its arguments; a reply a header of 16 bytes
and its payload.
"""

from __future__ import annotations

import errno
import struct

MAJOR, MINOR = 7, 38

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET, READDIRPLUS = 34, 36, 38, 42, 44

NAMES = {
    LOOKUP: "lookup", FORGET: "forget", GETATTR: "getattr", READLINK: "readlink", OPEN: "open", READ: "read",
    STATFS: "statfs", RELEASE: "release", GETXATTR: "getxattr", LISTXATTR: "listxattr", FLUSH: "flush",
    OPENDIR: "opendir", READDIR: "readdir", RELEASEDIR: "releasedir", ACCESS: "access", INTERRUPT: "interrupt",
    BATCH_FORGET: "forget", READDIRPLUS: "readdir",
}  # fmt: skip
"""Names what each opcode is counted as; both ways to list a directory are ``readdir``."""

SILENT = frozenset({FORGET, BATCH_FORGET})
"""Lists the requests without a reply."""

NOTIFY_INVALIDATE, NOTIFY_STORE, NOTIFY_RESEND = 2, 4, 7
"""Mark messages that nobody asked for: a reply header has number 0, and one of these in place of the error."""

# Capabilities of INIT.
ASYNC_READ, EXPORT_SUPPORT = 1 << 0, 1 << 4
DO_READDIRPLUS, ASYNC_DIO, PARALLEL_DIROPS = 1 << 13, 1 << 15, 1 << 18
NO_OPEN_SUPPORT, NO_OPENDIR_SUPPORT = 1 << 17, 1 << 24
MAX_PAGES, CACHE_SYMLINKS, EXPLICIT_INVAL_DATA = 1 << 22, 1 << 23, 1 << 25
INIT_EXT = 1 << 30
"""Says that there are 32 flags more: bit n of them is capability 32 + n."""
HAS_RESEND = 1 << (39 - 32)
"""Says that the kernel (6.9 and later) sends what was read and not answered once more when it is asked to; bit 63 of
such a request's number is set."""

# Flags of an open file.
DIRECT_IO, KEEP_CACHE, CACHE_DIR = 1 << 0, 1 << 1, 1 << 3

REQUEST = struct.Struct("<IIQQIIIHH")
"""Holds length, opcode, unique, inode, uid, gid, pid, extensions, padding."""
ARGUMENTS = REQUEST.size
REPLY = struct.Struct("<IiQ")
"""Holds length, negative errno, unique."""
INIT_IN = struct.Struct("<IIII")
"""Holds major, minor, read-ahead, flags."""
INIT_IN_FURTHER = struct.Struct("<16xI")
"""Holds INIT_IN, then more flags."""
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
"""Holds major, minor, read-ahead, flags, background requests, congestion threshold, largest write, time granularity
(ns), pages per request, map alignment, more flags, stack depth."""
ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")
"""Holds inode, size, blocks of 512, atime, mtime, ctime, their nanoseconds, mode, links, uid, gid, rdev, block size,
0."""
ENTRY = struct.Struct("<QQQQII")
"""Holds inode, generation, seconds the entry and its attributes are valid, their nanoseconds; then come attributes."""
ENTRY_WITH_ATTRIBUTES = struct.Struct(ENTRY.format + ATTRIBUTES.format.removeprefix("<"))
"""Holds ENTRY and ATTRIBUTES in one go, for replies of which there are many."""
ATTRIBUTES_VALID = struct.Struct("<QII")
"""Holds seconds, nanoseconds, padding; then come attributes: that is the reply to GETATTR."""
INTERRUPT_IN = struct.Struct("<Q")
"""Holds the number of the request that is taken back."""
READ_IN = struct.Struct("<QQI")
"""Holds handle, offset, size (READ, READDIR, READDIRPLUS)."""
OPEN_OUT = struct.Struct("<QII")
"""Holds handle, flags, backing file."""
NOTIFY_INVALIDATE_OUT = struct.Struct("<Qqq")
"""Holds inode, offset, length (0 or less: to the end)."""
NOTIFY_STORE_OUT = struct.Struct("<QQII")
"""Holds inode, offset, size, padding; then come the bytes."""
DIRENT = struct.Struct("<QQII")
"""Holds inode, where the next entry begins, length of the name, type; then comes the name, padded to 8 bytes."""
GETXATTR_IN = struct.Struct("<II")
"""Holds room for the value, padding; then comes the name. Where there is no room, it is the reply: the value's size."""
STATFS_OUT = struct.Struct("<QQQQQIIII24x")
"""Holds blocks, free, available, inodes, free, block size, longest name, fragment size, padding."""

NO_ENTRY = bytes(ENTRY.size + ATTRIBUTES.size)
"""Says nothing of a name, in READDIRPLUS."""


def name_of(message: bytes) -> bytes:
    """Returns the name that a LOOKUP asks for."""
    return message[ARGUMENTS:-1]


def entry(inode: int, entry_s: float, attributes_s: float, attributes: bytes) -> bytes:
    """Returns the reply to LOOKUP; inode 0 says that the name does not exist, for ``entry_s`` seconds."""
    return ENTRY.pack(inode, 0, *validity(entry_s, attributes_s)) + attributes


def validity(entry_s: float, attributes_s: float) -> tuple[int, int, int, int]:
    """Returns the seconds that the entry and its attributes are valid, then their nanoseconds."""
    return int(entry_s), int(attributes_s), int(entry_s % 1 * 1e9), int(attributes_s % 1 * 1e9)


def attributes_reply(seconds: float, attributes: bytes) -> bytes:
    """Returns the reply to GETATTR."""
    return ATTRIBUTES_VALID.pack(int(seconds), int(seconds % 1 * 1e9), 0) + attributes


def xattr_reply(message: bytes, value: bytes) -> bytes | int:
    """Returns the reply to GETXATTR or LISTXATTR: the value, its size when asked for that, or ERANGE."""
    room, _ = GETXATTR_IN.unpack_from(message, ARGUMENTS)
    if room == 0:
        return GETXATTR_IN.pack(len(value), 0)
    return value if len(value) <= room else -errno.ERANGE


def xattr_name(message: bytes) -> bytes:
    """Returns the name that a GETXATTR asks for."""
    return message[ARGUMENTS + GETXATTR_IN.size : -1]


def statfs_reply(block_bytes: int, blocks: int, inodes: int) -> bytes:
    """Returns the reply to STATFS of a full read-only file system."""
    return STATFS_OUT.pack(blocks, 0, 0, inodes, 0, block_bytes, 255, block_bytes, 0)


def directory_entry(inode: int, following: int, mode: int, name: bytes) -> bytes:
    """Returns one name of a READDIR reply; ``following`` is the offset to go on from."""
    size = len(name)
    return DIRENT.pack(inode, following, size, mode >> 12) + name + bytes(-size % 8)
