"""``verify`` would have found each fault: with a mending taken out of the reading that all modes share, it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.formats.erofs import merge
from harness.formats.tar import reading as tar_reading
from harness.formats.tar.reading import LayerReader, LayerReading
from harness.images.verification import verify_image
from harness.lazyfs.fuse import directory_index
from tests.faults.cases import FAULTS
from tests.faults.showing import convert, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Patch = pytest.MonkeyPatch


def _changed(patch: Patch, change: Callable[[LayerReading], dict[str, Any]]) -> None:
    """Let every reading come out with some fields changed."""
    from dataclasses import replace

    finish = LayerReader.finish

    def changed(self: LayerReader) -> LayerReading:
        found = finish(self)
        return replace(found, **change(found))

    patch.setattr(LayerReader, "finish", changed)


def symlinks_are_directories(patch: Patch) -> None:
    """An entry below a symlink makes a directory of that name."""

    def entered(self: LayerReader, path: bytes, name: bytes) -> tuple[bytes, dict[bytes, int]]:
        at, children = b"", self.directories[b""]
        for part in path.split(b"/"):
            at = at + b"/" + part if at else part
            if at not in self.directories:
                children[part] = tar_reading.IMPLIED
                self.directories[at] = {}
            children = self.directories[at]
        return at, children

    patch.setattr(LayerReader, "_enter", entered)


def nothing_is_opaque(patch: Patch) -> None:
    """Directories always merge with lower ones."""
    _changed(patch, lambda found: {"opaque": frozenset()})


def whiteouts_do_nothing(patch: Patch) -> None:
    """What the layer hides stays."""
    _changed(patch, lambda found: {"whiteouts": {}})


def aufs_is_shown(patch: Patch) -> None:
    """Bookkeeping appears as files."""
    patch.setattr(LayerReader, "_remove", lambda self, path: False)


def links_are_not_counted(patch: Patch) -> None:
    """Every name is a file of its own, by its count."""
    _changed(patch, lambda found: {"nlinks": {}})


def first_entries_win(patch: Patch) -> None:
    """Of a name's entries the first stays."""
    place = LayerReader.place

    def placed(self: LayerReader, number: int, name: bytes, kind: int, *rest: Any, **more: Any) -> Any:
        parent, _, base = name.rpartition(b"/")
        before = self.directories.get(parent, {}).get(base)
        action = place(self, number, name, kind, *rest, **more)
        if before is not None and before >= 0 and kind != tar_reading._DIR and self._kind(before) == kind:
            self.directories[parent][base] = before
        return action

    patch.setattr(LayerReader, "place", placed)


def lower_links_are_lost(patch: Patch) -> None:
    """Hard links into lower layers are not resolved."""

    def without(found: LayerReading) -> dict[str, Any]:
        for number in found.lower_links:
            for path in found.paths_of(number):
                del found.directories[path.rpartition(b"/")[0]][path.rpartition(b"/")[2]]
        return {"lower_links": {}}

    _changed(patch, without)


def attributes_are_as_they_come(patch: Patch) -> None:
    """Whatever a table says of attributes is shown."""
    patch.setattr(directory_index, "held_table", lambda table: table, raising=False)
    patch.setattr(merge, "held_table", lambda table: table)
    patch.setattr("harness.images.shown_tree.held_table", lambda table: table)


UNMENDED = (
    (symlinks_are_directories, ("usrmerge", "usrmerge-outside", "usrmerge-markers")),
    (nothing_is_opaque, ("whiteout-and-new", "new-and-whiteout", "replaced-twice", "replaced-thrice", "opaque-inside",
                         "opaque-root", "opaque-attribute", "usrmerge-markers")),
    (whiteouts_do_nothing, ("overlay-whiteout", "usrmerge-markers")),
    (aufs_is_shown, ("aufs-plnk",)),
    (links_are_not_counted, ("link-before-target", "link-keeps-replaced", "links-to-lower")),
    (first_entries_win, ("repeated", "link-keeps-replaced")),
    (lower_links_are_lost, ("link-to-lower", "links-to-lower")),
    (attributes_are_as_they_come, ("attributes-nobody-holds",)),
)  # fmt: skip
WRITTEN_PLAIN = (symlinks_are_directories, aufs_is_shown, first_entries_win)
"""A conversion to eStargz writes what the odd entries mean, so there is nothing left to read wrongly."""
CASES = [
    pytest.param(unmend, name, form, id=f"{unmend.__name__}-{name}-{form}")
    for unmend, names in UNMENDED
    for name in names
    for form in ("image", "estargz", "soci")
    if form != "estargz" or unmend not in WRITTEN_PLAIN
]


@pytest.mark.parametrize(("unmend", "name", "form"), CASES)
def test_verify_finds_an_unmended_reading(
    unmend: Callable[[Patch], None], name: str, form: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The image and its forms were made by the right reading; a mode that reads otherwise does not hold."""
    fault = next(fault for fault in FAULTS if fault.name == name)
    source = convert(write(fault.layers, tmp_path / "image"), form, tmp_path / "form")
    assert verify_image(source, source.resolve()).problems == []
    unmend(monkeypatch)
    assert verify_image(source, source.resolve()).problems != []


@pytest.mark.parametrize("unmend", [symlinks_are_directories, nothing_is_opaque, lower_links_are_lost])
def test_verify_finds_an_index_written_by_an_unmended_reading(unmend: Callable[[Patch], None], tmp_path: Path) -> None:
    """An EROFS index holds the merged tree itself: one that was made wrong is found by a right verify."""
    name = next(names[0] for function, names in UNMENDED if function is unmend)
    fault = next(fault for fault in FAULTS if fault.name == name)
    with pytest.MonkeyPatch.context() as patch:
        unmend(patch)
        source = convert(write(fault.layers, tmp_path / "image"), "erofs", tmp_path / "form")
    problems = verify_image(source, source.resolve()).problems
    assert any("EROFS metadata, all layers together" in problem for problem in problems), problems
