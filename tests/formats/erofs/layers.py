"""Layers for the EROFS tests: tables by hand, tars, and images whose content can be compared."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.formats.erofs.layout import PART_ALIGN, align
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.erofs.table import TarTable
from harness.formats.erofs.writer import write_metadata
from harness.formats.table import Kind, LayerTable

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = {"f": Kind.REG, "d": Kind.DIR, "l": Kind.SYMLINK, "h": Kind.HARDLINK, "p": Kind.FIFO, "c": Kind.CHAR}


@dataclass
class Row:
    """One entry of a hand-made table; ``text`` is the payload of a file or the target of a link."""

    kind: str
    name: bytes
    text: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def table_of(*rows: Row) -> tuple[LayerTable, bytes]:
    """A table of these entries and its address space, payloads at multiples of 512."""
    space = bytearray()
    offsets = []
    for row in rows:
        offsets.append(len(space) if row.kind == "f" and row.text else -1)
        if row.kind == "f":
            space += row.text + bytes(-len(row.text) % 512)
    table = LayerTable(
        names=[row.name for row in rows],
        kinds=np.array([KINDS[row.kind] for row in rows], dtype=np.uint8),
        modes=np.array([row.mode for row in rows], dtype=np.uint16),
        uids=np.array([row.uid for row in rows], dtype=np.uint32),
        gids=np.array([row.gid for row in rows], dtype=np.uint32),
        sizes=np.array([len(row.text) if row.kind == "f" else 0 for row in rows], dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        mtimes_s=np.array([row.mtime_s for row in rows], dtype=np.int64),
        mtimes_ns=np.array([row.mtime_ns for row in rows], dtype=np.uint32),
        links={index: row.text for index, row in enumerate(rows) if row.kind in "lh"},
        rdevs={index: (1, 3) for index, row in enumerate(rows) if row.kind == "c"},
        xattrs={index: row.xattrs for index, row in enumerate(rows) if row.xattrs},
        address_space_bytes=len(space),
    )
    return table, bytes(space)


def image_of(*layers: tuple[LayerTable, bytes], block_size: int = 512) -> bytes:
    """The whole image: metadata with the layers' address spaces behind it."""
    metadata = write_metadata(
        merge_layers([table for table, _ in layers]), [len(space) for _, space in layers], block_size=block_size
    )
    return assemble(metadata.data, [space for _, space in layers])


def assemble(metadata: bytes, spaces: Sequence[bytes]) -> bytes:
    """Metadata and layers one after the other, padded as the presentation shows them."""
    parts = [metadata, *spaces]
    return b"".join(part + bytes(align(len(part), PART_ALIGN) - len(part)) for part in parts)


def tar_image(tars: Sequence[bytes], block_size: int = 512) -> bytes:
    """The image of these layers, parsed as tars."""
    tables, fragments = [], []
    for tar in tars:
        table = TarTable()
        table.feed(tar)
        tables.append(table.finish(len(tar)))
        fragments.append(table.fragments)
    metadata = write_metadata(merge_layers(tables, fragments), [len(tar) for tar in tars], block_size=block_size)
    return assemble(metadata.data, tars)


@dataclass(frozen=True)
class Seen:
    """Everything a file system says about one path; ``content`` is a digest, a link target or a device number."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    content: str
    xattrs: tuple[tuple[bytes, bytes], ...]
    same_inode: tuple[bytes, ...]


def seen_in(image: ErofsImage) -> dict[bytes, Seen]:
    """What our reader says about every path of an image."""
    names: dict[int, list[bytes]] = defaultdict(list)
    entries = list(image.walk())
    for path, inode in entries:
        names[inode.nid].append(path)
    out = {}
    for path, inode in entries:
        content = ""
        if inode.kind == Kind.REG:
            content = hashlib.sha256(image.read_file(inode)).hexdigest()
        elif inode.kind == Kind.SYMLINK:
            content = repr(image.readlink(inode))
        elif inode.kind in {Kind.CHAR, Kind.BLOCK}:
            content = repr(inode.rdev)
        is_directory = inode.kind == Kind.DIR
        out[path] = Seen(
            inode.kind,
            inode.mode,
            inode.uid,
            inode.gid,
            0 if is_directory else inode.size,
            inode.mtime_s * 1_000_000_000 + inode.mtime_ns,
            0 if is_directory else inode.nlink,
            content,
            tuple(sorted(image.xattrs(inode).items())),
            () if is_directory else tuple(sorted(names[inode.nid])),
        )
    return out


def read(*layers: tuple[LayerTable, bytes], block_size: int = 512) -> ErofsImage:
    """The image of hand-made layers, opened by our reader."""
    return ErofsImage(over_bytes(image_of(*layers, block_size=block_size)))


def tree_of(*layers: tuple[LayerTable, bytes]) -> dict[str, str]:
    """Path -> a word that tells entries apart: content of a file, target of a link, ``/`` for a directory."""
    image = read(*layers)
    words = {}
    for path, inode in image.walk():
        if not path:
            continue
        if inode.kind == Kind.DIR:
            words[path.decode()] = "/"
        elif inode.kind == Kind.SYMLINK:
            words[path.decode()] = "-> " + image.readlink(inode).decode()
        else:
            words[path.decode()] = image.read_file(inode).decode()
    return words


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A PAX tar of these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, payload in members:
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return stream.getvalue()
