"""The EROFS reader against images that lie: every damage is a FormatError or harmless, never a crash or a hang."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FormatError
from harness.formats.erofs.layout import SUPER_OFFSET
from harness.formats.erofs.reader import ErofsImage, Inode, caching, over_bytes
from harness.formats.table import Kind
from tests.formats.erofs.layers import Row, image_of, seen_in, table_of, tar_image
from tests.formats.erofs.test_writer import found, sparse_tar


def sample() -> bytes:
    """An image with every form the reader knows, without a checksum, so that damage gets past it."""
    shared = {b"user.s": b"shared", b"security.selinux": b"label\0"}
    rows = [Row("d", b"d"), Row("d", b"d/e", xattrs=shared), Row("f", b"d/f", b"1" * 700, xattrs=shared)]
    rows += [Row("f", b"many/%03d" % n, mtime_s=n % 3) for n in range(100)]
    rows += [
        Row("l", b"short", b"d/f"),
        Row("l", b"long", b"t" * 900),
        Row("c", b"c"),
        Row("p", b"p"),
        Row("h", b"z", b"d/f"),
    ]
    return without_checksum(image_of(table_of(*rows)))


def without_checksum(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[SUPER_OFFSET + 8] &= ~1
    return bytes(changed)


SAMPLE = sample()
SPARSE = without_checksum(tar_image([sparse_tar([(8192, b"a" * 4096), (40_960, b"b" * 8192)], 1 << 17)]))


def read_everything(data: bytes) -> None:
    """Walk all, read the beginning of every file and everything else whole; only FormatError may come out."""
    try:
        image = ErofsImage(over_bytes(data))
        for path, inode in image.walk():
            image.xattrs(inode)
            if inode.kind == Kind.SYMLINK:
                image.readlink(inode)
            elif inode.kind == Kind.REG:
                image.read_file(inode, 0, 4096)
            assert b"\0" not in path
            assert b".." not in path.split(b"/")
    except FormatError:
        pass


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([SAMPLE, SPARSE]), st.data())
def test_damage_is_found_or_harmless(data: bytes, draw: st.DataObject) -> None:
    """Any bytes changed anywhere, mostly in the metadata, and any cut."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(
            st.integers(SUPER_OFFSET, SUPER_OFFSET + 127) | st.integers(1024, 8191) | st.integers(0, len(data) - 1)
        )
        changed[at] = draw.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    cut = draw.draw(st.none() | st.integers(0, len(data)))
    read_everything(bytes(changed if cut is None else changed[:cut]))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=3000))
def test_noise_is_refused(data: bytes) -> None:
    """Bytes that are no image at all raise FormatError at once, with a superblock's magic too."""
    for raw in (data, bytes(1024) + struct.pack("<I", 0xE0F5E1E2) + data):
        with pytest.raises(FormatError):
            list(ErofsImage(over_bytes(raw)).walk())


def place(inode: Inode) -> int:
    return inode.nid * 32


def changed_inode(data: bytes, path: bytes, **fields: int) -> ErofsImage:
    """The image with fields of one inode (of the short form) overwritten."""
    inode = found(ErofsImage(over_bytes(data)), path)
    at = {"format": ("<H", 0), "icount": ("<H", 2), "mode": ("<H", 4), "size": ("<I", 8), "unit": ("<I", 16)}
    changed = bytearray(data)
    assert not changed[place(inode)] & 1
    for field, value in fields.items():
        form, offset = at[field]
        struct.pack_into(form, changed, place(inode) + offset, value)
    return ErofsImage(over_bytes(bytes(changed)))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 0x7FE}, {"format": 3 << 1}, {"format": 4 << 1}, {"mode": 0o777}, {"mode": 0o140755},
        {"size": 1 << 31}, {"size": 11}, {"size": 0xFFFFFFFF}, {"icount": 0xFFFF, "size": 511},
        {"format": 0, "unit": 0xFFFFFFF0},
    ],
)  # fmt: skip
def test_lying_directory_inodes_are_refused(fields: dict[str, int]) -> None:
    """Unknown layouts and types, sizes beyond the image or too small for an entry, tails across blocks."""
    with pytest.raises(FormatError):
        list(changed_inode(SAMPLE, b"d", **fields).walk())


