"""What merging layers shows: whiteouts, opaque directories, replacements, hard links, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import FormatError, UnsafePath
from harness.formats.erofs.merge import merge_layers
from harness.formats.table import LayerTable
from tests.formats.erofs.layers import Row, read, table_of, tree_of


def d(name: bytes, mode: int = 0o755, *, uid: int = 0, mtime_s: int = 0) -> Row:
    return Row("d", name, mode=mode, uid=uid, mtime_s=mtime_s)


def f(name: bytes, text: bytes = b"", *, uid: int = 0, mtime_s: int = 0) -> Row:
    return Row("f", name, text, uid=uid, mtime_s=mtime_s)


def link(name: bytes, target: bytes) -> Row:
    return Row("h", name, target)


def test_no_layers_and_empty_layer_give_a_root() -> None:
    """No layers, or one without entries, are an image of one directory: 0755, root's, time 0."""
    for layers in ([], [table_of()]):
        image = read(*layers)
        assert [path for path, _ in image.walk()] == [b""]
        assert (image.root.mode, image.root.uid, image.root.mtime_s, image.root.nlink) == (0o755, 0, 0, 2)


def test_root_entry_gives_the_root_its_metadata() -> None:
    """An entry for the layer's root sets mode and owner; the uppermost layer decides, with an entry or without."""
    layers = [table_of(d(b"", 0o700, uid=7)), table_of(d(b"", 0o711, uid=8), f(b"a")), table_of(f(b"b"))]
    image = read(*layers[:2])
    assert (image.root.mode, image.root.uid) == (0o711, 8)
    image = read(*layers)
    assert (image.root.mode, image.root.uid, image.root.mtime_s) == (0o755, 0, 0)


def test_whiteouts_hide_only_what_lies_below() -> None:
    """A whiteout removes a lower file or whole directory, never an entry of its own layer, and is not shown."""
    lower = table_of(d(b"a"), d(b"a/b"), f(b"a/b/c", b"1"), f(b"x", b"1"), f(b"y", b"1"))
    upper = table_of(f(b"y", b"2"), f(b".wh.y"), f(b".wh.a"), f(b".wh.gone"), f(b"a/new", b"2"), f(b".wh.x"))
    assert tree_of(lower, upper) == {"a": "/", "a/new": "2", "y": "2"}


def test_whiteout_makes_its_parents() -> None:
    """A whiteout in a directory that nothing else names makes that directory, as unpacking it does."""
    assert tree_of(table_of(f(b"n/m/.wh.x"))) == {"n": "/", "n/m": "/"}


def test_opaque_directory_hides_lower_children() -> None:
    """An opaque marker, before or after its siblings, empties the directory of lower entries and keeps its own."""
    lower = table_of(d(b"o", 0o700), f(b"o/1", b"1"), d(b"o/s"), f(b"o/s/2", b"1"))
    for rows in ([f(b"o/.wh..wh..opq"), f(b"o/3", b"2")], [f(b"o/3", b"2"), f(b"o/.wh..wh..opq")]):
        assert tree_of(lower, table_of(*rows)) == {"o": "/", "o/3": "2"}


def test_opaque_attribute_counts_as_a_marker() -> None:
    """``trusted.overlay.opaque=y`` in a tar empties the directory too; no attribute of OverlayFS's own is shown."""
    opaque = Row("d", b"o", xattrs={b"trusted.overlay.opaque": b"y", b"trusted.overlay.redirect": b"/x"})
    image = read(table_of(d(b"o"), f(b"o/1")), table_of(opaque))
    assert [path for path, _ in image.walk()] == [b"", b"o"]
    inode = image.lookup(b"o")
    assert inode is not None
    assert image.xattrs(inode) == {}


def test_opaque_root() -> None:
    """An opaque marker at the root hides all lower layers."""
    assert tree_of(table_of(f(b"a"), d(b"b"), f(b"b/c")), table_of(f(b".wh..wh..opq"), f(b"z", b"2"))) == {"z": "2"}


def test_aufs_leftovers_are_passed_over() -> None:
    """Other names of the ``.wh..wh.`` kind are neither whiteouts nor entries."""
    assert tree_of(table_of(f(b"wh", b"1")), table_of(d(b".wh..wh.plnk"), f(b".wh..wh.aufs"))) == {"wh": "1"}


def test_directory_over_directory_keeps_children_and_takes_metadata() -> None:
    """The upper directory's metadata wins; the children of both are there."""
    image = read(table_of(d(b"a", 0o700), f(b"a/1")), table_of(d(b"a", 0o711, uid=5, mtime_s=9), f(b"a/2")))
    inode = image.lookup(b"a")
    assert inode is not None
    assert (inode.mode, inode.uid, inode.mtime_s) == (0o711, 5, 9)
    assert [path for path, _ in image.walk()] == [b"", b"a", b"a/1", b"a/2"]


