"""Generated layers of oddities: every mode's tables and trees against one another, against real unpacking and umoci."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.engines.embedded.lower_links import link_to_lower
from harness.engines.embedded.unpack import LayerUnpacker
from harness.errors import FormatError
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.spans import ErofsIndex
from harness.formats.erofs.table import TarTable
from harness.formats.erofs.writer import write_metadata
from harness.formats.estargz.reader import open_estargz
from harness.formats.estargz.writer import EstargzOptions, write_estargz
from harness.formats.gzip.layer_stream import spool
from harness.formats.soci import ztoc
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.images.shown_tree import shown_by_erofs, shown_by_layers
from harness.images.unpacked_tree import flattened, unpacked_tree
from tests.faults.cases import DIRECTORY, Stored
from tests.faults.cases import Shown as Expected
from tests.faults.entries import Entry, device, file, folder, gzipped, hard, symlink, tar_of
from tests.faults.showing import TAG, tree_of, write
from tests.lazyfs.support import need_root, overlay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.formats.table import LayerTable
    from harness.images.unpacked_tree import Shown

Layer = list[Entry]

PARTS = st.sampled_from([b"a", b"b", b"d"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.builds(lambda up, path: up + path, st.sampled_from([b"", b"", b"/", b"../", b"../../", b"m/../"]), PATHS)
WRITTEN = st.builds(
    lambda front, path, back: front + path + back,
    st.sampled_from([b"", b"", b"", b"./", b"/", b"b/../"]), PATHS, st.sampled_from([b"", b"", b"/", b"//."]),
)  # fmt: skip
MODES = st.sampled_from([0o644, 0o755, 0o4711])


def _marker(path: bytes) -> Entry:
    above, slash, base = path.rpartition(b"/")
    return file(above + slash + b".wh." + base)


PLAIN = st.one_of(
    st.builds(lambda name, data, mode: file(name.rstrip(b"/."), data, mode=mode), WRITTEN,
              st.binary(min_size=1, max_size=3), MODES),
    st.builds(folder, WRITTEN, st.sampled_from([0o755, 0o700, 0o1777])),
    st.builds(symlink, PATHS, TARGETS),
    st.builds(_marker, PATHS),
    st.builds(lambda path: file(path + b"/.wh..wh..opq"), PATHS),
)  # fmt: skip
ODD = st.one_of(
    PLAIN,
    st.builds(hard, PATHS, TARGETS),
    st.builds(lambda path: device(path, 0, 0), PATHS),
    st.builds(lambda path, base: file(b".wh..wh.plnk/" + base, path), PATHS, PARTS),
    st.builds(lambda path, base: hard(path, b".wh..wh.plnk/" + base), PATHS, PARTS),
    st.builds(lambda path: folder(path, pax={"SCHILY.xattr.trusted.overlay.opaque": b"y"}), PATHS),
    st.builds(lambda path: file(path, b"x", pax={"SCHILY.xattr.user.n": b"1", "SCHILY.xattr.user.overlay.o": b"1"}),
              PATHS),
)  # fmt: skip
ODD_LAYERS = st.lists(st.lists(ODD, max_size=7), min_size=1, max_size=3)


def _entries_tables(layers: Sequence[Layer]) -> list[LayerTable]:
    tables = []
    for layer in layers:
        table, tar = TarTable(), tar_of(*layer)
        table.feed(tar)
        tables.append(table.finish(len(tar)))
    return tables


def _as_tar(layers: Sequence[Layer]) -> dict[bytes, Shown]:
    return shown_by_layers(_entries_tables(layers), places=True)


def _as_erofs(layers: Sequence[Layer]) -> dict[bytes, Shown]:
    tables = _entries_tables(layers)
    sizes = [table.address_space_bytes for table in tables]
    written = write_metadata(merge_layers(tables), sizes)
    starts = written.layer_starts

    class _Started(ErofsIndex):
        @property
        def layer_starts(self) -> list[int]:
            return list(starts)

    return shown_by_erofs(_Started(written.data, written.image_bytes, 512, (), (), None))


def _as_soci(layers: Sequence[Layer]) -> dict[bytes, Shown]:
    tables = []
    for layer in layers:
        out = io.BytesIO()
        with LayerIndexer("gzip", 1 << 16) as indexer:
            indexer.read([gzipped(tar_of(*layer))])
            indexer.write(out, "test")
        tables.append(ztoc.parse(out.getvalue()).to_table())
    return shown_by_layers(tables, places=True)


class _Memory:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_range(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def _as_estargz(layers: Sequence[Layer]) -> dict[bytes, Shown]:
    tables = []
    with ThreadPoolExecutor(1) as pool:
        for layer in layers:
            out = io.BytesIO()
            with spool([tar_of(*layer)], "layer") as tar:
                written = write_estargz(tar.descriptor, tar.entries, out, EstargzOptions(), pool=pool)
            toc, _ = open_estargz(_Memory(out.getvalue()), written.size, written.toc_digest)
            tables.append(toc.table)
    return shown_by_layers(tables, places=False)


def _expected(layers: Sequence[Layer]) -> dict[bytes, Shown]:
    tars = []
    for layer in layers:
        with spool([tar_of(*layer)], "layer") as tar:
            tars.append(tar.entries)
    return flattened(unpacked_tree(tars))


def _answer(
    show: Callable[[Sequence[Layer]], dict[bytes, Shown]], layers: Sequence[Layer]
) -> dict[bytes, Shown] | None:
    """What is shown, without places; None for a refusal."""
    try:
        return {path: shown._replace(place=None) for path, shown in show(layers).items()}
    except FormatError:
        return None


@given(ODD_LAYERS)
@settings(derandomize=True, max_examples=400, deadline=None)
def test_every_form_means_the_same(layers: list[Layer]) -> None:
    """Tar, zTOC, eStargz, EROFS and a second reader show one tree with all metadata and links, or all refuse."""
    first = _answer(_as_tar, layers)
    for show in (_as_erofs, _as_soci, _as_estargz, _expected):
        assert _answer(show, layers) == first, show.__name__


def _unpacked(layers: Sequence[Layer], place: Path) -> list[str]:
    """The layers unpacked as mode overlay2 does it, topmost first."""
    found: list[str] = []
    mask = os.umask(0)
    try:
        for number, layer in enumerate(layers):
            directory = place / str(number)
            directory.mkdir(parents=True)
            unpacker = LayerUnpacker(str(directory))
            try:
                unpacker.feed(tar_of(*layer))
                unpacker.finish()
            finally:
                unpacker.close()
            found.insert(0, str(directory))
            link_to_lower(found, unpacker.unresolved_links, f"layer {number}")
            if unpacker.opaque_root:
                found = found[:1]
    finally:
        os.umask(mask)
    return found


@pytest.mark.root
@given(ODD_LAYERS)
@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_unpacking_shows_it(layers: list[Layer]) -> None:
    """OverlayFS over the unpacked layers shows names, kinds, modes, sizes, times, targets and links of the reading."""
    need_root()
    expected = _answer(_as_tar, layers)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        try:
            lower = _unpacked(layers, place / "layers")
        except FormatError:
            assert expected is None
            return
        assert expected is not None
        with overlay(lower, place / "root") as root:
            shown = {}
            inodes: dict[int, bytes] = {}
            for path in sorted([b"", *(os.fsencode(path.relative_to(root)) for path in root.rglob("*"))]):
                name = os.path.join(os.fsencode(root), path)
                if not os.path.lexists(name):
                    continue  # OverlayFS lists the whiteouts of a directory that only one layer has
                status = os.lstat(name)
                linked = inodes.setdefault(status.st_ino, path)
                target = os.readlink(name) if os.path.islink(name) else b""
                nlink = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
                shown[path] = (status.st_mode & 0o7777, status.st_mtime_ns, linked, nlink, target)
        assert shown == {path: (it.mode, it.mtime_ns, it.linked, it.nlink, it.target) for path, it in expected.items()}


def _of_umoci(layers: list[Layer]) -> bool:
    """Whether umoci reads the layers by our rules.

    It differs where it unpacks all layers into one directory: an entry below a symbolic link of a *lower* layer goes
    through it (engines read each layer by itself). It knows no aufs bookkeeping, no attributes or devices of OverlayFS
    (so those are not generated here), and wants a hard link's target to be there already.
    """
    links: set[bytes] = set()
    for layer in layers:
        own = {os.path.normpath(b"/" + entry.name).lstrip(b"/") for entry in layer}
        for entry in layer:
            name = os.path.normpath(b"/" + entry.name).lstrip(b"/")
            parts = name.split(b"/")
            if any(b"/".join(parts[:depth]) in links for depth in range(1, len(parts))):
                return False
        links |= {name for name in own if any(e.flag == b"2" and e.name == name for e in layer)}
    return True


@pytest.mark.root
@given(st.lists(st.lists(PLAIN, max_size=6), min_size=1, max_size=3).filter(_of_umoci))
@settings(derandomize=True, max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_umoci_unpacks_the_same(layers: list[Layer]) -> None:
    """A reader that is not ours shows the same names, content and targets, where it reads the layers at all."""
    need_root()
    assert shutil.which("umoci"), "umoci is not installed; apt-get install umoci"
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write([Stored(tar_of(*layer), gzipped(tar_of(*layer))) for layer in layers], place / "image")
        command = ["umoci", "raw", "unpack", "--image", f"{place}/image:{TAG}", str(place / "umoci")]
        theirs = subprocess.run(command, check=False, capture_output=True, text=True)
        try:
            lower = _unpacked(layers, place / "layers")
        except FormatError:
            return  # umoci replaces a file that an entry stands below, and links to itself
        if theirs.returncode:
            return  # it refuses what Docker and containerd read
        with overlay(lower, place / "root") as root:
            assert _but_implied(tree_of(root), layers) == _but_implied(tree_of(place / "umoci"), layers)


def _but_implied(tree: dict[str, Expected], layers: list[Layer]) -> dict[str, Expected]:
    """Without plain directories that no entry names: a marker implies those it stands in, to us as to Docker, also
    below a symbolic link; umoci makes none for it."""
    named = {os.path.normpath(os.path.join("/", os.fsdecode(e.name))).strip("/") for layer in layers for e in layer}
    return {path: shown for path, shown in tree.items() if shown != DIRECTORY or path in named}
