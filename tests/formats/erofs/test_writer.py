"""What the EROFS writer must keep of a tree, in which form, and what it cannot present."""

from __future__ import annotations

import io
import struct
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FormatError
from harness.formats.erofs.layout import CHUNK_BASED, FLAT_INLINE, FLAT_PLAIN, SUPER_OFFSET, crc32c
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.reader import ErofsImage, Inode, over_bytes
from harness.formats.erofs.table import TarTable
from harness.formats.erofs.writer import write_metadata
from harness.formats.table import Kind, LayerTable
from tests.formats.erofs.layers import Row, image_of, read, seen_in, table_of, tar_image, tar_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def found(image: ErofsImage, path: bytes) -> Inode:
    inode = image.lookup(path)
    assert inode is not None
    return inode


def big_table(names: Sequence[bytes], kind: Kind = Kind.REG, sizes: int = 0, space: int = 0) -> LayerTable:
    """Many entries that differ in nothing but their names."""
    count = len(names)
    return LayerTable(
        names=names,
        kinds=np.full(count, kind, dtype=np.uint8),
        modes=np.full(count, 0o644, dtype=np.uint16),
        uids=np.zeros(count, dtype=np.uint32),
        gids=np.zeros(count, dtype=np.uint32),
        sizes=np.full(count, sizes, dtype=np.int64),
        offsets=np.full(count, 0 if sizes else -1, dtype=np.int64),
        mtimes_s=np.arange(count, dtype=np.int64),
        mtimes_ns=np.zeros(count, dtype=np.uint32),
        address_space_bytes=space,
    )


def test_crc32c_of_the_check_string() -> None:
    """The checksum is CRC-32C (RFC 3720, B.4), kept without its final inversion."""
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


def test_superblock_checksum_is_verified() -> None:
    """The checksum covers the superblock's block: any changed bit in it is found."""
    data = bytearray(image_of(table_of(Row("f", b"a", b"1"))))
    ErofsImage(over_bytes(bytes(data)))
    data[SUPER_OFFSET + 70] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        ErofsImage(over_bytes(bytes(data)))


def test_same_input_gives_the_same_bytes() -> None:
    """Neither the order of dict insertions nor repetition changes a byte."""
    rows = [Row("f", b"a/%d" % n, b"x" * n, xattrs={b"user.a": b"1", b"user.b": b"2"}) for n in range(20)]
    other = [Row(**{**vars(row), "xattrs": dict(reversed(row.xattrs.items()))}) for row in rows]
    assert image_of(table_of(*rows)) == image_of(table_of(*rows)) == image_of(table_of(*other))


def test_metadata_of_every_kind_survives() -> None:
    """Modes with setuid, setgid and sticky bits, ids of 32 bits, nanoseconds, devices, fifos and empty files."""
    rows = [
        Row("f", b"s", b"1", mode=0o7755, uid=4_294_967_294, gid=70_000, mtime_s=1_700_000_000, mtime_ns=999_999_999),
        Row("f", b"empty", mode=0, uid=65_535, gid=65_535),
        Row("p", b"p", mode=0o600),
        Row("c", b"c", mode=0o666),
        Row("d", b"t", mode=0o1777),
    ]
    image = read(table_of(*rows))
    s = found(image, b"s")
    assert (s.mode, s.uid, s.gid, s.mtime_s, s.mtime_ns) == (0o7755, 4_294_967_294, 70_000, 1_700_000_000, 999_999_999)
    assert (found(image, b"empty").size, found(image, b"empty").uid) == (0, 65_535)
    assert found(image, b"p").kind == Kind.FIFO
    assert found(image, b"c").rdev == (1, 3)
    assert found(image, b"t").mode == 0o1777


