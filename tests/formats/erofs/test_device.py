"""The metadata for a mount from two devices: what the superblock says, and what it refuses.

That the kernel reads both devices right is tested with real mounts (tests/lazyfs/mounting/test_handover.py).
"""

from __future__ import annotations

import itertools
import struct

import pytest

from harness.errors import FormatError
from harness.formats.erofs.device import MOST_DEVICES, device_starts, head_with_devices
from harness.formats.erofs.layout import PART_ALIGN, SUPER_OFFSET, SUPER_SIZE, Superblock, crc32c
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.writer import ErofsMetadata, write_metadata
from tests.formats.erofs.layers import Row, table_of

BLOCK = 512


@pytest.fixture
def written() -> ErofsMetadata:
    table, _ = table_of(Row("f", b"a", b"1" * 5000), Row("f", b"b", b"2" * 700))
    return write_metadata(merge_layers([table]), [PART_ALIGN * 2])


def test_device_table_says_where_the_layers_stand(written: ErofsMetadata) -> None:
    """Feature bit, count, place and slot as struct erofs_super_block and struct erofs_deviceslot have them."""
    start = written.layer_starts[0]
    cut = head_with_devices(written.data, [start], written.image_bytes)
    assert len(cut) == PART_ALIGN
    incompat, devices, slot = struct.unpack_from("<I2xHH", cut, SUPER_OFFSET + 80)
    assert (incompat & 0x8, devices) == (0x8, 1)
    blocks, first = struct.unpack_from("<II", cut, slot * 128 + 64)
    assert (blocks, first) == ((written.image_bytes - start) // BLOCK, start // BLOCK)
    assert struct.unpack_from("<I", cut, SUPER_OFFSET + 36) == (start // BLOCK,)


def test_nothing_else_changes_and_the_checksum_is_right(written: ErofsMetadata) -> None:
    """Inodes, names and times are the same bytes; the kernel checks the first block's checksum."""
    cut = head_with_devices(written.data, [written.layer_starts[0]], written.image_bytes)
    end = SUPER_OFFSET + SUPER_SIZE
    assert cut[end:] == written.data[end:PART_ALIGN]
    whole = cut[SUPER_OFFSET : SUPER_OFFSET + BLOCK]
    assert crc32c(whole[:4] + bytes(4) + whole[8:]) == struct.unpack_from("<I", whole, 4)[0]
    with pytest.raises(FormatError, match="incompatible features 0x8"):
        Superblock.parse(cut[SUPER_OFFSET:end])


@pytest.mark.parametrize(("start", "size"), [(0, 1 << 20), (-100, 1 << 20), (PART_ALIGN, PART_ALIGN)])
def test_layers_must_begin_behind_the_metadata(written: ErofsMetadata, start: int, size: int) -> None:
    """Inside the metadata, off a block, and with nothing behind: refused."""
    base = written.layer_starts[0] if start else 0
    with pytest.raises(FormatError, match="devices at"):
        head_with_devices(written.data, [base + start], base + size)


def test_an_occupied_boot_area_is_refused(written: ErofsMetadata) -> None:
    """The table would overwrite it."""
    occupied = bytearray(written.data)
    occupied[130] = 1
    with pytest.raises(FormatError, match="not empty"):
        head_with_devices(bytes(occupied), [written.layer_starts[0]], written.image_bytes)


def test_devices_share_the_layers(written: ErofsMetadata) -> None:
    """Each answers for the blocks up to the next one's, the last one up to the end; none is empty."""
    start, size = written.layer_starts[0], written.image_bytes
    starts = device_starts(start, size, 3)
    assert starts[0] == start
    cut = head_with_devices(written.data, starts, size)
    devices, slot = struct.unpack_from("<HH", cut, SUPER_OFFSET + 86)
    assert devices == len(starts)
    found = [struct.unpack_from("<II", cut, (slot + number) * 128 + 64) for number in range(devices)]
    assert [(first * BLOCK, (first + blocks) * BLOCK) for blocks, first in found] == list(
        itertools.pairwise([*starts, size])
    )


@pytest.mark.parametrize(("size", "devices"), [(1 << 20, 1), (1 << 20, 5), (1 << 20, 100), (9000, 7), (8192, 3)])
def test_shares_begin_at_pages_and_cover_all(size: int, devices: int) -> None:
    """However many are asked for, no more than the table holds, and no share without bytes."""
    starts = device_starts(4096, size, devices)
    assert starts[0] == 4096
    assert len(starts) <= min(devices, MOST_DEVICES)
    assert all(low < high for low, high in itertools.pairwise([*starts, size]))
    assert not any(begin % 4096 for begin in starts)
