"""This module makes EROFS metadata a file system's first device, with the layers on others.

The virtual file (docs/formats.md) has metadata and layers behind each other. Where they are several devices, the kernel
reads metadata from a plain local file and asks the daemon for layers only, and it reads from several of those at once.
The addresses stay: the device table says where in the file each device stands. A device answers for the blocks up to
where the next one begins, but it reaches to the file's end, because what begins in its blocks may end in the next
one's. Source: Linux, ``fs/erofs/erofs_fs.h`` (struct erofs_deviceslot), ``fs/erofs/super.c`` and ``erofs_map_dev`` in
``fs/erofs/data.c``; multiple devices from 5.16 on.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from harness.errors import FormatError
from harness.formats.erofs.layout import PART_ALIGN, SUPER_OFFSET, SUPER_SIZE, Superblock, checksum_span, crc32c

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE_TABLE: Final = 0x8
"""This bit of feature_incompat says that the superblock names other devices."""
_DEVICES: Final = struct.Struct("<HH")
"""It holds extra_devices and devt_slotoff (where the table begins, in slots), at byte 86 of the superblock."""
_DEVICES_AT: Final = 86
_SLOT: Final = struct.Struct("<64sIIHH52x")
"""It holds tag, blocks and uniaddr (first block in the common address space), and the high halves of both."""
_SLOT_NUMBER: Final = 1
"""The table lies before the superblock, where nothing else does."""
MOST_DEVICES: Final = SUPER_OFFSET // _SLOT.size - _SLOT_NUMBER


def device_starts(start: int, size: int, devices: int) -> tuple[int, ...]:
    """Returns where ``devices`` devices begin that share a file's bytes from ``start`` to ``size`` about equally.

    Fewer where they would hold nothing, and never more than the device table has room for.
    """
    share = -(-(size - start) // max(1, min(devices, MOST_DEVICES)))
    step = -(-share // PART_ALIGN) * PART_ALIGN
    return tuple(range(start, size, step)) if size > start else ()


def head_with_devices(metadata: bytes, starts: Sequence[int], size: int) -> bytes:
    """Returns what takes the place of the first PART_ALIGN bytes of ``metadata`` for mounting from several devices.

    ``metadata`` is that of a file of ``size`` bytes; each further device has the file's bytes from one of the ascending
    ``starts`` on. FormatError when the first is not at or behind the metadata's end, or one not on a block.
    """
    end = SUPER_OFFSET + SUPER_SIZE
    parsed = Superblock.parse(metadata[SUPER_OFFSET:end])
    block = parsed.block_size
    bounds = [*starts, size]
    if (
        not 1 <= len(starts) <= MOST_DEVICES
        or bounds[0] < len(metadata)
        or any(bound % block for bound in bounds)
        or any(low >= high for low, high in pairwise(bounds))
    ):
        raise FormatError("EROFS image", f"devices at {bounds} behind {len(metadata)} bytes of metadata")
    head = bytearray(metadata[:PART_ALIGN])
    table = _SLOT_NUMBER * _SLOT.size
    slots = b"".join(
        _SLOT.pack(b"layers-%d" % number, (high - low) // block, low // block, 0, 0)
        for number, (low, high) in enumerate(pairwise(bounds))
    )
    if any(head[table : table + len(slots)]):
        raise FormatError("EROFS image", "the area before the superblock is not empty")
    head[table : table + len(slots)] = slots
    changed = replace(
        parsed, blocks=bounds[0] // block, feature_incompat=parsed.feature_incompat | DEVICE_TABLE, checksum=0
    )
    head[SUPER_OFFSET:end] = changed.pack()
    _DEVICES.pack_into(head, SUPER_OFFSET + _DEVICES_AT, len(starts), _SLOT_NUMBER)
    crc = crc32c(bytes(head[SUPER_OFFSET : SUPER_OFFSET + checksum_span(block)]))
    struct.pack_into("<I", head, SUPER_OFFSET + 4, crc)
    return bytes(head)
