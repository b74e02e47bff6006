"""This module writes a directory tree as a reproducible layer tar: sorted, times cut to an epoch, numeric owners, PAX
if needed.

The tree may be the upper directory of an OverlayFS mount: its whiteouts (character device 0:0) and opaque directories
(xattr ``trusted.overlay.opaque``) become the markers of the OCI image spec (layer.md, "Whiteouts").
"""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_COPY_BYTES = 1 << 20
_PADDING = bytes(512)
_OPAQUE = "trusted.overlay.opaque"
_IGNORED_XATTRS = ("trusted.overlay.", "user.overlay.", "system.", "security.selinux")


class Sink(Protocol):
    def write(self, data: bytes | bytearray | memoryview) -> object: ...


def write_layer(
    tree: Path,
    sink: Sink,
    epoch_s: int,
    advance: Callable[[int], object] | None = None,
    *,
    lowers: Sequence[Path] = (),
) -> int:
    """Writes ``tree`` as a tar to ``sink``; returns the number of entries. ``advance(bytes)`` is told of file contents.

    ``lowers`` are the trees below. OverlayFS calls every new directory opaque when its parent is merged; a marker is
    written only where one of them has a directory to hide, as container builders do.

    Modification times are whole seconds, at most ``epoch_s`` (SOURCE_DATE_EPOCH of reproducible-builds.org). The root
    directory itself is left out, as Docker does. Sockets are passed over.
    """
    seen: dict[tuple[int, int], str] = {}
    entries = 0
    for path, name, status in walk(tree):
        info = _header(path, name, status, epoch_s, seen)
        if info is None:
            continue
        entries += 1
        sink.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if info.isreg() and info.size:
            _copy(path, info.size, sink, advance)
        if info.isdir() and _xattr(path, _OPAQUE) == b"y" and any(_is_directory(low / name) for low in lowers):
            entries += 1
            marker = tarfile.TarInfo(f"{name}/.wh..wh..opq")
            marker.mtime = min(int(status.st_mtime), epoch_s)
            sink.write(marker.tobuf(tarfile.PAX_FORMAT))
    sink.write(bytes(1024))
    return entries


def tree_size(tree: Path) -> tuple[int, int]:
    """Counts entries and bytes of regular files (hard links once)."""
    entries = size = 0
    seen: set[tuple[int, int]] = set()
    for _, _, status in walk(tree):
        entries += 1
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            size += status.st_size
    return entries, size


def walk(tree: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yields (path, name in the layer, lstat) of everything below ``tree``, parents first, sorted
    by bytes of the name.
    """
    stack = [(str(tree), "")]
    while stack:
        directory, prefix = stack.pop()
        if prefix:
            yield directory, prefix, os.lstat(directory)
        if prefix and not stat.S_ISDIR(os.lstat(directory).st_mode):
            continue
        names = sorted(os.listdir(directory), key=os.fsencode, reverse=True)
        stack += [(f"{directory}/{name}", f"{prefix}/{name}" if prefix else name) for name in names]


def _header(
    path: str, name: str, status: os.stat_result, epoch_s: int, seen: dict[tuple[int, int], str]
) -> tarfile.TarInfo | None:
    mode = status.st_mode
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = max(0, min(int(status.st_mtime), epoch_s))
    if stat.S_ISCHR(mode) and status.st_rdev == 0:
        parent, _, last = name.rpartition("/")
        marker = tarfile.TarInfo(f"{parent}/.wh.{last}" if parent else f".wh.{last}")
        marker.mtime = info.mtime
        return marker
    if stat.S_ISREG(mode):
        first = seen.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        if first is not None:
            info.type, info.linkname = tarfile.LNKTYPE, first
            return info
        if status.st_nlink > 1:
            seen[(status.st_dev, status.st_ino)] = name
        info.size = status.st_size
    elif stat.S_ISDIR(mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif stat.S_ISFIFO(mode):
        info.type = tarfile.FIFOTYPE
    else:
        return None
    if not stat.S_ISLNK(mode):
        records: dict[str, str] = {}
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            if not key.startswith(_IGNORED_XATTRS):
                value = os.getxattr(path, key, follow_symlinks=False)
                records[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = records
    return info


def _copy(path: str, size: int, sink: Sink, advance: Callable[[int], object] | None) -> None:
    left = size
    with open(path, "rb", buffering=0) as file:
        while left:
            piece = file.read(min(_COPY_BYTES, left))
            if not piece:
                raise OSError(f"{path}: became shorter while it was read")
            sink.write(piece)
            left -= len(piece)
            if advance is not None:
                advance(len(piece))
    if size % 512:
        sink.write(_PADDING[size % 512 :])


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _xattr(path: str, key: str) -> bytes:
    try:
        return os.getxattr(path, key, follow_symlinks=False)
    except OSError:
        return b""
