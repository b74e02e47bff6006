"""Names of a layer as directories."""

from __future__ import annotations

import pytest

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.lazyfs.fuse.directory_index import DirectoryIndex
from tests.formats.erofs.layers import Row, table_of


def index(*rows: Row) -> DirectoryIndex:
    return DirectoryIndex(table_of(*rows)[0])


def listing(found: DirectoryIndex, path: bytes = b"") -> set[bytes]:
    number = found.find(path)
    assert number >= 0
    return set(found.directory(number).children)


def test_missing_parents_exist() -> None:
    """A path's directories need no entries of their own."""
    found = index(Row("f", b"a/b/c", b"x"))
    assert listing(found) == {b"a"}
    assert listing(found, b"a") == {b"b"}
    assert listing(found, b"a/b") == {b"c"}
    assert found.kind(found.find(b"a/b")) == Kind.DIR


def test_parent_after_its_child_is_used() -> None:
    """An entry for a directory counts wherever it stands, and there is only one of it."""
    found = index(Row("f", b"a/b", b"x"), Row("d", b"a", mode=0o700))
    assert found.find(b"a") == 1
    assert listing(found) == {b"a"}


def test_later_entry_of_a_name_wins() -> None:
    """As tar extraction has it."""
    found = index(Row("f", b"a", b"1"), Row("f", b"a", b"2"))
    assert found.find(b"a") == 1


def test_directory_that_replaced_a_file_has_only_what_came_after() -> None:
    """What was below an earlier directory of the name went away with it."""
    found = index(
        Row("d", b"a"), Row("f", b"a/old", b"1"), Row("f", b"a", b"2"), Row("d", b"a"), Row("f", b"a/new", b"3")
    )
    assert listing(found, b"a") == {b"new"}


def test_entries_below_a_file_cannot_be_reached() -> None:
    """The file keeps the name."""
    found = index(Row("f", b"a", b"1"), Row("f", b"a/b", b"2"))
    assert found.find(b"a") == 0
    assert found.find(b"a/b") == -1


def test_whiteouts_show_as_the_hidden_name() -> None:
    """``.wh.NAME`` hides NAME of lower layers; where both stand in one layer, NAME wins; AUFS files are hidden."""
    found = index(Row("f", b".wh.gone"), Row("f", b"kept", b"1"), Row("f", b".wh.kept"), Row("f", b".wh..wh.plnk"))
    root = found.directory(found.root)
    assert set(root.children) == {b"gone", b"kept"}
    assert found.is_whiteout(root.children[b"gone"])
    assert not found.is_whiteout(root.children[b"kept"])


def test_opaque_marker_is_a_property() -> None:
    """``.wh..wh..opq`` is not a name."""
    found = index(Row("d", b"a"), Row("f", b"a/.wh..wh..opq"), Row("f", b"a/b", b"1"))
    directory = found.directory(found.find(b"a"))
    assert directory.opaque
    assert set(directory.children) == {b"b"}
    assert found.has_opaque()


def test_hard_links_share_an_entry_and_are_counted() -> None:
    """Links to links too; the count is that of the names that are left."""
    found = index(
        Row("f", b"a", b"1"), Row("h", b"b", b"a"), Row("h", b"c", b"b"), Row("h", b"d", b"a"), Row("f", b"d", b"2")
    )
    assert [found.find(name) for name in (b"a", b"b", b"c")] == [0, 0, 0]
    assert found.nlinks[0] == 3


def test_link_count_without_the_first_name() -> None:
    """A link keeps the file that its target's name stood for when it was made."""
    found = index(Row("f", b"a", b"1"), Row("h", b"b", b"a"), Row("f", b"a", b"2"))
    assert found.find(b"b") == 0
    assert found.find(b"a") == 2
    assert found.nlinks[0] == 1


def test_link_without_a_target_is_dangling() -> None:
    """It may point into a lower layer; circles point nowhere."""
    found = index(Row("h", b"a", b"nowhere"), Row("h", b"b", b"c"), Row("h", b"c", b"b"))
    assert found.dangling == [0, 1, 2]
    with pytest.raises(FormatError, match="target"):
        found.resolve(0)


def test_subdirectories_are_counted() -> None:
    """For link counts of directories, with implied ones."""
    found = index(Row("d", b"a"), Row("d", b"a/x"), Row("f", b"a/y/z", b"1"), Row("f", b"a/f", b"2"))
    assert found.subdirectories(found.find(b"a")) == 2
    assert found.subdirectories(found.root) == 1