@pytest.mark.parametrize("upper", [[f(b"tmp/a/b")], [f(b"tmp/a/.wh.x")], [link(b"tmp/a/l", b"f"), f(b"f")]])
def test_implied_parents_are_the_layers_own(upper: list[Row]) -> None:
    """A parent that the layer leaves out is 0755, root's, time 0, also over a lower layer's; its children stay."""
    lower = table_of(d(b"tmp", 0o1777, uid=3, mtime_s=5), f(b"tmp/old", b"1"), d(b"x", 0o700))
    image = read(lower, table_of(*upper))
    for path in (b"tmp", b"tmp/a"):
        made = image.lookup(path)
        assert made is not None
        assert (made.mode, made.uid, made.mtime_s) == (0o755, 0, 0)
    other = image.lookup(b"x")
    assert image.lookup(b"tmp/old") is not None
    assert other is not None
    assert other.mode == 0o700


def test_an_implied_parent_may_be_described_later() -> None:
    """A directory's entry counts wherever it stands in the layer."""
    image = read(table_of(d(b"tmp", 0o700)), table_of(f(b"tmp/a"), d(b"tmp", 0o1777, uid=4), f(b"tmp/b")))
    inode = image.lookup(b"tmp")
    assert inode is not None
    assert (inode.mode, inode.uid) == (0o1777, 4)


@pytest.mark.parametrize("upper", [f(b"a", b"2"), Row("l", b"a", b"b"), Row("p", b"a")])
def test_non_directory_replaces_a_directory(upper: Row) -> None:
    """A file, symlink or fifo over a directory removes everything below it."""
    lower = table_of(d(b"a"), d(b"a/b"), f(b"a/b/c"), f(b"ab"))
    assert list(tree_of(lower, table_of(upper))) == ["a", "ab"]


def test_directory_replaces_a_file() -> None:
    """A directory, named or only implied by a path, replaces a lower file or symlink."""
    lower = table_of(f(b"a", b"1"), Row("l", b"b", b"x"), d(b"x"))
    assert tree_of(lower, table_of(d(b"a"), f(b"b/c", b"2"))) == {"a": "/", "b": "/", "b/c": "2", "x": "/"}


def test_replaced_directory_does_not_come_back() -> None:
    """Directory, file over it, directory again: the first one's children stay gone, across layers and within one."""
    first, second, third = [d(b"a"), f(b"a/1")], [f(b"a")], [d(b"a"), f(b"a/2", b"2")]
    assert tree_of(table_of(*first), table_of(*second), table_of(*third)) == {"a": "/", "a/2": "2"}
    assert tree_of(table_of(*first, *second, *third)) == {"a": "/", "a/2": "2"}


def test_later_entry_of_a_name_wins() -> None:
    """Of entries with one name in a layer the last counts; a repeated directory keeps its children."""
    assert tree_of(table_of(f(b"a", b"1"), d(b"b"), f(b"b/c", b"1"), f(b"a", b"2"), d(b"b"))) == {
        "a": "2", "b": "/", "b/c": "1",
    }  # fmt: skip


def test_hard_links_share_an_inode_in_any_order() -> None:
    """Links before their target, after it, and to other links are names of one inode with the right count."""
    image = read(table_of(link(b"a", b"m"), f(b"m", b"1", uid=4), link(b"z", b"a"), link(b"b", b"z")))
    inodes = {path: inode for path, inode in image.walk() if path}
    assert {inode.nid for inode in inodes.values()} == {inodes[b"m"].nid}
    assert (inodes[b"m"].nlink, inodes[b"a"].uid, image.read_file(inodes[b"b"])) == (4, 4, b"1")


def test_hard_link_to_a_lower_layer_is_one_more_name() -> None:
    """A link to a lower file is another name of its inode, beside all names that it has there."""
    lower = table_of(f(b"a", b"1", mtime_s=5), link(b"b", b"a"))
    image = read(lower, table_of(link(b"c", b"a")))
    inodes = {path: inode for path, inode in image.walk() if path}
    assert inodes[b"a"].nid == inodes[b"c"].nid == inodes[b"b"].nid
    assert [inodes[name].nlink for name in (b"a", b"b", b"c")] == [3, 3, 3]
    assert [inodes[name].mtime_s for name in (b"a", b"b", b"c")] == [5, 5, 5]
    assert {image.read_file(inode) for inode in inodes.values()} == {b"1"}


