"""This module reads EROFS metadata for tests and ``image inspect``, and tells which file a byte of a layer belongs to.

It reads what ``erofs_writer`` writes (plain, inline and chunk-based inodes; inline and shared xattrs), over any
function that gives bytes by offset. The image is taken as hostile: every field is checked before it is used, and
whatever does not hold is a FormatError that says where.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from harness.errors import FormatError
from harness.formats.erofs import xattr as erofs_xattr
from harness.formats.erofs.layout import (
    CHUNK_BASED,
    COMPAT_SUPER_CHECKSUM,
    FLAT_INLINE,
    FLAT_PLAIN,
    FORMAT_BITS,
    NAME_MAX,
    SLOT_BYTES,
    SUPER_OFFSET,
    SUPER_SIZE,
    SYMLINK_MAX,
    Superblock,
    checksum_span,
    crc32c,
    decode_rdev,
)
from harness.formats.table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    ReadAt = Callable[[int, int], bytes]
    """It gives bytes at an offset; fewer at the end of the image, where the reader then raises FormatError."""

_EXTENDED: Final = struct.Struct("<HHHHQIIIIqII16x")
_COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
_DIRENT: Final = struct.Struct("<QHBB")
_KIND_OF: Final = {bits: Kind(kind) for kind, bits in FORMAT_BITS.items() if kind != 6}
_HOLE: Final = 0xFFFFFFFF
MAX_DIRECTORY_BYTES: Final = 1 << 30
MAX_LISTINGS: Final = 4096
"""``lookup`` keeps the entries of so many directories, so that many look-ups cost one listing each."""
MAX_LINKS: Final = 40
MAX_DEPTH: Final = 2048
"""PATH_MAX allows no deeper nesting; a directory circle ends here at the latest."""


@dataclass(frozen=True, slots=True)
class Inode:
    """Holds one inode; ``mode`` holds the 07777 bits, ``unit`` the raw start block, device or chunk format."""

    nid: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    mtime_ns: int
    nlink: int
    layout: int
    unit: int
    xattr_offset: int
    xattr_bytes: int
    data_offset: int

    @property
    def rdev(self) -> tuple[int, int]:
        """Returns major and minor number of a device."""
        return decode_rdev(self.unit)


@dataclass(frozen=True, slots=True)
class Extent:
    """Says that ``size`` bytes of a file from ``file_offset`` on stand at ``image_offset``, or are a hole where that is
    -1.
    """

    file_offset: int
    image_offset: int
    size: int


class ErofsImage:
    """Reads an EROFS image behind ``read``; all methods raise FormatError when the image is not sound."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        self._listings: dict[int, dict[bytes, int]] = {}
        raw = self._bytes(SUPER_OFFSET, SUPER_SIZE, "EROFS superblock")
        self.super = Superblock.parse(raw)
        self.block_size = self.super.block_size
        self.image_bytes = self.super.blocks * self.block_size
        if self.super.feature_compat & COMPAT_SUPER_CHECKSUM:
            span = self._bytes(SUPER_OFFSET, checksum_span(self.block_size), "EROFS superblock")
            if crc32c(span[:4] + bytes(4) + span[8:]) != self.super.checksum:
                raise FormatError("EROFS superblock", "checksum does not match")
        self.root = self.inode(self.super.root_nid)
        if self.root.kind != Kind.DIR:
            raise FormatError("EROFS root", "is not a directory")

    def _bytes(self, offset: int, size: int, where: str) -> bytes:
        data = self._read(offset, size) if offset >= 0 else b""
        if len(data) != size:
            raise FormatError(where, f"{size} bytes at {offset} are outside the image")
        return data

    def inode(self, nid: int) -> Inode:
        """Returns the inode of that number."""
        where = f"EROFS inode {nid}"
        offset = self.super.meta_block * self.block_size + nid * SLOT_BYTES
        if offset + 32 > self.image_bytes:
            raise FormatError(where, "is outside the image")
        raw = self._bytes(offset, 32, where)
        form = raw[0] | raw[1] << 8
        if form & 1:
            raw += self._bytes(offset + 32, 32, where)
            _, icount, mode, _, size, unit, _, uid, gid, mtime_s, mtime_ns, nlink = _EXTENDED.unpack(raw)
        else:
            _, icount, mode, nlink, size, _, unit, _, uid, gid, _ = _COMPACT.unpack(raw)
            mtime_s, mtime_ns = self.super.build_time_s, self.super.build_time_ns
        layout = form >> 1 & 7
        kind = _KIND_OF.get(mode & 0o170000)
        if form >> 4 or kind is None or layout not in {FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED}:
            raise FormatError(where, f"format {form:#x}, mode {mode:#o} are not known")
        if size >= 1 << 63 or mtime_ns > 999_999_999:
            raise FormatError(where, f"size {size} or nanoseconds {mtime_ns} out of range")
        if layout == CHUNK_BASED and kind != Kind.REG:
            raise FormatError(where, "chunks in something that is not a file")
        xattr_offset = offset + len(raw)
        xattr_bytes = erofs_xattr.HEADER_BYTES + 4 * (icount - 1) if icount else 0
        data = xattr_offset + xattr_bytes
        return Inode(
            nid, kind, mode & 0o7777, uid, gid, size, mtime_s, mtime_ns, nlink, layout, unit, xattr_offset, xattr_bytes,
            data,
        )  # fmt: skip

    def extents(self, inode: Inode) -> list[Extent]:
        """Returns where the data of a file, directory or symlink stand, in order; devices and empty files have none."""
        where = f"EROFS inode {inode.nid}"
        if not inode.size or inode.kind not in {Kind.REG, Kind.DIR, Kind.SYMLINK}:
            return []
        block = self.block_size
        if inode.layout == CHUNK_BASED:
            return self._chunks(inode, where)
        whole = inode.size
        tail = 0
        if inode.layout == FLAT_INLINE:
            tail = inode.size % block or block
            whole = inode.size - tail
            if inode.data_offset % block + tail > block:
                raise FormatError(where, "inline data cross a block's end")
        parts = []
        if whole:
            start = inode.unit * block
            if start + whole > self.image_bytes:
                raise FormatError(where, f"data end at {start + whole}, outside the image's {self.image_bytes} bytes")
            parts.append(Extent(0, start, whole))
        if tail:
            parts.append(Extent(whole, inode.data_offset, tail))
        return parts

    def _chunks(self, inode: Inode, where: str) -> list[Extent]:
        if inode.unit & ~31:
            raise FormatError(where, f"chunk format {inode.unit:#x} is not known")
        chunk = self.block_size << (inode.unit & 31)
        count = -(-inode.size // chunk)
        if inode.data_offset + 4 * count > self.image_bytes:
            raise FormatError(where, f"a map of {count} chunks is outside the image")
        raw = self._bytes(inode.data_offset, 4 * count, where)
        parts: list[Extent] = []
        for number, (block,) in enumerate(struct.iter_unpack("<I", raw)):
            at = number * chunk
            size = min(chunk, inode.size - at)
            start = -1 if block == _HOLE else block * self.block_size
            if start >= 0 and start + size > self.image_bytes:
                raise FormatError(where, f"chunk {number} is outside the image")
            last = parts[-1] if parts else None
            if last is not None and (last.image_offset + last.size == start if last.image_offset >= 0 else start < 0):
                parts[-1] = Extent(last.file_offset, last.image_offset, last.size + size)
            else:
                parts.append(Extent(at, start, size))
        return parts

    def read_file(self, inode: Inode, offset: int = 0, size: int = -1) -> bytes:
        """Returns bytes of a file, or of what stands for a directory or symlink; short only at its end."""
        stop = inode.size if size < 0 else min(inode.size, offset + size)
        parts = []
        for extent in self.extents(inode):
            first = max(offset, extent.file_offset)
            last = min(stop, extent.file_offset + extent.size)
            if first < last:
                at = extent.image_offset
                length = last - first
                inside = at + first - extent.file_offset
                parts.append(bytes(length) if at < 0 else self._bytes(inside, length, f"EROFS inode {inode.nid}"))
        return b"".join(parts)

    def readlink(self, inode: Inode) -> bytes:
        """Returns the target of a symlink."""
        if inode.kind != Kind.SYMLINK or not 0 < inode.size <= SYMLINK_MAX:
            raise FormatError(f"EROFS inode {inode.nid}", "is not a symlink of 1 to 4095 bytes")
        return self.read_file(inode)

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Returns (name, nid, type) of a directory's entries in stored order, ``.`` and ``..`` among them."""
        where = f"EROFS directory {directory.nid}"
        if directory.kind != Kind.DIR:
            raise FormatError(where, "is not a directory")
        if directory.size > MAX_DIRECTORY_BYTES:
            raise FormatError(where, f"{directory.size} bytes are more than {MAX_DIRECTORY_BYTES}")
        previous = b""
        for extent in self.extents(directory):
            for at in range(0, extent.size, self.block_size):
                raw = self._bytes(extent.image_offset + at, min(self.block_size, extent.size - at), where)
                for name, nid, kind in _dirents(raw, where):
                    if name <= previous:
                        raise FormatError(where, f"{name[:80]!r} does not follow {previous[:80]!r}")
                    previous = name
                    yield name, nid, kind

    def _listing(self, directory: Inode) -> dict[bytes, int]:
        listing = self._listings.get(directory.nid)
        if listing is None:
            listing = {name: nid for name, nid, _ in self.entries(directory)}
            if len(self._listings) >= MAX_LISTINGS:
                self._listings.clear()
            self._listings[directory.nid] = listing
        return listing

    def lookup(self, path: bytes) -> Inode | None:
        """Returns the inode of a path without leading ``/``; symlinks are not followed. None when there is none."""
        inode = self.root
        for component in filter(None, path.split(b"/")):
            if inode.kind != Kind.DIR:
                return None
            found = self._listing(inode).get(component)
            if found is None:
                return None
            inode = self.inode(found)
        return inode

    def resolve(self, path: bytes) -> Inode | None:
        """Returns the inode that opening ``/path`` inside the image would reach, symlinks followed; None where it
        fails.

        As chroot(2) has it, absolute targets and ``..`` stay below the root; at most 40 links, as in Linux.
        """
        pending = path.split(b"/")[::-1]
        above = [self.root]
        links = 0
        while pending:
            component = pending.pop()
            if component in {b"", b"."}:
                continue
            if component == b"..":
                above = above[:-1] or above
                continue
            if above[-1].kind != Kind.DIR:
                return None
            nid = self._listing(above[-1]).get(component)
            if nid is None:
                return None
            inode = self.inode(nid)
            if inode.kind != Kind.SYMLINK:
                above.append(inode)
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            target = self.readlink(inode)
            if target[:1] == b"/":
                above = above[:1]
            pending += target.split(b"/")[::-1]
        return above[-1]

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yields (path, inode) of everything, the root (``b""``) first, parents before children, in name order."""
        seen: set[int] = set()
        stack: list[tuple[bytes, Inode, int]] = [(b"", self.root, 0)]
        while stack:
            path, inode, depth = stack.pop()
            yield path, inode
            if inode.kind != Kind.DIR:
                continue
            if inode.nid in seen or depth > MAX_DEPTH:
                raise FormatError(f"EROFS directory {inode.nid}", f"{path[:200]!r} is reached twice or nested too deep")
            seen.add(inode.nid)
            below = []
            for name, nid, kind in self.entries(inode):
                if name in {b".", b".."}:
                    continue
                child = self.inode(nid)
                if child.kind != kind:
                    raise FormatError(f"EROFS directory {inode.nid}", f"{name[:80]!r} is not of the type it says")
                below.append((path + b"/" + name if path else name, child, depth + 1))
            stack.extend(reversed(below))

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Returns extended attributes by full name."""
        if not inode.xattr_bytes:
            return {}
        where = f"xattrs of EROFS inode {inode.nid}"
        raw = self._bytes(inode.xattr_offset, inode.xattr_bytes, where)
        shared = raw[4]
        at = erofs_xattr.HEADER_BYTES + 4 * shared
        if at > len(raw):
            raise FormatError(where, f"{shared} shared ones in {len(raw)} bytes")
        found: dict[bytes, bytes] = {}
        for number in struct.unpack_from(f"<{shared}I", raw, erofs_xattr.HEADER_BYTES):
            name, value = self._shared_xattr(number)
            found[name] = value
        while at < len(raw):
            name, value, taken = erofs_xattr.decode(raw[at:], where)
            found[name] = value
            at += taken
        return found

    def _shared_xattr(self, number: int) -> tuple[bytes, bytes]:
        where = f"shared xattr {number}"
        offset = self.super.xattr_block * self.block_size + 4 * number
        head = self._bytes(offset, 4, where)
        size = 4 + head[0] + (head[2] | head[3] << 8)
        name, value, _ = erofs_xattr.decode(self._bytes(offset, size, where), where)
        return name, value

    def file_extents(self) -> Iterator[tuple[bytes, Extent]]:
        """Yields (path, extent) of all stored file data, for mapping bytes of a layer back to files; a link once per
        name.
        """
        for path, inode in self.walk():
            if inode.kind == Kind.REG:
                for extent in self.extents(inode):
                    if extent.image_offset >= 0:
                        yield path, extent


def _dirents(raw: bytes, where: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields the entries of one directory block."""
    if len(raw) < _DIRENT.size:
        raise FormatError(where, f"a block of {len(raw)} bytes")
    first = _DIRENT.unpack_from(raw)[1]
    count = first // _DIRENT.size
    if not count or first % _DIRENT.size or first > len(raw):
        raise FormatError(where, f"names begin at byte {first} of a block of {len(raw)}")
    heads = [_DIRENT.unpack_from(raw, _DIRENT.size * index) for index in range(count)]
    ends = [head[1] for head in heads[1:]] + [len(raw)]
    for index, ((nid, start, kind, _), end) in enumerate(zip(heads, ends, strict=True)):
        if not first <= start < end <= len(raw):
            raise FormatError(where, f"the name of entry {index} is at {start} to {end} of {len(raw)} bytes")
        name = raw[start:end]
        if index == count - 1:
            name = name.partition(b"\0")[0]
        if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name:
            raise FormatError(where, f"impossible name {name[:80]!r}")
        yield name, nid, kind


def over_bytes(data: bytes) -> ReadAt:
    """Makes a read function over metadata that is in memory; layers behind it are not there."""
    return lambda offset, size: data[offset : offset + size]


def caching(read: ReadAt, page: int = 4096, pages: int = 1024) -> ReadAt:
    """Puts a small cache of pages before ``read``, for sources where a call is dear (a file, a registry)."""
    cached = lru_cache(maxsize=pages)(lambda number: read(number * page, page))

    def read_pages(offset: int, size: int) -> bytes:
        first, last = offset // page, (offset + size - 1) // page
        data = b"".join(cached(number) for number in range(first, last + 1))
        return data[offset - first * page :][:size]

    return read_pages
