"""The kernel's word on the images: EROFS as mounted equals OverlayFS over the same layers unpacked one by one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections import defaultdict
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.table import Kind
from tests.formats.erofs.layers import Row, Seen, image_of, seen_in, table_of, tar_image, tar_of
from tests.formats.erofs.test_writer import expected_sparse, sparse_tar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GOLDEN = Path(__file__).parents[1] / "golden" / "layers"
MS_RDONLY = 1
_KIND_OF = {bits: kind for kind, bits in ((Kind.REG, stat.S_IFREG), (Kind.DIR, stat.S_IFDIR), (Kind.CHAR, stat.S_IFCHR),
            (Kind.BLOCK, stat.S_IFBLK), (Kind.FIFO, stat.S_IFIFO), (Kind.SYMLINK, stat.S_IFLNK))}  # fmt: skip


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, data.encode() or None):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind} on {target}: {os.strerror(code)}")


@contextmanager
def mounted(image: bytes, place: Path) -> Iterator[Path]:
    """The image, mounted from a file by mount(2) where the kernel can (6.12), else through a loop device (6.4)."""
    need_root()
    place.mkdir()
    file, target = place / "image", place / "root"
    target.mkdir()
    file.write_bytes(image)
    try:
        _mount(str(file), target, "erofs", MS_RDONLY)
    except OSError as error:
        result = subprocess.run(
            ["mount", "-t", "erofs", "-o", "loop,ro", str(file), str(target)], capture_output=True, check=False
        )
        if result.returncode:
            shutil.rmtree(place)
            pytest.skip(f"this kernel mounts no EROFS with 512-byte blocks ({error}; {result.stderr.decode().strip()})")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
        shutil.rmtree(place)


def attributes_of(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Sorted extended attributes; the kernel neither sets nor gives a malformed capability, as one golden layer has."""
    out = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        try:
            out.append((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno != errno.EINVAL or name != "security.capability":
                raise
    return tuple(out)


def seen_under(root: Path) -> dict[bytes, Seen]:
    """What the kernel says about every path below ``root``."""
    top = os.fsencode(root)
    paths = [b""]
    for directory, names, files in os.walk(top):
        paths += [os.path.relpath(os.path.join(directory, name), top) for name in names + files]
    same = defaultdict(list)
    states = {path: os.lstat(os.path.join(top, path)) for path in paths}
    for path, state in states.items():
        same[state.st_ino].append(path)
    out = {}
    for path, state in states.items():
        full = os.path.join(top, path)
        kind = _KIND_OF[stat.S_IFMT(state.st_mode)]
        content = ""
        if kind == Kind.REG:
            content = hashlib.sha256(Path(os.fsdecode(full)).read_bytes()).hexdigest()
        elif kind == Kind.SYMLINK:
            content = repr(os.readlink(full))
        elif kind in {Kind.CHAR, Kind.BLOCK}:
            content = repr((os.major(state.st_rdev), os.minor(state.st_rdev)))
        attributes = attributes_of(full)
        is_directory = kind == Kind.DIR
        out[path] = Seen(
            kind, stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid, 0 if is_directory else state.st_size,
            state.st_mtime_ns, 0 if is_directory else state.st_nlink, content, attributes,
            () if is_directory else tuple(sorted(same[state.st_ino])),
        )  # fmt: skip
    return out


class Unpacked:
    """Layers unpacked in order through OverlayFS, each into its own upper directory; then all of them together."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.layers: list[Path] = []
        self._own: set[bytes] = set()
        place.mkdir()
        (place / "root").mkdir()
        (place / "empty").mkdir()
        os.utime(place / "empty", (0, 0))

    @contextmanager
    def overlay(self, upper: Path | None) -> Iterator[bytes]:
        lowers = ":".join(str(layer) for layer in [*reversed(self.layers), self.place / "empty"])
        options = f"lowerdir={lowers},index=off,metacopy=off,redirect_dir=off"
        if upper is not None:
            work = upper.with_suffix(".work")
            work.mkdir()
            options += f",upperdir={upper},workdir={work}"
        elif not self.layers:
            options = f"lowerdir={self.place / 'empty'}:{self.place / 'root'}"
        target = self.place / "root"
        _mount("overlay", target, "overlay", 0, options)
        try:
            yield os.fsencode(target)
        finally:
            subprocess.run(["umount", str(target)], check=True)

    def add(self, tar: bytes) -> None:
        """Unpack one layer by plain system calls: whiteouts first, then the entries in order, then times."""
        upper = self.place / f"layer{len(self.layers)}"
        upper.mkdir()
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            members = [(os.fsencode(member.name).strip(b"/"), member, archive) for member in archive]
            with self.overlay(upper) as root:
                times: dict[bytes, int] = {b"": 0}
                os.chmod(root, 0o755)
                self._own = {b""}
                for path in self._directories(root)[1:]:
                    times[path] = os.lstat(os.path.join(root, path)).st_mtime_ns
                for name, _, _ in members:
                    self._whiteout(root, name)
                for name, member, _ in members:
                    self._entry(root, name, member, archive, times)
                for path in sorted(self._directories(root), key=len, reverse=True):
                    os.utime(os.path.join(root, path), ns=(0, times.get(path, 0)))
        self.layers.append(upper)

    @staticmethod
    def _directories(root: bytes) -> list[bytes]:
        paths = [b""]
        for directory, names, _ in os.walk(root):
            for name in names:
                full = os.path.join(directory, name)
                if not os.path.islink(full):
                    paths.append(os.path.relpath(full, root))
        return paths

    @staticmethod
    def _remove(path: bytes) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def _whiteout(self, root: bytes, name: bytes) -> None:
        parent, _, base = name.rpartition(b"/")
        if base == b".wh..wh..opq":
            directory = os.path.join(root, parent)
            if os.path.isdir(directory) and not os.path.islink(directory):
                for child in os.listdir(directory):
                    self._remove(os.path.join(directory, child))
        elif base.startswith(b".wh."):
            self._remove(os.path.join(root, parent, base[4:]))

    def _entry(
        self, root: bytes, name: bytes, member: tarfile.TarInfo, archive: tarfile.TarFile, times: dict[bytes, int]
    ) -> None:
        full = os.path.join(root, name)
        at = root
        parents = name.split(b"/")[:-1]
        for depth, part in enumerate(parents):
            at = os.path.join(at, part)
            path = b"/".join(parents[: depth + 1])
            if os.path.islink(at) or not os.path.isdir(at):
                self._remove(at)
                os.mkdir(at, 0o755)
            elif path in self._own:
                continue
            # A directory that the layer does not describe is its own all the same, and nothing is said of it.
            os.chown(at, 0, 0)
            os.chmod(at, 0o755)
            for attribute in os.listxattr(at):
                os.removexattr(at, attribute)
            times[path] = 0
            self._own.add(path)
        if os.path.basename(name).startswith(b".wh."):
            return
        if member.islnk():
            target = os.path.join(root, os.fsencode(member.linkname))
            self._remove(full)
            os.link(target, full, follow_symlinks=False)
            return
        if not (member.isdir() and os.path.isdir(full) and not os.path.islink(full)):
            self._remove(full)
        mtime_ns = int(Decimal(str(member.pax_headers.get("mtime", member.mtime))) * 1_000_000_000)
        if member.isdir():
            os.makedirs(full, exist_ok=True)
            for attribute in os.listxattr(full):
                os.removexattr(full, attribute)
            times[name] = mtime_ns
            self._own.add(name)
        elif member.issym():
            os.symlink(os.fsencode(member.linkname), full)
        elif member.isreg():
            payload = archive.extractfile(member)
            assert payload is not None
            Path(os.fsdecode(full)).write_bytes(payload.read())
        elif member.isfifo():
            os.mkfifo(full)
        else:
            os.mknod(
                full,
                stat.S_IFCHR if member.ischr() else stat.S_IFBLK,
                os.makedev(member.devmajor, member.devminor),
            )
        os.chown(full, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(full, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            if key.startswith("SCHILY.xattr."):
                try:
                    os.setxattr(full, key[13:], os.fsencode(value), follow_symlinks=False)
                except OSError as error:
                    if error.errno != errno.EINVAL or key[13:] != "security.capability":
                        raise
        os.utime(full, ns=(0, mtime_ns), follow_symlinks=False)


NAMES = st.sampled_from([b"a", b"b", b"c", b"a/a", b"a/b", b"a/b/c", b"b/a", b"b/a/d", b"c/d", b"d", b"d/e", b"d/e/f"])


@st.composite
def members(draw: st.DrawFn) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A layer over few names, so that layers meet: every kind of entry, whiteouts, opaque markers, hard links."""
    out: list[tuple[tarfile.TarInfo, bytes]] = []
    own: dict[bytes, bytes] = {}
    for _ in range(draw(st.integers(0, 9))):
        name = draw(NAMES)
        kind = draw(st.sampled_from("ffddlhpcwo"))
        parents = [name.rsplit(b"/", n)[0] for n in range(1, name.count(b"/") + 1)]
        if any(own.get(parent, b"d") != b"d" for parent in parents):
            continue  # what stands below a file of its own layer is refused
        payload = b""
        info = tarfile.TarInfo(os.fsdecode(name))
        info.mode = draw(st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0]))
        info.uid, info.gid = draw(st.sampled_from([(0, 0), (1000, 70_000)]))
        info.mtime = draw(st.sampled_from([1_000_000_000, 1_600_000_000]))
        if draw(st.booleans()):
            info.mtime += 0.5
        if kind == "w":
            info.name = os.fsdecode(b"/".join([*name.split(b"/")[:-1], b".wh." + name.split(b"/")[-1]]))
        elif kind == "o":
            info.name = os.fsdecode(name) + "/.wh..wh..opq"
            if own.get(name, b"d") != b"d":
                continue
        elif kind == "d":
            info.type = tarfile.DIRTYPE
        elif kind == "l":
            info.type, info.linkname = tarfile.SYMTYPE, draw(st.sampled_from(["a", "../b", "x" * 100, "y" * 600]))
        elif kind == "p":
            info.type = tarfile.FIFOTYPE
        elif kind == "c":
            info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 5, 300
        elif kind == "h":
            files = [
                other for other, what in own.items() if what == b"f" and not (other + b"/").startswith(name + b"/")
            ]
            if not files:
                continue
            info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(draw(st.sampled_from(files)))
        else:
            payload = draw(st.sampled_from([b"", b"1", b"2" * 511, b"3" * 5000]))
        if kind in "fd" and draw(st.booleans()):
            info.pax_headers = {"SCHILY.xattr.user.n": "v" * draw(st.integers(0, 50)), "SCHILY.xattr.trusted.t": "1"}
        if kind not in "wo":
            if kind not in "d" or own.get(name, b"d") != b"d":
                own = {other: what for other, what in own.items() if not other.startswith(name + b"/")}
            own[name] = b"f" if kind in "fh" else b"d" if kind == "d" else b"x"
        for parent in parents:
            own.setdefault(parent, b"d")
        if kind == "o":
            own.setdefault(name, b"d")
        out.append((info, payload))
    return out