def test_hard_link_to_a_lower_symlink_and_device_keeps_what_they_are() -> None:
    """Lower symlinks keep their target, devices their number, files their attributes."""
    lower = table_of(Row("l", b"s", b"t"), Row("c", b"n"), Row("f", b"x", b"1", xattrs={b"user.a": b"b"}))
    image = read(lower, table_of(link(b"s2", b"s"), link(b"n2", b"n"), link(b"x2", b"x")))
    inodes = dict(image.walk())
    assert image.readlink(inodes[b"s2"]) == b"t"
    assert inodes[b"n2"].rdev == (1, 3)
    assert image.xattrs(inodes[b"x2"]) == {b"user.a": b"b"}


def test_link_count_follows_replaced_names() -> None:
    """A name replaced in its own layer no longer counts; a name hidden by a higher layer does, as on OverlayFS."""
    rows = [f(b"a", b"1"), link(b"b", b"a"), link(b"c", b"a"), f(b"c", b"2")]
    image = read(table_of(*rows), table_of(f(b".wh.b")))
    inode = image.lookup(b"a")
    assert inode is not None
    assert inode.nlink == 2


def test_directory_link_counts() -> None:
    """A directory's count is two plus its subdirectories."""
    image = read(table_of(d(b"a"), d(b"a/b"), d(b"a/c"), f(b"a/f")))
    inode = image.lookup(b"a")
    assert inode is not None
    assert (inode.nlink, image.root.nlink) == (4, 3)


def test_127_layers() -> None:
    """As many layers as an image may have merge, each over the one before."""
    layers = [table_of(f(b"top", b"%d" % n), f(b"dir/%d" % n, b"x"), f(b"dir/.wh.%d" % (n - 2))) for n in range(127)]
    tree = tree_of(*layers)
    assert tree["top"] == "126"
    assert sorted(tree) == ["dir", "dir/125", "dir/126", "top"]


@pytest.mark.parametrize("name", [b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"../a", b"a/.", b"a\0b", b"x" * 256])
def test_names_no_directory_can_hold_are_refused(name: bytes) -> None:
    """A table's names are cleaned: absolute, climbing, empty, NUL-holding and overlong components raise FormatError."""
    with pytest.raises(FormatError):
        tree_of(table_of(f(name)))


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh.."])
def test_whiteouts_of_nothing_are_refused(name: bytes) -> None:
    """A whiteout that names no entry, its directory or its parent raises UnsafePath."""
    with pytest.raises(UnsafePath):
        tree_of(table_of(f(name)))


@pytest.mark.parametrize("below", [f(b"a", b"1"), Row("c", b"a"), Row("p", b"a")])
def test_entries_below_a_non_directory_of_their_layer_are_refused(below: Row) -> None:
    """Nothing can stand below a file, device or fifo."""
    with pytest.raises(UnsafePath, match="below"):
        tree_of(table_of(below, f(b"a/b")))


@pytest.mark.parametrize(
    "rows",
    [
        [link(b"a", b"a")],
        [link(b"a", b"b"), link(b"b", b"a")],
        [link(b"a", b"missing")],
        [link(b"a", b"")],
        [d(b"x"), link(b"a", b"x")],
        [f(b"")],
    ],
)
def test_impossible_links_and_roots_are_refused(rows: list[Row]) -> None:
    """Links in a circle, to nothing or to a directory, and a root that is a file, raise FormatError."""
    with pytest.raises(FormatError):
        tree_of(table_of(*rows))


def test_link_to_a_whited_out_file_is_refused() -> None:
    """A link whose target the same layer removed has no target."""
    with pytest.raises(FormatError, match="neither this layer nor one below"):
        tree_of(table_of(f(b"a")), table_of(f(b".wh.a"), link(b"b", b"a")))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sizes", -1), ("sizes", 1 << 62), ("sizes", (1 << 63) - 1), ("offsets", -2), ("offsets", 1 << 40),
        ("offsets", (1 << 63) - 1), ("kinds", 0), ("kinds", 6), ("kinds", 99), ("mtimes_ns", 1_000_000_000),
    ],
)  # fmt: skip
def test_lying_columns_are_refused(column: str, value: int) -> None:
    """Extents outside the layer, overflowing sums, unknown types and impossible times raise FormatError."""
    table, _ = table_of(f(b"a", b"1"), f(b"b", b"2"))
    getattr(table, column)[1] = value
    with pytest.raises(FormatError):
        merge_layers([table])


def test_columns_of_different_lengths_are_refused() -> None:
    """A table whose columns do not match raises FormatError."""
    table, _ = table_of(f(b"a", b"1"))
    short = LayerTable(
        table.names, table.kinds, table.modes, table.uids, table.gids, np.empty(0, np.int64), table.offsets,
        table.mtimes_s, table.mtimes_ns,
    )  # fmt: skip
    with pytest.raises(FormatError):
        merge_layers([short])
