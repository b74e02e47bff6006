"""What a lazy mount shows is what unpacking shows: names, attributes, links, xattrs and bytes."""

from __future__ import annotations

import gzip
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from harness.lazyfs.compare import differences
from tests.lazyfs.support import GOLDEN, MODES, File, convert, noise, overlay, serve, tar_of, text, unpack, write_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

LOWER = tar_of(
    File("etc"), File("etc/gone", b"hidden above"), File("etc/kept", b"seen"), File("opt"), File("opt/old", b"hidden"),
    File("opt/deep"), File("opt/deep/file", b"hidden too"), File("big", text(700_000)), File("noise", noise(300_000)),
    File("usr"), File("usr/tool", text(90_000, 1), mode=0o4755), File("turns", b"file below, directory above"),
    File("tree"), File("tree/a", b"1"), File("first", b"linked"), File("second", link="first"),
)  # fmt: skip
UPPER = tar_of(
    File("etc"), File("etc/.wh.gone", b""), File("etc/new", b"added", mode=0o600), File("opt"),
    File("opt/.wh..wh..opq", b""), File("opt/new", b"only this"), File("turns"), File("turns/inside", b"x"),
    File(".wh.tree", b""), File("link", target="etc/kept"), File("empty", b""),
    File("usr"), File("usr/cap", b"c" * 600, xattrs={"user.note": "value"}),
)  # fmt: skip


def check(tars: list[bytes], mode: str, place: Path, blobs: list[bytes] | None = None, **options: object) -> None:
    """Serve the image, unpack it as well, stack both with OverlayFS, compare."""
    image = convert(write_image(place / "image", tars, blobs), place / mode, mode, **options)
    directories = [unpack(tar, place / f"unpacked{number}") for number, tar in enumerate(tars)]
    with serve(image, mode, place / "served") as served, ExitStack() as mounts:
        expected = mounts.enter_context(overlay(directories[::-1], place / "expected" / "root"))
        if mode == "erofs":
            seen = served.root
        else:
            stack = [f"{served.root}/{number}" for number in reversed(served.layers)]
            seen = mounts.enter_context(overlay(stack, place / "seen" / "root"))
        # A root without an entry has no time of its own; an unpacked one has that of its making.
        found = [line for line in differences(str(expected), str(seen)) if not line.startswith("/: mtime")]
        if mode == "estargz":  # its TOC has whole seconds only
            found = [line for line in found if not line.startswith("/time/frac: mtime")]
        assert found == []


@pytest.mark.parametrize("mode", MODES)
def test_stacked_layers_equal_the_unpacked_ones(mode: str, tmp_path: Path) -> None:
    """Whiteouts, opaque directories, type changes, hard links, setuid bits and xattrs come out as when unpacked."""
    check([LOWER, UPPER], mode, tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_parents_that_a_layer_leaves_out(mode: str, tmp_path: Path) -> None:
    """They are 0755, root's, time 0 in every mode, also over a lower directory that says otherwise; children stay."""
    lower = tar_of(
        File(".", mode=0o711), File("tmp", mode=0o1777), File("tmp/below", b"1"), File("run", mode=0o700),
        File("run/sub", mode=0o700), File("run/sub/gone", b"2"), File("kept", mode=0o700),
    )  # fmt: skip
    upper = tar_of(File("tmp/above", b"3"), File("run/sub/.wh.gone", b""), File("new/deep/file", b"4"))
    check([lower, upper], mode, tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["pax", "gnu"])
def test_golden_layers_equal_the_unpacked_ones(mode: str, name: str, tmp_path: Path) -> None:
    """Every entry type, long and Unicode names, a name twice, odd times and large ids of the golden layers."""
    check([(GOLDEN / f"{name}.tar").read_bytes()], mode, tmp_path)


@pytest.mark.parametrize("compressor", ["manymembers", "pigz", "flush", "stored"])
@pytest.mark.parametrize("mode", ["soci", "erofs"])
def test_any_compressor_gives_the_same_tree(mode: str, compressor: str, tmp_path: Path) -> None:
    """Spans start and end right in streams of many members, of pigz, with full flushes and stored blocks."""
    tar = (GOLDEN / "pax.tar").read_bytes()
    blob = (GOLDEN / f"pax.{compressor}.tar.gz").read_bytes()
    check([tar], mode, tmp_path, [blob])


@pytest.mark.parametrize("mode", ["soci", "erofs"])
def test_one_layer_shows_exactly_the_unpacked_directory(mode: str, tmp_path: Path) -> None:
    """Link counts of directories too."""
    image = convert(write_image(tmp_path / "image", [LOWER]), tmp_path / mode, mode)
    expected = unpack(LOWER, tmp_path / "expected")
    with serve(image, mode, tmp_path / "served") as served:
        root = served.root if mode == "erofs" else served.root / "0"
        found = list(differences(str(expected), str(root), directory_nlinks=True))
        found = [line for line in found if not line.startswith("/: mtime")]
        assert found == []


def test_whiteouts_and_opaque_directories_in_the_tree_have_overlay_form(tmp_path: Path) -> None:
    """A layer's subtree shows what an unpacked layer's directory holds: 0/0 devices and the opaque attribute."""
    image = convert(write_image(tmp_path / "image", [UPPER]), tmp_path / "soci", "soci")
    expected = unpack(UPPER, tmp_path / "expected")
    with serve(image, "soci", tmp_path / "served") as served:
        found = [line for line in differences(str(expected), str(served.root / "0")) if ": mtime" not in line]
        assert found == []


def test_prioritised_and_merged_chunks_equal_the_unpacked_tree(tmp_path: Path) -> None:
    """eStargz with several files in one member, small chunks and a landmark shows the same tree."""
    check([LOWER], "estargz", tmp_path, chunk_size=64 << 10, min_chunk_size=100_000, prioritized=("usr/tool",))


def test_gzip_header_with_a_name_is_no_obstacle(tmp_path: Path) -> None:
    """The first span starts where the header ends, wherever that is."""
    blob = (GOLDEN / "pax.named.tar.gz").read_bytes()
    check([gzip.decompress(blob)], "soci", tmp_path, [blob])