@pytest.mark.root
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(members(), min_size=1, max_size=4))
def test_mounted_image_equals_overlay_of_unpacked_layers(
    tmp_path: Path, layers: list[list[tuple[tarfile.TarInfo, bytes]]]
) -> None:
    """Generated layers: every attribute, link count and byte the kernel shows is what OverlayFS shows."""
    compare(tmp_path, [tar_of(layer) for layer in layers])


def compare(tmp_path: Path, tars: Sequence[bytes]) -> None:
    need_root()
    place = tmp_path / "unpacked"
    try:
        unpacked = Unpacked(place)
        for tar in tars:
            unpacked.add(tar)
        with unpacked.overlay(None) as root:
            expected = seen_under(Path(os.fsdecode(root)))
    finally:
        shutil.rmtree(place)
    image = tar_image(tars)
    with mounted(image, tmp_path / "erofs") as root_path:
        assert seen_under(root_path) == expected


@pytest.mark.root
@pytest.mark.parametrize("layers", [["pax"], ["gnu"], ["gnu", "pax"], ["pax", "gnu", "pax"]])
def test_golden_layers_equal_overlay(tmp_path: Path, layers: list[str]) -> None:
    """The golden layers, alone and over each other: every entry type, name and attribute a reference library met."""
    compare(tmp_path, [(GOLDEN / f"{name}.tar").read_bytes() for name in layers])


