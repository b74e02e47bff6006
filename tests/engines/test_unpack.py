"""The unpacker against what the tar says, in plain directories (ownership and devices need root)."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.embedded.unpack import LayerUnpacker
from harness.errors import FormatError, UnsafePath
from tests.engines.support import Member, directory, tar_bytes
from tests.faults.entries import file, tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def unpack(data: bytes, root: Path, piece: int = 1 << 20) -> LayerUnpacker:
    root.mkdir(exist_ok=True)
    unpacker = LayerUnpacker(str(root))
    try:
        for at in range(0, len(data), piece):
            unpacker.feed(data[at : at + piece])
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything about every entry below ``root`` that an image can say."""
    found: dict[str, tuple[Any, ...]] = {}
    links: dict[int, str] = {}
    for base, directories, files in os.walk(root):
        for name in sorted([*directories, *files, "."] if base == str(root) else [*directories, *files]):
            path = os.path.join(base, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                content = status.st_rdev
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            first = "" if stat.S_ISDIR(status.st_mode) else links.setdefault(status.st_ino, path)
            linked = os.path.relpath(first, root) if first and status.st_nlink > 1 else ""
            found[os.path.relpath(path, root)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs, linked,
            )  # fmt: skip
    return found


VARIED: list[Member] = [
    ("usr/", directory()),
    ("usr/bin/", directory()),
    ("usr/bin/su", {"data": b"x" * 5000, "mode": 0o4755}),
    ("usr/bin/at", {"data": b"at", "mode": 0o6755, "uid": 1, "gid": 2}),
    ("usr/bin/sh", {"type": tarfile.SYMTYPE, "linkname": "su", "uid": 7}),
    ("usr/bin/hard", {"type": tarfile.LNKTYPE, "linkname": "usr/bin/su"}),
    ("srv/", {**directory(0o2775), "gid": 50}),
    ("srv/file", {"data": b"", "mode": 0o640}),
    ("srv/sub/", directory(0o700)),
    ("dev/", directory()),
    ("dev/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
    ("dev/sda", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0, "mode": 0o660, "gid": 6}),
    ("run/", directory()),
    ("run/pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
    ("big", {"data": os.urandom(300_000), "mode": 0o600, "uid": 3_000_000, "gid": 3_000_000}),
    ("ro/", directory(0o555)),
    ("ro/inside", {"data": b"made below a read-only directory", "mode": 0o444}),
    ("tmp/", directory(0o1777)),
    ("n" * 200 + "/" + "m" * 200, {"data": b"long names"}),
    ("ä/漢字-🚀", {"data": b"unicode"}),
    ("frac", {"data": b"", "mtime": 1600000000, "pax_headers": {"mtime": "1600000000.123456789"}}),
    ("caps", {"data": b"caps", "mode": 0o755, "pax_headers": {"SCHILY.xattr.user.note": "a=b c"}}),
]


@pytest.mark.parametrize("piece", [1 << 20, 4096, 700, 97])
@pytest.mark.parametrize("pax", [True, False], ids=["pax", "gnu"])
def test_unpacking_equals_gnu_tar(tmp_path: Path, pax: bool, piece: int) -> None:
    """Content, modes, owners, times, links and devices are GNU tar's, whatever pieces the stream comes in."""
    data = tar_bytes(VARIED, pax)
    unpack(data, tmp_path / "ours", piece)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "layer.tar").write_bytes(data)
    subprocess.run(
        ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", "../layer.tar"],
        cwd=tmp_path / "theirs", check=True,
    )  # fmt: skip
    ours, theirs = snapshot(tmp_path / "ours"), snapshot(tmp_path / "theirs")
    implied = {"n" * 200, "ä", "."}  # no entry of their own: see the next test
    for name in implied:
        ours.pop(name)
        theirs.pop(name)
    assert ours == theirs


def test_directories_without_an_entry(tmp_path: Path) -> None:
    """A parent that no entry describes is 0755, root's, of time 0, whatever is made in it later."""
    unpack(tar_bytes([("a/b/c", {"data": b"x", "uid": 5})]), tmp_path / "out")
    assert (tmp_path / "out").stat().st_mtime_ns == 0, "nor does one describe the root"
    for name in ("a", "a/b"):
        status = (tmp_path / "out" / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns) == (0o755, 0, 0, 0)


def test_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    """Markers become OverlayFS's: a 0:0 device where a name is hidden, an attribute on an opaque directory."""
    unpacker = unpack(
        tar_bytes(
            [
                ("etc/", directory()),
                ("etc/.wh.gone", {"data": b""}),
                ("opt/", directory()),
                ("opt/new", {"data": b"n"}),
                ("opt/.wh..wh..opq", {"data": b""}),
                ("opt/.wh..wh.plnk", {"data": b""}),
            ]
        ),
        tmp_path / "out",
    )
    status = (tmp_path / "out/etc/gone").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(tmp_path / "out/opt", "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(tmp_path / "out/opt")) == ["new"]
    assert not unpacker.opaque_root


def test_whiteout_beside_a_new_directory(tmp_path: Path) -> None:
    """A layer that hides a directory and brings one of that name shows only its own, in either order."""
    for order in (0, 1):
        members: list[Member] = [("d/.wh.x", {"data": b""}), ("d/x/", directory()), ("d/x/f", {"data": b"1"})]
        root = tmp_path / str(order)
        unpack(tar_bytes([("d/", directory()), *(members if order else [*members[1:], members[0]])]), root)
        assert os.getxattr(root / "d/x", "trusted.overlay.opaque") == b"y"
        assert (root / "d/x/f").read_bytes() == b"1"


def test_opaque_root(tmp_path: Path) -> None:
    """An opaque marker at the root is told to the caller, who leaves lower layers out."""
    assert unpack(tar_bytes([(".wh..wh..opq", {"data": b""})]), tmp_path / "out").opaque_root


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    """The last entry of a name wins, whatever the two are; a directory's content goes with it."""
    root = tmp_path / "out"
    unpack(
        tar_bytes(
            [
                ("a", {"data": b"first and longer"}),
                ("a", {"data": b"second"}),
                ("d/", directory()),
                ("d/deep/file", {"data": b"x"}),
                ("d", {"type": tarfile.SYMTYPE, "linkname": "a"}),
                ("s", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
                ("s/", directory(0o700)),
                ("s/inside", {"data": b"in"}),
                ("e/", directory(0o700)),
                ("e/kept", {"data": b"k"}),
                ("e/", directory(0o711)),
            ]
        ),
        root,
    )
    assert (root / "a").read_bytes() == b"second"
    assert os.readlink(root / "d") == "a"
    assert (root / "s/inside").read_bytes() == b"in"
    assert (root / "e/kept").exists()
    assert stat.S_IMODE((root / "e").stat().st_mode) == 0o711


def test_hard_links_in_any_order(tmp_path: Path) -> None:
    """A hard link may come before its target, and one to nothing of this layer is told to the caller."""
    unpacker = unpack(
        tar_bytes(
            [
                ("early", {"type": tarfile.LNKTYPE, "linkname": "d/late"}),
                ("d/late", {"data": b"late"}),
                ("lost", {"type": tarfile.LNKTYPE, "linkname": "lower/file"}),
            ]
        ),
        tmp_path / "out",
    )
    assert (tmp_path / "out/early").samefile(tmp_path / "out/d/late")
    assert unpacker.unresolved_links == [(b"lost", b"lower/file")]


def test_sparse_files(tmp_path: Path) -> None:
    """GNU tar's sparse forms give the file back, holes and all."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        file.truncate(4 << 20)
        file.seek(1 << 20)
        file.write(b"middle" * 1000)
        file.seek((4 << 20) - 3)
        file.write(b"end")
    for number, flags in enumerate(
        (["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")))
    ):
        out = subprocess.run(["tar", "-c", "-S", *flags, "holes"], cwd=source, check=True, stdout=subprocess.PIPE)
        unpack(out.stdout, tmp_path / str(number), 1000)
        assert (tmp_path / str(number) / "holes").read_bytes() == (source / "holes").read_bytes()
        assert (tmp_path / str(number) / "holes").stat().st_blocks * 512 < 1 << 20


UP: dict[str, Any] = {"type": tarfile.SYMTYPE, "linkname": ".."}
FILE: dict[str, Any] = {"data": b"x"}


@pytest.mark.parametrize(
    "members",
    [
        [("../escaped", FILE)],
        [("a/../../escaped", FILE)],
        [("h", {"type": tarfile.LNKTYPE, "linkname": "../bystander"})],
        [(".wh..", {"data": b""})],
        [("d/.wh...", {"data": b""})],
    ],
)
def test_nothing_leaves_the_root(tmp_path: Path, members: list[Member]) -> None:
    """Traversal by .. is refused before anything is touched outside."""
    (tmp_path / "bystander").write_text("as it was")
    with pytest.raises(UnsafePath):
        unpack(tar_bytes(members), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["bystander", "out"]
    assert (tmp_path / "bystander").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("members", "made"),
    [
        ([("/escaped", FILE)], "escaped"),
        ([("link", UP), ("link/escaped", FILE)], "escaped"),
        ([("a/", directory()), ("a/l", {**UP, "linkname": "../.."}), ("a/l/escaped/", directory())], "escaped"),
        ([("link", UP), ("link/.wh.bystander", {"data": b""})], "bystander"),
        ([("d/", directory()), ("d/f", FILE), ("d", UP), ("d/escaped", FILE)], "escaped"),
        ([("l", {**UP, "linkname": "/x/y"}), ("l/escaped", FILE)], "x/y/escaped"),
    ],
)
def test_links_and_absolute_names_lead_inside_the_root(tmp_path: Path, members: list[Member], made: str) -> None:
    """What goes through a symlink of the layer, or begins with a slash, lands in the root, and nothing outside it."""
    (tmp_path / "bystander").write_text("as it was")
    unpack(tar_bytes(members), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["bystander", "out"]
    assert (tmp_path / "bystander").read_text() == "as it was"
    assert (tmp_path / "out" / made).lstat()


def test_a_link_through_a_symlink_is_looked_up_inside_the_root(tmp_path: Path) -> None:
    """A hard link's target that leads out of the root is a name in the layer, here one that nothing has."""
    (tmp_path / "bystander").write_text("as it was")
    members = [("link", UP), ("h", {"type": tarfile.LNKTYPE, "linkname": "link/bystander"})]
    unpacker = unpack(tar_bytes(members), tmp_path / "out")
    assert unpacker.unresolved_links == [(b"h", b"bystander")]
    assert (tmp_path / "bystander").stat().st_nlink == 1


def test_symlink_from_an_earlier_run_is_not_followed(tmp_path: Path) -> None:
    """A symlink that stands in the directory already (a lower layer's) is refused just so."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/etc").symlink_to(tmp_path)
    with pytest.raises(UnsafePath):
        unpack(tar_bytes([("etc/passwd", {"data": b"x"})]), tmp_path / "out")
    assert not (tmp_path / "passwd").exists()


def test_attributes_that_steer_overlayfs_are_left_out(tmp_path: Path) -> None:
    """A layer cannot redirect or hide by attributes of its own."""
    fields = {**directory(), "pax_headers": {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}}
    unpack(tar_bytes([("d", fields)]), tmp_path / "out")
    assert os.listxattr(tmp_path / "out/d") == []


@pytest.mark.parametrize("cut", [100, 512, 700, 1024])
def test_a_cut_stream_is_an_error(tmp_path: Path, cut: int) -> None:
    """A stream that ends inside a header or a file is refused, not taken for the end."""
    data = tar_bytes([("file", {"data": b"x" * 2000})])[:cut]
    with pytest.raises(FormatError):
        unpack(data, tmp_path / "out")


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    """An entry below a regular file is refused."""
    with pytest.raises(FormatError, match="not a directory"):
        unpack(tar_bytes([("f", {"data": b"x"}), ("f/below", {"data": b"y"})]), tmp_path / "out")


def test_many_deep_directories(tmp_path: Path) -> None:
    """Descriptors stay bounded and recursion is not needed: 300 levels, 600 directories side by side."""
    deep = "/".join("d" for _ in range(300))
    members: list[Member] = [(f"{deep}/file", {"data": b"deep"})]
    members += [(f"wide/{n}/{m}", {"data": b"w"}) for m in range(2) for n in range(600)]
    unpack(tar_bytes(members), tmp_path / "out")
    assert (tmp_path / "out" / deep / "file").read_bytes() == b"deep"
    assert len(os.listdir(tmp_path / "out/wide")) == 600


def test_a_tree_of_any_depth_is_replaced(tmp_path: Path) -> None:
    """Directories 1 900 deep give way to a file of the same name: removing them takes no call per level."""
    deep = "/".join("d" for _ in range(1900))
    root = tmp_path / "out"
    unpack(tar_bytes([(f"{deep}/file", {"data": b"deep"}), ("other", {"data": b"stays"})]), root)
    unpack(tar_bytes([("d", {"data": b"flat"})]), root)
    assert (root / "d").read_bytes() == b"flat"
    assert (root / "other").read_bytes() == b"stays"


def test_an_attribute_too_large_for_the_file_system_is_no_full_disk(tmp_path: Path) -> None:
    """ext4 answers "no space" to an attribute that does not fit; the refusal names entry and attribute instead."""
    disk, place = tmp_path / "disk", tmp_path / "place"
    disk.write_bytes(b"")
    os.truncate(disk, 16 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal,^ea_inode", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        tar = tar_of(file(b"a", b"x", pax={"SCHILY.xattr.user.large": b"v" * 20_000}))
        unpacker = LayerUnpacker(str(place))
        try:
            with pytest.raises(FormatError, match=r"'a': attribute user\.large of 20000 bytes"):
                unpacker.feed(tar)
        finally:
            unpacker.close()
    finally:
        subprocess.run(["umount", place], check=True)
