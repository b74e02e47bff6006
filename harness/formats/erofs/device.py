"""EROFS metadata as a file system's first device, with the layers on a second one.

The virtual file (docs/formats.md) has metadata and layers behind each other. Where they are two devices, the kernel
reads metadata from a plain local file and asks the daemon for layers only. The addresses stay: the device table says
that the second device stands where the layers stand in the file. Source: Linux, ``fs/erofs/erofs_fs.h`` (struct
erofs_deviceslot) and ``fs/erofs/super.c``; multiple devices from 5.16 on.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from harness.errors import FormatError
from harness.formats.erofs.layout import PART_ALIGN, SUPER_OFFSET, SUPER_SIZE, Superblock, checksum_span, crc32c

DEVICE_TABLE: Final = 0x8
"""Bit of feature_incompat: the superblock names other devices."""
_DEVICES: Final = struct.Struct("<HH")
"""extra_devices, devt_slotoff (where the table begins, in slots), at byte 86 of the superblock."""
_DEVICES_AT: Final = 86
_SLOT: Final = struct.Struct("<64sIIHH52x")
"""tag, blocks, uniaddr (first block in the common address space); the high halves of both."""
_SLOT_NUMBER: Final = 1
"""The table lies before the superblock, where nothing else does."""


def head_with_second_device(metadata: bytes, start: int, size: int) -> bytes:
    """What takes the place of the first PART_ALIGN bytes of ``metadata`` for mounting from two devices.

    ``metadata`` is that of a file of ``size`` bytes whose layers begin at byte ``start``; the second device has the
    file's bytes from there on. FormatError when ``start`` is not at or behind the metadata's end, or not on a block.
    """
    end = SUPER_OFFSET + SUPER_SIZE
    parsed = Superblock.parse(metadata[SUPER_OFFSET:end])
    block = parsed.block_size
    if start < len(metadata) or start % block or size <= start or size % block:
        raise FormatError("EROFS image", f"layers at {start} to {size} behind {len(metadata)} bytes of metadata")
    head = bytearray(metadata[:PART_ALIGN])
    table = _SLOT_NUMBER * _SLOT.size
    if any(head[table : table + _SLOT.size]):
        raise FormatError("EROFS image", "the area before the superblock is not empty")
    head[table : table + _SLOT.size] = _SLOT.pack(b"layers", (size - start) // block, start // block, 0, 0)
    changed = replace(
        parsed, blocks=start // block, feature_incompat=parsed.feature_incompat | DEVICE_TABLE, checksum=0
    )
    head[SUPER_OFFSET:end] = changed.pack()
    _DEVICES.pack_into(head, SUPER_OFFSET + _DEVICES_AT, 1, _SLOT_NUMBER)
    crc = crc32c(bytes(head[SUPER_OFFSET : SUPER_OFFSET + checksum_span(block)]))
    struct.pack_into("<I", head, SUPER_OFFSET + 4, crc)
    return bytes(head)
