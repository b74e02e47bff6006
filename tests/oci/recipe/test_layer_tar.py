"""Layers from directory trees: the tar, its gzip form, and the build root they come from."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import struct
import tarfile
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError
from harness.oci.recipe.build_root import BuildRoot, plain_environment
from harness.oci.recipe.layer_gzip import BLOCK_BYTES, GzipLayerWriter
from harness.oci.recipe.layer_tar import tree_size, write_layer
from harness.oci.recipe.layers import fix_bytecode_times
from harness.oci.recipe.recipe import restore_whiteouts

if TYPE_CHECKING:
    from pathlib import Path

EPOCH_S = 1_700_000_000


def layer(tree: Path, *lowers: Path) -> tuple[bytes, list[tarfile.TarInfo]]:
    out = io.BytesIO()
    write_layer(tree, out, EPOCH_S, lowers=lowers)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        return out.getvalue(), archive.getmembers()


def make_tree(tree: Path, order: int) -> None:
    names = ["b/two", "a", "b/one", "c-c", "b-b/x", "long/" + "n" * 120, "ü/ß"]
    random.Random(order).shuffle(names)
    for name in names:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        os.utime(path, (EPOCH_S + order, EPOCH_S + order))
    (tree / "link").symlink_to("a")
    os.link(tree / "b/one", tree / "z-hard")
    os.mkfifo(tree / "fifo")


@pytest.mark.files
def test_layers_repeat(tmp_path: Path) -> None:
    """The order of creation and times after the epoch do not show; entries come sorted, parents first."""
    trees = [tmp_path / "1", tmp_path / "2"]
    for order, tree in enumerate(trees):
        tree.mkdir()
        make_tree(tree, order)
    first, members = layer(trees[0])
    assert first == layer(trees[1])[0]
    names = [member.name for member in members]
    assert names == ["a", "b", "b/one", "b/two", "b-b", "b-b/x", "c-c", "fifo", "link", "long", "long/" + "n" * 120,
                     "z-hard", "ü", "ü/ß"]  # fmt: skip
    by_name = {member.name: member for member in members}
    assert by_name["a"].mtime == EPOCH_S
    assert by_name["link"].linkname == "a"
    assert by_name["z-hard"].islnk()
    assert by_name["z-hard"].linkname == "b/one"
    assert by_name["fifo"].isfifo()
    assert tree_size(trees[0])[0] == len(members)


@pytest.mark.files
def test_older_times_stay(tmp_path: Path) -> None:
    """Only times after the epoch are cut."""
    (tmp_path / "old").write_text("x")
    os.utime(tmp_path / "old", (1000, 1000))
    assert layer(tmp_path)[1][0].mtime == 1000


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 17])
def test_gzip_is_one_member_whatever_the_threads(size: int) -> None:
    """Any number of threads and any piece sizes give the same bytes, which inflate to the input; digests are right."""
    data = (b"some text that repeats " * (size // 20 + 1))[:size]
    results = set()
    for threads, step in ((1, 4096), (3, BLOCK_BYTES * 2)):
        out = io.BytesIO()
        with GzipLayerWriter(out, threads) as writer:
            for start in range(0, size, step):
                writer.write(data[start : start + step])
        packed = out.getvalue()
        results.add(packed)
        assert writer.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
        assert writer.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert (writer.plain_bytes, writer.packed_bytes) == (size, len(packed))
    assert len(results) == 1
    assert gzip.decompress(results.pop()) == data


@pytest.mark.files
def test_bytecode_follows_the_cut_time(tmp_path: Path) -> None:
    """A .pyc checked by time states its source's time as the layer does; one checked by hash is left alone."""
    root = BuildRoot(tmp_path / "build", ())
    cache = root.upper / "lib/__pycache__"
    cache.mkdir(parents=True)
    source = root.upper / "lib/m.py"
    source.write_text("x")
    os.utime(source, (EPOCH_S + 99, EPOCH_S + 99))
    by_time, by_hash = cache / "m.cpython-311.pyc", cache / "m.cpython-311.opt-1.pyc"
    by_time.write_bytes(b"MAGC" + struct.pack("<III", 0, EPOCH_S + 99, 1) + b"code")
    by_hash.write_bytes(b"MAGC" + struct.pack("<I", 1) + b"8 bytes!code")
    kept = by_hash.read_bytes()
    fix_bytecode_times(root, EPOCH_S)
    assert by_time.read_bytes() == b"MAGC" + struct.pack("<III", 0, EPOCH_S, 1) + b"code"
    assert by_hash.read_bytes() == kept


@pytest.mark.root
def test_owners_devices_and_attributes(tmp_path: Path) -> None:
    """Large ids, device numbers, modes and xattrs survive; what belongs to OverlayFS or the host does not."""
    path = tmp_path / "f"
    path.write_text("x")
    os.chown(path, 70_000, 3_000_000)
    path.chmod(0o4750)
    os.setxattr(path, "user.note", b"\xff\x00")
    os.setxattr(path, "trusted.overlay.origin", b"x")
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    members = {member.name: member for member in layer(tmp_path)[1]}
    assert (members["f"].uid, members["f"].gid, members["f"].mode) == (70_000, 3_000_000, 0o4750)
    xattrs = {key: value for key, value in members["f"].pax_headers.items() if key.startswith("SCHILY")}
    assert {k: v.encode("utf-8", "surrogateescape") for k, v in xattrs.items()} == {
        "SCHILY.xattr.user.note": b"\xff\x00"
    }
    assert members["null"].ischr()
    assert (members["null"].devmajor, members["null"].devminor) == (1, 3)


@pytest.mark.root
def test_overlay_difference_becomes_markers_and_back(tmp_path: Path) -> None:
    """What a command removes or replaces below comes out as whiteouts, what is new does not; it can be built upon."""
    lower = tmp_path / "lower"
    for name in ("gone", "kept", "dir/old", "dir2/inner"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text(name)
    root = BuildRoot(tmp_path / "build", (lower,))
    root.scratch.mkdir()
    root.prepare()
    script = "rm gone; rm -r dir dir2; mkdir dir; echo new > dir/new; mkdir fresh; echo > fresh/file"
    root.run(
        ["sh", "-c", f"cd {root.merged}; {script}"], env=plain_environment(EPOCH_S), chroot=False, what="the change"
    )
    assert not any(root.merged.iterdir()), "the mount outlived its command"
    packed, members = layer(root.upper, lower)
    assert [member.name for member in members] == [
        "dir", "dir/.wh..wh..opq", "dir/new", ".wh.dir2", "fresh", "fresh/file", ".wh.gone"
    ]  # fmt: skip
    again = tmp_path / "again"
    again.mkdir()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(again)
    restore_whiteouts(again)
    assert layer(again, lower)[0] == packed


@pytest.mark.root
def test_failures_of_commands_are_one_line(tmp_path: Path) -> None:
    """A package manager's failure is a ContentError with the end of what it said."""
    lower = tmp_path / "lower"
    lower.mkdir()
    root = BuildRoot(tmp_path / "build", (lower,))
    root.scratch.mkdir()
    root.prepare()
    script = "echo noise; echo E: no such package >&2; exit 100"
    with pytest.raises(ContentError, match="apt failed with code 100: E: no such package"):
        root.run(["sh", "-c", script], env=plain_environment(0), chroot=False, what="apt")