@pytest.mark.parametrize("time", [0, -1, -(1 << 31), 1 << 33, (1 << 63) - 1, -(1 << 63)])
def test_times_beyond_32_bits_survive(time: int) -> None:
    """Times before 1970 and beyond 32 bits, alone and beside others; what ext4 cannot hold is as near as it can."""
    image = read(table_of(Row("f", b"a", mtime_s=time), Row("f", b"b", mtime_s=time, mtime_ns=1), Row("f", b"c")))
    held = min(max(time, -(1 << 31)), (1 << 34) - (1 << 31) - 1)
    assert [found(image, name).mtime_s for name in (b"a", b"b", b"c")] == [held, held, 0]


def test_compact_inodes_only_where_nothing_is_lost() -> None:
    """The most frequent time is the superblock's, and inodes that have it and small ids take 32 bytes, others 64."""
    rows = [Row("f", b"%03d" % n, mtime_s=1_000, mtime_ns=5) for n in range(100)]
    same = image_of(table_of(*rows))
    other = image_of(table_of(*[Row("f", row.name, mtime_s=1_000, mtime_ns=n) for n, row in enumerate(rows)]))
    big = image_of(table_of(*[Row("f", row.name, mtime_s=1_000, mtime_ns=5, uid=70_000) for row in rows]))
    image = ErofsImage(over_bytes(same))
    assert (image.super.build_time_s, image.super.build_time_ns) == (1_000, 5)
    forms = []
    for data in (same, other, big):
        nids = [inode.nid for path, inode in ErofsImage(over_bytes(data)).walk() if path]
        forms.append([data[32 * nid] & 1 for nid in nids])
    assert forms[0] == [0] * 100
    assert sum(forms[1]) == 99
    assert forms[2] == [1] * 100


def test_symlinks_up_to_their_limit() -> None:
    """Targets that fit stand behind the inode, longer ones in blocks of their own; all come back whole."""
    lengths = [1, 31, 32, 100, 447, 448, 449, 511, 512, 513, 1024, 4094, 4095]
    for block_size in (512, 4096):
        image = read(table_of(*[Row("l", b"%d" % n, b"t" * n) for n in lengths]), block_size=block_size)
        links = [found(image, b"%d" % n) for n in lengths]
        assert [len(image.readlink(inode)) for inode in links] == lengths
        assert links[0].layout == FLAT_INLINE
    assert found(read(table_of(Row("l", b"x", b"t" * 600))), b"x").layout == FLAT_PLAIN


@pytest.mark.parametrize("target", [b"", b"t" * 4096, b"a\0b"])
def test_symlinks_no_kernel_would_make_are_refused(target: bytes) -> None:
    """Empty, overlong and NUL-holding targets raise FormatError."""
    with pytest.raises(FormatError):
        read(table_of(Row("l", b"x", target)))


def test_names_of_255_bytes_and_every_byte() -> None:
    """The longest names, and names of any bytes but NUL and slash, sorted by their bytes."""
    names = [bytes([value]) * 255 for value in range(1, 256) if value != ord("/")]
    image = read(table_of(*[Row("f", name) for name in names]))
    assert [path for path, _ in image.walk()][1:] == sorted(names)


def test_directory_of_50_000_entries() -> None:
    """A directory of many blocks keeps its order, and every entry is found again."""
    names = [b"dir/entry-%05d" % n for n in range(50_000)]
    data = write_metadata(merge_layers([big_table(names)]), [0]).data
    image = ErofsImage(over_bytes(data))
    directory = found(image, b"dir")
    listed = [name for name, _, _ in image.entries(directory)]
    assert len(listed) == 50_002
    assert listed[2:] == [name[4:] for name in names]
    assert found(image, b"dir/entry-49999").mtime_s == 49_999


def test_root_directory_of_many_blocks_keeps_a_small_number() -> None:
    """The root's inode comes first whatever its directory holds, for its number has 16 bits in the superblock."""
    names = [b"%08d%s" % (n, b"x" * 200) for n in range(20_000)]
    data = write_metadata(merge_layers([big_table(names)]), [0]).data
    image = ErofsImage(over_bytes(data))
    assert image.super.root_nid < 100
    assert sum(1 for _ in image.entries(image.root)) == 20_002


