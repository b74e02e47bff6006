"""This module reads tar headers as Go's archive/tar does, because both reference indexers are written on top of it.

The parser is *pushed* decompressed bytes (:class:`TarScanner`) or *pulls* them (:class:`TarStream`). It decodes headers
and steps over payloads without copying them; entries say where their payload stands.

It understands v7, ustar, star, GNU (long names, base-256 numbers, old sparse), PAX (records, xattrs, sparse 0.0, 0.1
and 1.0). As in Go, a global PAX header is an entry of its own (type ``g``) and does not change later entries, an
extended header replaces an earlier one of the same entry, and an empty PAX value keeps the header's own.

Sources: POSIX.1-2017 pax (ustar and extended header formats); GNU tar manual, "Tar Internals"; Go archive/tar.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import TYPE_CHECKING, Protocol, TypeVar

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.formats.tar import sparse as tar_sparse
from harness.formats.tar.fields import decimal, number, pax_records, pax_time, text, where_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BLOCK", "KINDS", "TarEntry", "TarScanner", "TarStream"]

BLOCK = 512
MAX_SPECIAL_BYTES = 1 << 20
"""One extended header or long name has at most so many bytes (Go's limit)."""
MAX_NAME_BYTES = 1 << 16

XATTR_PREFIX = b"SCHILY.xattr."
ZERO_BLOCK = bytes(BLOCK)
_HEADER = Struct("100s24s12s12s8sc100s255s")
"""It holds name, owner (mode, uid, gid), size, mtime, checksum, type, link target, and what follows the target."""
_OWNER = Struct("8s8s8s")
_REST = Struct("8s32s32s8s8s155s12s")
_MOST_KNOWN = 4096
_Value = TypeVar("_Value")
_EMPTY: Mapping[bytes, bytes] = {}
_HEADER_ONLY = frozenset(b"123456")
_SPECIAL = frozenset(b"xgLK")

KINDS = {
    0x30: Kind.REG,
    0x31: Kind.HARDLINK,
    0x32: Kind.SYMLINK,
    0x33: Kind.CHAR,
    0x34: Kind.BLOCK,
    0x35: Kind.DIR,
    0x36: Kind.FIFO,
}
"""Maps a type flag to a kind, of the seven types that a layer's table can hold."""


class TarEntry:
    """Holds one entry: strings raw, offsets in the decompressed stream.

    ``header_offset`` is that of the first block that belongs to the entry (its extended headers included),
    ``payload_offset`` that of the first stored payload byte, ``stored_bytes`` how many stand there, ``end_offset``
    where the next entry's first block is. ``size`` is the logical size (larger than ``stored_bytes`` in a sparse
    file, whose ``sparse`` lists (offset, length) of the stored fragments). ``flag`` is the type flag with the
    historical NUL already resolved; ``pax`` all raw records.
    """

    __slots__ = (
        "devmajor",
        "devminor",
        "flag",
        "gid",
        "gname",
        "header_offset",
        "linkname",
        "mode",
        "mtime_ns",
        "mtime_s",
        "name",
        "pax",
        "payload_offset",
        "size",
        "sparse",
        "stored_bytes",
        "uid",
        "uname",
    )
    name: bytes
    linkname: bytes
    uname: bytes
    gname: bytes
    flag: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    mtime_ns: int
    devmajor: int
    devminor: int
    header_offset: int
    payload_offset: int
    stored_bytes: int
    pax: Mapping[bytes, bytes]
    sparse: list[tuple[int, int]] | None

    @property
    def end_offset(self) -> int:
        return self.payload_offset + (self.stored_bytes + 511) // 512 * 512

    @property
    def kind(self) -> Kind:
        """Returns the kind of the entry; FormatError for a type that no layer table holds (old GNU sparse counts as a
        file).
        """
        kind = KINDS.get(self.flag)
        if kind is not None:
            return kind
        if self.flag in b"S7":
            return Kind.REG
        raise FormatError(f"tar entry {self.name!r} at {self.header_offset}", f"unsupported type {chr(self.flag)!r}")

    @property
    def xattrs(self) -> dict[bytes, bytes]:
        """Returns extended attributes by full name."""
        return {key[13:]: value for key, value in self.pax.items() if key.startswith(XATTR_PREFIX)}

    def __repr__(self) -> str:
        return f"<TarEntry {chr(self.flag)} {self.name!r} at {self.header_offset}, {self.size} bytes>"


def _remember(known: dict[bytes, _Value], field: bytes, value: _Value) -> None:
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[field] = value


class TarScanner:
    """Parses what it is pushed: feed it the stream in pieces of any size, get the entries whose headers have ended.

    Memory stays below ``MAX_SPECIAL_BYTES`` plus one piece whatever the input. Raises FormatError.
    ``ended`` turns true after the second zero block; ``position`` is then the archive's size as a tar reader sees it,
    and whatever follows is ignored.
    """

    def __init__(self) -> None:
        self.position = 0
        self.ended = False
        self._carry = bytearray()
        self._need = BLOCK
        self._skip = 0
        self._first = -1  # offset of the entry's first block, -1 before it
        self._pax: Mapping[bytes, bytes] = _EMPTY
        self._long_name = b""
        self._long_link = b""
        self._special = 0  # type flag of the extended header whose content comes next
        self._special_bytes = 0
        self._payload_end = 0
        self._zero = False
        self._sparse: tar_sparse.MapReader | None = None
        self._entry: TarEntry | None = None
        # Most fields repeat from entry to entry: what they say, by their bytes.
        self._sums: dict[bytes, int] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._numbers: dict[bytes, int] = {}
        self._rests: dict[bytes, tuple[bytes, bytes, int, int, bytes]] = {}

    @property
    def skip(self) -> int:
        """Counts bytes that come before the next byte the parser wants to see (what is left of a payload)."""
        return self._skip

    @property
    def wanted(self) -> int:
        """Counts bytes after ``skip`` that complete what the parser works on."""
        return self._need - len(self._carry)

    def skipped(self, count: int) -> None:
        """Hears that ``count`` (at most ``skip``) payload bytes went by without being fed."""
        if count > self._skip or self._carry:
            raise ValueError("more bytes skipped than the payload has")
        self._skip -= count
        self.position += count

    def feed(self, data: bytes | memoryview) -> list[TarEntry]:
        """Returns entries whose headers end within ``data``."""
        entries: list[TarEntry] = []
        start, size = 0, len(data)
        while start < size and not self.ended:
            if skip := self._skip:
                step = min(skip, size - start)
                self._skip = skip - step
                self.position += step
                start += step
                if start == size:
                    break
            need = self._need
            end = start + need
            if self._carry or end > size:
                end -= len(self._carry)
                self._carry += data[start:end]
                start = end
                if len(self._carry) < need:
                    break
                block = bytes(self._carry)
                self._carry.clear()
            else:
                block = bytes(data[start:end])
                start = end
            at = self.position
            self.position = at + need
            entry = self._take(block, at)
            if entry is not None:
                entries.append(entry)
        return entries

    def close(self) -> None:
        """Declares the end of the stream; FormatError when it ends inside a header or payload.

        As in Go, the zero blocks and the padding of the last payload may be missing.
        """
        if self.ended:
            return
        if self._carry or self._special or self._sparse or self._first >= 0 or self.position < self._payload_end:
            raise FormatError(f"tar stream at offset {self.position + len(self._carry)}", "ends inside an entry")
        self.ended = True

    def _take(self, block: bytes, at: int) -> TarEntry | None:
        if self._special:
            return self._take_special(block, at)
        if self._sparse is not None:
            return self._take_sparse(block)
        if block == ZERO_BLOCK:
            if self._zero:
                self.ended = True
            elif self._first >= 0:
                raise FormatError(where_of(at), "the archive ends between an extended header and its entry")
            self._zero = True
            return None
        if self._zero:
            raise FormatError(where_of(at), "a zero block is followed by something else")
        return self._header(block, at)

    def _header(self, block: bytes, at: int) -> TarEntry | None:
        name, owner, size, mtime, checksum, _flag, link, rest = _HEADER.unpack(block)
        total = self._sums.get(checksum)
        if total is None:
            total = self._learn_sum(checksum, at)
        # adler32 adds bytes at C speed: its low half is 1 + sum modulo 65521, exact for an ASCII block.
        if not block.isascii():
            signed = total + 256 * sum(byte > 127 for byte in block[:148] + block[156:])
            if sum(block) not in (total, signed):
                raise FormatError(where_of(at), "checksum does not match")
        elif total != (zlib.adler32(block) & 0xFFFF) - 1:
            raise FormatError(where_of(at), "checksum does not match")
        entry = TarEntry()
        entry.flag = flag = _flag[0]
        entry.linkname = text(link) if link[0] else b""
        entry.mtime_ns = 0
        entry.sparse = None
        known = self._owners.get(owner)
        if known is None:
            known = self._learn_owner(owner, at)
        entry.mode, entry.uid, entry.gid = known
        numbers = self._numbers
        seconds, nbytes = numbers.get(mtime), numbers.get(size)
        entry.mtime_s = self._learn_number(mtime, at) if seconds is None else seconds
        if nbytes is None:
            nbytes = self._learn_number(size, at)
        learned = self._rests.get(rest)
        if learned is None:
            learned = self._learn_rest(rest, at)
        entry.uname, entry.gname, entry.devmajor, entry.devminor, front = learned
        end = name.find(0)
        if end >= 0:
            name = name[:end]
        entry.name = name = front + name if front else name
        if self._first < 0:
            self._first = at
        if flag in _SPECIAL:
            if not 0 <= nbytes <= MAX_SPECIAL_BYTES:
                raise FormatError(where_of(at), f"extended header of {nbytes} bytes (at most {MAX_SPECIAL_BYTES})")
            self._special, self._entry, self._special_bytes = flag, entry, nbytes
            self._need = (nbytes + 511) // 512 * 512
            if self._need == 0:
                self._need = BLOCK
                return self._take_special(b"", at)
            return None
        entry.header_offset = self._first
        self._first = -1
        pax = self._pax
        entry.pax = pax
        if pax:
            nbytes = self._merge(entry, nbytes, at)
            self._pax = _EMPTY
        if self._long_name or self._long_link:
            entry.name = self._long_name or entry.name
            entry.linkname = self._long_link or entry.linkname
            self._long_name = self._long_link = b""
        if flag == 0:
            entry.flag = flag = 0x35 if entry.name.endswith(b"/") else 0x30
        if nbytes < 0:
            raise FormatError(where_of(at), "negative size")
        if len(entry.name) > MAX_NAME_BYTES or len(entry.linkname) > MAX_NAME_BYTES:
            raise FormatError(where_of(at), f"a name is longer than {MAX_NAME_BYTES} bytes")
        entry.size = nbytes
        entry.stored_bytes = stored = 0 if flag in _HEADER_ONLY else nbytes
        entry.payload_offset = self.position
        self._payload_end = self.position + stored
        if flag == 0x53 or (pax and tar_sparse.is_sparse(pax)):
            return self._begin_sparse(entry, block, at)
        self._skip = (stored + 511) // 512 * 512
        return entry

    def _learn_sum(self, checksum: bytes, at: int) -> int:
        """Returns what the bytes of a block add up to whose checksum field says this."""
        total = number(checksum, at) - 256 + sum(checksum)
        _remember(self._sums, checksum, total)
        return total

    def _learn_number(self, field: bytes, at: int) -> int:
        value = number(field, at)
        _remember(self._numbers, field, value)
        return value

    def _learn_owner(self, owner: bytes, at: int) -> tuple[int, int, int]:
        """Returns mode, owner and group."""
        mode, uid, gid = (number(field, at) for field in _OWNER.unpack(owner))
        _remember(self._owners, owner, (mode, uid, gid))
        return mode, uid, gid

    def _learn_rest(self, rest: bytes, at: int) -> tuple[bytes, bytes, int, int, bytes]:
        """Returns the names of owner and group, the device, and what stands before the name."""
        magic, uname, gname, major, minor, prefix, tail = _REST.unpack(rest)
        learned = b"", b"", 0, 0, b""
        if magic[:5] == b"ustar" and (magic[5] == 0 or magic == b"ustar  \0"):
            front = b""
            if prefix[0] and magic[5] == 0:
                front = text(prefix[:131] if tail[8:] == b"tar\0" else prefix) + b"/"
            learned = text(uname), text(gname), number(major, at), number(minor, at), front
        _remember(self._rests, rest, learned)
        return learned

    def _take_special(self, block: bytes, at: int) -> TarEntry | None:
        """Takes the content of an extended header; a global one is an entry of its own."""
        data = block[: self._special_bytes]
        flag, entry = self._special, self._entry
        assert entry is not None
        self._need = BLOCK
        self._special, self._entry = 0, None
        if flag == 0x4C:
            self._long_name = text(data)
        elif flag == 0x4B:
            self._long_link = text(data)
        else:
            self._pax = pax_records(data, self._first)
        if flag != 0x67:
            return None
        entry.header_offset, entry.payload_offset = self._first, self.position
        entry.size = entry.stored_bytes = 0
        entry.pax, self._pax = self._pax, _EMPTY
        self._merge(entry, 0, at)
        self._payload_end = self.position
        self._long_name = self._long_link = b""
        self._first = -1
        return entry

    @staticmethod
    def _merge(entry: TarEntry, size: int, at: int) -> int:
        """Lets PAX records override header fields; returns the (possibly overridden) size."""
        for key, value in entry.pax.items():
            if not value or key.startswith(XATTR_PREFIX):
                continue
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.linkname = value
            elif key == b"mtime":
                entry.mtime_s, entry.mtime_ns = pax_time(value, at)
            elif key in (b"atime", b"ctime"):
                pax_time(value, at)
            elif key == b"size":
                size = decimal(value, at)
            elif key == b"uid":
                entry.uid = decimal(value, at)
            elif key == b"gid":
                entry.gid = decimal(value, at)
            elif key == b"uname":
                entry.uname = value
            elif key == b"gname":
                entry.gname = value
        return size

    def _begin_sparse(self, entry: TarEntry, block: bytes, at: int) -> TarEntry | None:
        if entry.flag in _HEADER_ONLY:
            raise FormatError(where_of(at), "a sparse map on an entry without payload")
        if entry.flag == 0x53:
            if block[257:265] != b"ustar  \0":
                raise FormatError(where_of(at), "old sparse entry without a GNU header")
            reader: tar_sparse.MapReader = tar_sparse.OldGnuMap(entry, block, at)
        else:
            reader = tar_sparse.pax_map(entry, at)
        self._sparse, self._entry = reader, entry
        return self._take_sparse(b"")

    def _take_sparse(self, block: bytes) -> TarEntry | None:
        reader, entry = self._sparse, self._entry
        assert reader is not None
        assert entry is not None
        if not reader.take(block):
            if reader.inside_payload and self._payload_end - self.position < BLOCK:
                raise FormatError(where_of(entry.header_offset), "the sparse map is longer than the payload")
            return None
        if not reader.inside_payload:  # old GNU extension blocks stand before the payload
            self._payload_end = self.position + entry.stored_bytes
        entry.payload_offset = self.position
        entry.stored_bytes = self._payload_end - self.position
        entry.sparse = tar_sparse.checked(reader.fragments, entry.size, entry.stored_bytes, entry.header_offset)
        self._skip = (entry.stored_bytes + 511) // 512 * 512
        self._sparse = self._entry = None
        return entry


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class TarStream:
    """Pulls from an object with ``read(size)``; iterating gives entries, :meth:`read` the current payload."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._scanner = TarScanner()
        self._left = 0

    @property
    def position(self) -> int:
        """Returns the offset of the next byte that will be taken from the stream."""
        return self._scanner.position

    def __iter__(self) -> Iterator[TarEntry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> TarEntry | None:
        """Returns the next entry, None at the end of the archive; skips what is left of the current payload."""
        scanner = self._scanner
        while not scanner.ended:
            data = self._stream.read(min(scanner.skip, 1 << 20) or scanner.wanted)
            if not data:
                scanner.close()
                break
            entries = scanner.feed(data)
            if entries:
                self._left = entries[0].stored_bytes
                return entries[0]
        self._left = 0
        return None

    def read(self, size: int = -1) -> bytes:
        """Returns up to ``size`` stored payload bytes of the current entry (b"" at its end); FormatError when cut
        short.
        """
        size = self._left if size < 0 else min(size, self._left)
        if not size:
            return b""
        data = self._stream.read(size)
        if not data:
            raise FormatError(f"tar stream at offset {self.position}", "ends inside a payload")
        self._left -= len(data)
        self._scanner.skipped(len(data))
        return data