def test_directory_circles_are_refused() -> None:
    """A directory that is its own descendant, or has two names, is met once and then refused."""
    image = ErofsImage(over_bytes(SAMPLE))
    d, e = found(image, b"d"), found(image, b"d/e")
    changed = bytearray(SAMPLE)
    for extent in image.extents(d):
        block = changed[extent.image_offset : extent.image_offset + extent.size]
        at = block.index(struct.pack("<Q", e.nid))
        struct.pack_into("<Q", changed, extent.image_offset + at, d.nid)
    with pytest.raises(FormatError, match="twice"):
        list(ErofsImage(over_bytes(bytes(changed))).walk())


@pytest.mark.parametrize("name", [b"a/b", b"a\0b", b"..x"])
def test_impossible_names_are_refused(name: bytes) -> None:
    """Names with a slash or NUL, and names out of order, never come out of a directory."""
    data = image_of(table_of(Row("f", b"aaa"), Row("f", b"bbb")))
    changed = without_checksum(data.replace(b"bbb", name, 1))
    with pytest.raises(FormatError):
        list(ErofsImage(over_bytes(changed)).walk())


def test_chunks_outside_the_image_are_refused() -> None:
    """A chunk map with blocks beyond the image, or a map beyond it, raises FormatError."""
    image = ErofsImage(over_bytes(SPARSE))
    inode = found(image, b"s")
    changed = bytearray(SPARSE)
    struct.pack_into("<I", changed, inode.data_offset, 0xFFFFFFFE)
    broken = ErofsImage(over_bytes(bytes(changed)))
    with pytest.raises(FormatError, match="outside"):
        broken.extents(found(broken, b"s"))
    changed = bytearray(SPARSE)
    struct.pack_into("<Q", changed, place(inode) + 8, 1 << 62)
    if changed[place(inode)] & 1:
        broken = ErofsImage(over_bytes(bytes(changed)))
        with pytest.raises(FormatError):
            broken.extents(found(broken, b"s"))


def test_reading_through_a_page_cache_changes_nothing() -> None:
    """The caching read function gives the same tree with whole pages read only."""
    calls = []

    def read(offset: int, size: int) -> bytes:
        calls.append((offset, size))
        return SAMPLE[offset : offset + size]

    assert seen_in(ErofsImage(caching(read))) == seen_in(ErofsImage(over_bytes(SAMPLE)))
    assert all(offset % 4096 == 0 and size == 4096 for offset, size in calls)
    assert len(calls) == len(set(calls))


def test_file_extents_name_every_stored_file() -> None:
    """Mapping bytes of layers back to files finds each non-empty file under all its names, holes left out."""
    image = ErofsImage(over_bytes(SAMPLE))
    assert {path: extent.size for path, extent in image.file_extents()} == {b"d/f": 700, b"z": 700}
    sparse = ErofsImage(over_bytes(SPARSE))
    assert [(extent.file_offset, extent.size) for _, extent in sparse.file_extents()] == [(8192, 4096), (40_960, 8192)]


def test_lookup_of_what_is_not_there() -> None:
    """Absent names, and names below files, are None; the root is the empty path."""
    image = ErofsImage(over_bytes(SAMPLE))
    assert image.lookup(b"nothing") is None
    assert image.lookup(b"d/f/x") is None
    assert image.lookup(b"") == image.root
    assert image.lookup(b"d//e") == image.lookup(b"/d/e")


def test_resolve_follows_links_inside_the_image() -> None:
    """Relative and absolute links, amid and at the end, stay below the root; circles and dead ends give None."""
    rows = [Row("l", b"lib", b"usr/lib"), Row("f", b"usr/lib/x", b"1"), Row("l", b"usr/up", b"../../../lib/./x")]
    rows += [Row("l", b"abs", b"/usr/up"), Row("l", b"a", b"b"), Row("l", b"b", b"a"), Row("l", b"dead", b"nowhere")]
    image = ErofsImage(over_bytes(image_of(table_of(*rows))))
    x = found(image, b"usr/lib/x")
    for path in (b"lib/x", b"/usr/lib/x", b"usr/up", b"abs", b"lib/../lib/x", b"usr/../usr//lib/x"):
        assert image.resolve(path) == x
    for path in (b"a", b"dead", b"lib/x/y", b"usr/nothing", b"a/x"):
        assert image.resolve(path) is None
    assert image.resolve(b"../..") == image.root
