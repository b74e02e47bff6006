"""This module knows EROFS on disk: the structures that a metadata image for lazily served layers uses, and nothing else
of it.

All numbers are little-endian. Source: the kernel's public format header (``fs/erofs/erofs_fs.h``, Linux 6.12 to 6.18)
and ``Documentation/filesystems/erofs.rst``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.errors import FormatError

MAGIC: Final = 0xE0F5E1E2
SUPER_OFFSET: Final = 1024
SUPER_SIZE: Final = 128
SLOT_BYTES: Final = 32
"""Inodes start at multiples of this; an inode's number (nid) is its byte offset divided by it."""

BLOCK_SIZES: Final = (512, 1024, 2048, 4096)
PART_ALIGN: Final = 4096
"""Metadata and every layer's address space start at multiples of this, so that pages of the parts never overlap."""

COMPAT_SUPER_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
FLAT_PLAIN: Final = 0
FLAT_INLINE: Final = 2
CHUNK_BASED: Final = 4
CHUNKED_FILE: Final = 0x4
NAME_MAX: Final = 255
SYMLINK_MAX: Final = 4095
MAX_BLOCKS: Final = 0xFFFF_FFFF

SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sI44x")
"""These are magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time, build_time_nsec,
blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat.
"""

EXTENDED: Final = np.dtype(
    [
        ("format", "<u2"), ("icount", "<u2"), ("mode", "<u2"), ("pad", "<u2"), ("size", "<u8"),
        ("u", "<u4"), ("ino", "<u4"), ("uid", "<u4"), ("gid", "<u4"),
        ("mtime", "<i8"), ("mtime_ns", "<u4"), ("nlink", "<u4"), ("pad2", "V16"),
    ]
)  # fmt: skip
COMPACT: Final = np.dtype(
    [
        ("format", "<u2"), ("icount", "<u2"), ("mode", "<u2"), ("nlink", "<u2"), ("size", "<u4"), ("mtime", "<u4"),
        ("u", "<u4"), ("ino", "<u4"), ("uid", "<u2"), ("gid", "<u2"), ("pad", "<u4"),
    ]
)  # fmt: skip
DIRENT: Final = np.dtype([("nid", "<u8"), ("nameoff", "<u2"), ("type", "u1"), ("pad", "u1")])

FORMAT_BITS: Final = {1: 0o100000, 2: 0o040000, 3: 0o020000, 4: 0o060000, 5: 0o010000, 6: 0o140000, 7: 0o120000}
"""Maps a dirent type to the type bits of st_mode."""

_CRC_TABLE: list[int] = []


def crc32c(data: bytes, crc: int = 0xFFFF_FFFF) -> int:
    """Returns the CRC-32C state after ``data`` without the final inversion, as the kernel keeps it
    in the superblock.
    """
    if not _CRC_TABLE:
        for byte in range(256):
            value = byte
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
            _CRC_TABLE.append(value)
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def checksum_span(block_size: int) -> int:
    """Counts the bytes from the superblock's start that its checksum covers: to the end of its block, or one small
    block.
    """
    return block_size - SUPER_OFFSET if block_size > SUPER_OFFSET else block_size


def align(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def encode_rdev(major: int, minor: int) -> int:
    """Returns a device number in the kernel's 32-bit encoding; FormatError where it does not fit (12 + 20 bits)."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise FormatError("device entry", f"device number {major}:{minor} does not fit 12 + 20 bits")
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_rdev(value: int) -> tuple[int, int]:
    return (value >> 8) & 0xFFF, (value & 0xFF) | ((value >> 12) & 0xFFF00)


@dataclass(frozen=True, slots=True)
class Superblock:
    """Holds the fields of the superblock that vary; times in seconds and nanoseconds, addresses in blocks."""

    block_size: int
    root_nid: int
    inodes: int
    build_time_s: int
    build_time_ns: int
    blocks: int
    meta_block: int
    xattr_block: int
    uuid: bytes
    feature_compat: int
    feature_incompat: int
    checksum: int

    @classmethod
    def parse(cls, raw: bytes) -> Superblock:
        """Reads the 128 bytes at offset 1024; raises FormatError for anything this project does not write."""
        where = "EROFS superblock"
        if len(raw) < SUPER_SIZE:
            raise FormatError(where, f"{len(raw)} bytes instead of {SUPER_SIZE}")
        magic, checksum, compat, bits, slots, root, inos, time_s, time_ns, blocks, meta, xattr, uuid, _, incompat = (
            SUPER.unpack(raw[:SUPER_SIZE])
        )
        if magic != MAGIC:
            raise FormatError(where, f"magic is {magic:#x}, not {MAGIC:#x}")
        if not 9 <= bits <= 12:
            raise FormatError(where, f"block size 2**{bits} is not between 512 and 4096")
        if slots or incompat & ~CHUNKED_FILE:
            raise FormatError(where, f"incompatible features {incompat:#x}, extension slots {slots}")
        signed = time_s - (1 << 64) if time_s >> 63 else time_s
        return cls(1 << bits, root, inos, signed, time_ns, blocks, meta, xattr, uuid, compat, incompat, checksum)

    def pack(self) -> bytes:
        return SUPER.pack(
            MAGIC, self.checksum, self.feature_compat, self.block_size.bit_length() - 1, 0, self.root_nid, self.inodes,
            self.build_time_s & (1 << 64) - 1, self.build_time_ns, self.blocks, self.meta_block, self.xattr_block,
            self.uuid, b"", self.feature_incompat,
        )  # fmt: skip