@pytest.mark.root
def test_kernel_reads_every_form(tmp_path: Path) -> None:
    """Long symlinks, attributes inline and shared, ACLs, large directories and sparse files, read by the kernel."""
    need_root()
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in [(1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    )
    capability = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
    special = {b"system.posix_acl_access": acl, b"security.capability": capability, b"trusted.t": b"", b"user.u": b"1"}
    rows = [Row("d", b"big")]
    rows += [Row("f", b"big/%05d" % n, xattrs={b"user.same": b"s" * 40}, mtime_s=n % 3) for n in range(6_000)]
    rows += [Row("l", b"link%d" % n, b"t" * n) for n in (1, 447, 448, 511, 512, 513, 2000, 4095)]
    rows += [Row("f", b"x", b"1" * 700, xattrs=special), Row("d", b"wide", xattrs={b"user.w": b"w" * 60_000})]
    rows += [Row("f", b"wide/" + b"n" * 255), Row("f", b"past", mtime_s=-1, mtime_ns=5)]
    pieces = [(8192, b"a" * 4096), (40_960, b"b" * 8192)]
    sparse = tar_image([sparse_tar(pieces, 1 << 20)])
    for number, image in enumerate((image_of(table_of(*rows)), sparse)):
        expected = seen_in(ErofsImage(over_bytes(image)))
        with mounted(image, tmp_path / str(number)) as root:
            assert seen_under(root) == expected
            if number:
                assert (root / "s").read_bytes() == expected_sparse(pieces, 1 << 20)


@pytest.mark.root
def test_kernel_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    """Mounting, walking and reading leave no EROFS error in the kernel's log."""
    need_root()
    before = subprocess.run(["dmesg"], capture_output=True, check=True).stdout.count(b"erofs")
    with mounted(tar_image([(GOLDEN / "pax.tar").read_bytes()]), tmp_path / "one") as root:
        seen_under(root)
    log = subprocess.run(["dmesg"], capture_output=True, check=True).stdout
    fresh = [line for line in log.splitlines() if b"erofs" in line][before:]
    assert [line for line in fresh if b"mounted with root inode" not in line] == []


@pytest.mark.files
@pytest.mark.parametrize("count", [0, 10, 500, 20_000])
def test_fsck_finds_nothing(tmp_path: Path, count: int) -> None:
    """erofs-utils, which knows only 4096-byte blocks, checks images of that block size without complaint."""
    if shutil.which("fsck.erofs") is None:
        pytest.skip("fsck.erofs is not installed (package erofs-utils)")
    attributes = {b"user.a": b"b" * 30, b"security.capability": bytes(20)}
    rows = [
        Row("f", b"d%d/file%d" % (n % 7, n), mtime_s=n % 2, xattrs=attributes if n % 5 == 0 else {})
        for n in range(count)
    ]
    rows += [Row("l", b"l%d" % n, b"t" * n) for n in (1, 100, 4000, 4095)] + [Row("p", b"p"), Row("c", b"c")]
    rows += [Row("f", b"data", b"x" * 5000), Row("h", b"again", b"data")]
    image = tmp_path / "image"
    image.write_bytes(image_of(table_of(*rows), block_size=4096))
    result = subprocess.run(["fsck.erofs", "--extract", str(image)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "")
