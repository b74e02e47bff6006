"""This module writes and reads extended attributes in EROFS: inline behind the inode, or by number in an area that
inodes share.

Inline form: a header of 12 bytes (filter, count of shared ones), the numbers of the shared ones (u32 each), then
entries {name_len u8, index u8, value_size u16, name, value}, each padded to 4 bytes. A shared attribute's number is its
distance from the area's start divided by 4. Source: ``fs/erofs/erofs_fs.h`` and ``fs/erofs/xattr.c``.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Final

from harness.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER_BYTES: Final = 12
_ENTRY: Final = struct.Struct("<BBH")
_PREFIXES: Final = (
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (5, b"lustre."),
    (6, b"security."),
)
_PREFIX_OF: Final = dict(_PREFIXES)


def encode(name: bytes, value: bytes) -> bytes | None:
    """Writes one entry, padded to 4 bytes; None for a name that EROFS cannot hold and no Linux file system would
    accept.

    Unpackers pass such attributes over for the same reason (the system call answers EOPNOTSUPP). Raises FormatError
    where the name or value is too long.
    """
    for index, prefix in _PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            if bool(rest) == (index in {2, 3}):
                return None
            if len(rest) > 255 or len(value) > 0xFFFF:
                raise FormatError(
                    f"xattr {name[:80]!r}", f"{len(rest)} and {len(value)} bytes do not fit 255 and 65535"
                )
            raw = _ENTRY.pack(len(rest), index, len(value)) + rest + value
            return raw + bytes(-len(raw) % 4)
    return None


def plan(attributes: Mapping[int, Mapping[bytes, bytes]]) -> tuple[dict[int, bytes], bytes]:
    """Plans what stands behind each inode that has attributes, and the shared area (what more than one inode has)."""
    encoded: dict[tuple[tuple[bytes, bytes], ...], list[bytes]] = {}
    of_inode: dict[int, list[bytes]] = {}
    counts: Counter[bytes] = Counter()
    for inode, items in attributes.items():
        key = tuple(sorted(items.items()))
        entries = encoded.get(key)
        if entries is None:
            entries = encoded[key] = [raw for name, value in key if (raw := encode(name, value)) is not None]
        if entries:
            of_inode[inode] = entries
            counts.update(entries)
    numbers: dict[bytes, int] = {}
    area = bytearray()
    for raw in sorted(raw for raw, count in counts.items() if count > 1):
        numbers[raw] = len(area) // 4
        area += raw
    inline: dict[int, bytes] = {}
    made: dict[int, bytes] = {}
    for inode, entries in of_inode.items():
        body = made.get(id(entries))
        if body is None:
            shared = [numbers[raw] for raw in entries if raw in numbers][:255]
            kept = [raw for raw in entries if raw not in numbers or numbers[raw] not in set(shared)]
            body = struct.pack("<IB7x", 0, len(shared)) + struct.pack(f"<{len(shared)}I", *shared) + b"".join(kept)
            if len(body) > HEADER_BYTES + 4 * 0xFFFE:
                raise FormatError(f"inode {inode}", f"{len(body)} bytes of extended attributes")
            made[id(entries)] = body
        inline[inode] = body
    return inline, bytes(area)


def decode(raw: bytes, where: str) -> tuple[bytes, bytes, int]:
    """Returns (full name, value, bytes taken) of the entry at the start of ``raw``; raises FormatError."""
    if len(raw) < _ENTRY.size:
        raise FormatError(where, "an xattr entry is cut off")
    name_bytes, index, value_bytes = _ENTRY.unpack_from(raw)
    prefix = _PREFIX_OF.get(index)
    end = _ENTRY.size + name_bytes + value_bytes
    if prefix is None or end > len(raw):
        raise FormatError(where, f"an xattr entry of prefix {index} and {end} bytes in {len(raw)}")
    middle = _ENTRY.size + name_bytes
    return prefix + raw[_ENTRY.size : middle], raw[middle:end], end + -end % 4