def test_file_over_4_gib() -> None:
    """Sizes and places beyond 32 bits: the inode takes the long form, the extent is where the layer has it."""
    size = (5 << 30) + 1
    table = big_table([b"big"], sizes=size, space=6 << 30)
    metadata = write_metadata(merge_layers([table, table]), [6 << 30, 6 << 30])
    image = ErofsImage(over_bytes(metadata.data))
    inode = found(image, b"big")
    (extent,) = image.extents(inode)
    assert (inode.size, extent.size, extent.image_offset) == (size, size, metadata.layer_starts[1])
    assert metadata.layer_starts[1] == metadata.layer_starts[0] + (6 << 30)


def test_more_than_2_to_the_32_blocks_are_refused() -> None:
    """An image of over 2 TiB cannot be addressed with 512-byte blocks."""
    with pytest.raises(FormatError, match="blocks"):
        write_metadata(merge_layers([big_table([b"a"])]), [3 << 40])


def test_million_entries() -> None:
    """A million entries in ten thousand directories: every name leads to its inode, in at most 110 bytes each."""
    names = [b"%03d/%02d/%s%04d" % (n // 10_000, n // 100 % 100, b"f" * 9, n % 10_000) for n in range(1_000_000)]
    data = write_metadata(merge_layers([big_table(names)]), [0]).data
    assert len(data) <= 110 * len(names)
    image = ErofsImage(over_bytes(data))
    assert image.super.inodes == 1_010_101
    for number in (0, 123_456, 999_999):
        assert found(image, names[number]).mtime_s == number


def test_xattrs_of_all_name_spaces_survive() -> None:
    """Capabilities, ACLs (whose whole name is the prefix), trusted and user ones, empty and large values."""
    everything = {
        b"security.capability": struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0),
        b"system.posix_acl_access": b"\2\0\0\0" + bytes(40),
        b"trusted.a": b"",
        b"user.b": b"v" * 65_535,
        b"user." + b"n" * 250: b"w",
    }
    default = {b"system.posix_acl_default": b"\2\0\0\0" + bytes(32), b"user.c": b"1"}
    image = read(table_of(Row("f", b"a", b"1", xattrs=everything), Row("d", b"b", xattrs=default)))
    assert image.xattrs(found(image, b"a")) == everything
    assert image.xattrs(found(image, b"b")) == default
    assert image.xattrs(image.root) == {}


def test_xattrs_no_file_system_takes_are_left_out() -> None:
    """Names outside the kernel's name spaces are dropped, as unpacking drops them (EOPNOTSUPP)."""
    image = read(table_of(Row("f", b"a", xattrs={b"com.apple.x": b"1", b"user.": b"1", b"system.foo": b"1"})))
    assert image.xattrs(found(image, b"a")) == {}


def test_equal_xattrs_are_stored_once() -> None:
    """What many inodes have costs each a number of 4 bytes: a label on every file stays affordable."""
    label = {b"security.selinux": b"system_u:object_r:container_file_t:s0\0"}
    rows = [Row("f", b"%04d" % n, xattrs={**label, b"user.n": b"%d" % n}) for n in range(1_000)]
    data = image_of(table_of(*rows))
    image = ErofsImage(over_bytes(data))
    assert data.count(b"container_file_t") == 1
    assert all(image.xattrs(found(image, row.name)) == row.xattrs for row in rows[:50])


def test_xattrs_that_the_kernel_does_not_take_are_left_out() -> None:
    """Names over 255 bytes, values over 65 535, capabilities of another length, user attributes of a symlink."""
    for xattrs in ({b"user." + b"n" * 251: b""}, {b"user.a": bytes(65_536)}, {b"security.capability": bytes(19)}):
        image = read(table_of(Row("f", b"a", xattrs=xattrs), Row("l", b"s", b"a", xattrs={b"user.a": b"1"})))
        assert image.xattrs(found(image, b"a")) == image.xattrs(found(image, b"s")) == {}


def test_device_numbers_that_do_not_fit_are_refused() -> None:
    """Majors have 12 bits and minors 20; the limits themselves survive."""
    table, space = table_of(Row("c", b"c"))
    table.rdevs[0] = (4095, 0xFFFFF)
    assert found(read((table, space)), b"c").rdev == (4095, 0xFFFFF)
    for rdev in ((4096, 0), (0, 1 << 20), (-1, 0)):
        table.rdevs[0] = rdev
        with pytest.raises(FormatError):
            read((table, space))


def test_payload_off_the_grid_is_refused_by_name() -> None:
    """Data that no block address can name make the layer unpresentable; the message says which layer and file."""
    table, space = table_of(Row("f", b"a", b"1" * 600), Row("f", b"b", b"2"))
    table.offsets[1] = 700
    with pytest.raises(FormatError, match=r"layer 0: not presentable.*b'b'"):
        read((table, space))
    with pytest.raises(FormatError, match="multiple of 4096"):
        read(table_of(Row("f", b"a", b"1"), Row("f", b"b", b"2")), block_size=4096)


def test_file_in_unknown_pieces_is_refused() -> None:
    """A file with a size but no place is never shown as zeros."""
    table, space = table_of(Row("f", b"a", b"1"))
    table.offsets[0] = -1
    with pytest.raises(FormatError, match="not presentable"):
        read((table, space))


def sparse_tar(pieces: Sequence[tuple[int, bytes]], size: int) -> bytes:
    """A tar with one PAX 1.0 sparse file of these (offset, data)."""
    numbers = [len(pieces)] + [number for offset, data in pieces for number in (offset, len(data))]
    head = b"".join(b"%d\n" % number for number in numbers)
    payload = head + bytes(-len(head) % 512) + b"".join(data for _, data in pieces)
    info = tarfile.TarInfo("GNUSparseFile.0/s")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    return tar_of([(info, payload)])


def expected_sparse(pieces: Sequence[tuple[int, bytes]], size: int) -> bytes:
    whole = bytearray(size)
    for offset, data in pieces:
        whole[offset : offset + len(data)] = data
    return bytes(whole)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=6), st.integers(0, 9000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_sparse_files_have_holes(steps: list[tuple[int, int]], more: int, ragged: bool) -> None:
    """A sparse file reads as its pieces with zeros between them, and its holes take no room in the layer."""
    unit = 4096
    at = 0
    pieces: list[tuple[int, bytes]] = []
    for gap, length in steps:
        at += gap * unit
        pieces.append((at, bytes([1 + len(pieces)]) * (length * unit)))
        at += length * unit
    size = at + more
    if ragged and pieces and not more:
        size = at - 1000
        pieces[-1] = (pieces[-1][0], pieces[-1][1][:-1000])
    image = ErofsImage(over_bytes(tar_image([sparse_tar(pieces, size)])))
    inode = found(image, b"s")
    assert image.read_file(inode) == expected_sparse(pieces, size)
    assert inode.layout == (CHUNK_BASED if size else FLAT_PLAIN)


def test_huge_sparse_files() -> None:
    """A file of 16 GiB that is nearly all hole needs 4 bytes for each 4 KiB; one that needs too many is refused."""
    pieces = [(1 << 33, b"x" * 4096)]
    data = tar_image([sparse_tar(pieces, 1 << 34)])
    image = ErofsImage(over_bytes(data))
    inode = found(image, b"s")
    assert inode.size == 1 << 34
    assert image.read_file(inode, (1 << 33) - 1, 3) == b"\0xx"
    assert len(data) < 17 << 20
    with pytest.raises(FormatError, match="too large a map"):
        tar_image([sparse_tar(pieces, 1 << 40)])


def test_sparse_pieces_off_the_grid_are_refused() -> None:
    """Pieces that begin or end elsewhere than at a block are not presentable, and never wrong bytes."""
    for pieces in ([(100, b"x" * 512)], [(0, b"x" * 100), (1024, b"y" * 512)]):
        with pytest.raises(FormatError, match="not presentable"):
            tar_image([sparse_tar(pieces, 9000)])


def test_table_from_a_tar_leaves_out_estargz_entries() -> None:
    """The TOC and landmarks of an eStargz layer, an ordinary tar otherwise, are not part of the tree."""
    members = []
    for name in (".prefetch.landmark", "a", "d/stargz.index.json", "stargz.index.json"):
        info = tarfile.TarInfo(name)
        members.append((info, b"x"))
    image = ErofsImage(over_bytes(tar_image([tar_of(members)])))
    assert [path for path, _ in image.walk()] == [b"", b"a", b"d", b"d/stargz.index.json"]


def test_tar_table_agrees_with_tarfile() -> None:
    """Names, payload places and metadata are those that another tar reader finds."""
    members = []
    for number in range(1, 50):
        info = tarfile.TarInfo("dir/" + "n" * number * 5)
        info.mtime = number + 0.5
        info.uid = number * 100_000
        members.append((info, b"%d" % number * number))
    tar = tar_of(members)
    table = TarTable()
    for at in range(0, len(tar), 700):
        table.feed(tar[at : at + 700])
    layer = table.finish(len(tar))
    with tarfile.open(fileobj=io.BytesIO(tar)) as reference:
        for index, info in enumerate(reference):
            assert layer.names[index] == info.name.encode()
            assert (layer.sizes[index], layer.uids[index]) == (info.size, info.uid)
            assert layer.mtimes_s[index] + layer.mtimes_ns[index] / 1e9 == info.mtime
            assert layer.offsets[index] == (info.offset_data if info.size else -1)


NAME = st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from("fflp"),
        st.lists(NAME, min_size=1, max_size=3).map(b"/".join),
        st.binary(min_size=1, max_size=2000).map(lambda raw: raw.replace(b"\0", b"_")),
        mode=st.integers(0, 0o7777),
        uid=st.integers(0, (1 << 32) - 2),
        gid=st.integers(0, (1 << 32) - 2),
        mtime_s=st.sampled_from([0, 5]) | st.integers(-(1 << 31), (1 << 34) - (1 << 31) - 1),
        mtime_ns=st.integers(0, 999_999_999),
        xattrs=st.dictionaries(st.sampled_from([b"trusted.a", b"security.b"]), st.binary(max_size=300), max_size=2),
    ),
    max_size=40,
    unique_by=lambda row: row.name,
)


