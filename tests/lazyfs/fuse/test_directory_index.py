"""Names of a layer as directories."""

from __future__ import annotations

import pytest

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.lazyfs.fuse.directory_index import DirectoryIndex, link_layers
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


def test_entries_below_a_file_are_refused() -> None:
    """As when the layer is unpacked; the error names the layer and the entry."""
    with pytest.raises(FormatError, match=r"layer, entry 'a/b': stands below 'a', which is a file"):
        index(Row("f", b"a", b"1"), Row("f", b"a/b", b"2"))


def test_entries_below_a_symlink_stand_where_it_leads() -> None:
    """A directory that only a symlink's target names exists, and its entries have that name."""
    found = index(Row("l", b"bin", b"usr/bin"), Row("d", b"bin/sub"), Row("f", b"bin/sub/x", b"1"))
    assert listing(found, b"usr/bin/sub") == {b"x"}
    assert found.name(2) == b"usr/bin/sub/x"
    assert found.directory(found.find(b"usr/bin/sub")).parent == found.find(b"usr/bin")


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


def test_links_into_a_lower_layer_are_names_of_its_inode() -> None:
    """They are found through all layers, counted there, and refused where no layer has the target."""
    lower = index(Row("f", b"a", b"1"), Row("h", b"b", b"a"))
    upper = index(Row("h", b"c", b"a"), Row("h", b"d", b"c"))
    assert link_layers([lower, upper], [3, 7]) == {(1, 0): (0, 0)}
    assert upper.find(b"d") == upper.find(b"c") == 0
    assert lower.nlinks[0] == 4
    with pytest.raises(FormatError, match=r"layer 7, entry 'c': a hard link to 'a', which neither"):
        link_layers([index(), upper], [3, 7])
    with pytest.raises(FormatError, match="not indexed may have it: index every layer"):
        link_layers([index(), upper], [3, 7])
    with pytest.raises(FormatError, match=r"nor one below it has$"):
        link_layers([index(), upper], [0, 1])


def test_links_in_a_circle_are_refused() -> None:
    """They lead nowhere."""
    with pytest.raises(FormatError, match="circle"):
        index(Row("h", b"b", b"c"), Row("h", b"c", b"b"))


def test_subdirectories_are_counted() -> None:
    """For link counts of directories, with implied ones."""
    found = index(Row("d", b"a"), Row("d", b"a/x"), Row("f", b"a/y/z", b"1"), Row("f", b"a/f", b"2"))
    assert found.subdirectories(found.find(b"a")) == 2
    assert found.subdirectories(found.root) == 1