@given(ROWS, st.sampled_from([512, 1024, 4096]))
@settings(deadline=None, max_examples=100)
def test_what_is_written_is_what_is_read(rows: list[Row], block_size: int) -> None:
    """Every entry of a generated layer comes back with all its metadata and bytes, at any block size."""
    names = {row.name for row in rows}
    parents = {row.name.rsplit(b"/", n)[0] for row in rows for n in (1, 2)} - names
    rows = [row for row in rows if not any(other.startswith(row.name + b"/") for other in names | parents)]
    rows = [row for row in rows if row.name.strip(b".") and b"." not in row.name.split(b"/")]
    rows = [row for row in rows if b".." not in row.name.split(b"/") and b".wh." not in row.name]
    table, space = table_of(*rows)
    if block_size > 512:
        for index in np.flatnonzero(table.offsets > 0):
            table.offsets[index] = 0
    seen = seen_in(read((table, space + bytes(4096)), block_size=block_size))
    for row in rows:
        entry = seen[row.name]
        assert (entry.mode, entry.uid, entry.gid) == (0o777 if row.kind == "l" else row.mode, row.uid, row.gid)
        assert entry.mtime_ns == row.mtime_s * 1_000_000_000 + row.mtime_ns
        assert dict(entry.xattrs) == row.xattrs
        if row.kind == "l":
            assert entry.content == repr(row.text)
