"""This module says what the lazy modes show of all layers together, from their own tables and metadata, by the code
that serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.table import Kind
from harness.formats.tar.limits import OVERLAY_PREFIXES, held_table
from harness.images.unpacked_tree import Shown
from harness.lazyfs.fuse.directory_index import DirectoryIndex, link_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.formats.erofs.spans import ErofsIndex
    from harness.formats.table import LayerTable

Place = tuple[int, int]
"""This is (layer, entry)."""


def shown_by_layers(tables: Sequence[LayerTable], *, places: bool) -> dict[bytes, Shown]:
    """Returns what OverlayFS makes of the directories that the FUSE tree serves, one per layer; bottom layer first.

    ``places``: the tables' offsets are those in the layer's tar.
    """
    numbers = list(range(len(tables)))
    tables = [held_table(table) for table in tables]
    indexes = [DirectoryIndex(table, f"layer {number}") for number, table in enumerate(tables)]
    foreign = link_layers(indexes, numbers)
    found: dict[bytes, Shown] = {}
    first: dict[Place, bytes] = {}
    for path, (layer, entry) in sorted(_stacked(indexes)):
        at = foreign.get((layer, entry), (layer, entry))
        found[path] = _shown(indexes[at[0]], tables[at[0]], at, first.setdefault(at, path), places=places)
    return found


def _stacked(indexes: Sequence[DirectoryIndex]) -> Iterator[tuple[bytes, Place]]:
    """Yields every name and what is shown there: the uppermost layer's, directories merged down to an opaque one."""
    roots = [(layer, index.root) for layer, index in reversed(list(enumerate(indexes)))]
    waiting: list[tuple[bytes, list[Place]]] = [(b"", roots)]
    while waiting:
        path, stack = waiting.pop()
        yield path, stack[0]
        prefix = path + b"/" if path else b""
        names: dict[bytes, list[Place]] = {}
        closed: set[bytes] = set()
        for layer, number in stack:
            index = indexes[layer]
            directory = index.directory(number)
            for base, child in directory.children.items():
                if base in closed:
                    continue
                if index.is_whiteout(child):
                    closed.add(base)
                elif index.kind(child) == Kind.DIR:
                    names.setdefault(base, []).append((layer, child))
                else:
                    names.setdefault(base, [(layer, child)])
                    closed.add(base)
            if directory.opaque:
                break
        for base, places in names.items():
            layer, child = places[0]
            if indexes[layer].kind(child) == Kind.DIR:
                waiting.append((prefix + base, places))
            else:
                yield prefix + base, (layer, child)


def _shown(index: DirectoryIndex, table: LayerTable, at: Place, linked: bytes, *, places: bool) -> Shown:
    layer, entry = at
    if entry >= len(table):
        return Shown("DIR", 0o755, (0, 0), 0, 0, b"", (0, 0), {}, 0, linked)
    kind = Kind(int(table.kinds[entry]))
    offset = int(table.offsets[entry])
    return Shown(
        kind.name,
        0o777 if kind is Kind.SYMLINK else int(table.modes[entry]),
        (int(table.uids[entry]), int(table.gids[entry])),
        int(table.mtimes_s[entry]) * 1_000_000_000 + int(table.mtimes_ns[entry]),
        int(table.sizes[entry]) if kind is Kind.REG else 0,
        table.links.get(entry, b"") if kind is Kind.SYMLINK else b"",
        table.rdevs.get(entry, (0, 0)) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
        {name: value for name, value in table.xattrs.get(entry, {}).items() if not name.startswith(OVERLAY_PREFIXES)},
        0 if kind is Kind.DIR else index.nlinks.get(entry, 1),
        linked,
        (layer, offset) if places and kind is Kind.REG and table.sizes[entry] and offset >= 0 else None,
    )


def shown_by_erofs(index: ErofsIndex) -> dict[bytes, Shown]:
    """Returns what the index's own metadata says."""
    image = ErofsImage(over_bytes(index.metadata))
    found: dict[bytes, Shown] = {}
    first: dict[int, bytes] = {}
    for path, inode in sorted(image.walk(), key=lambda item: item[0]):
        kind = Kind(inode.kind)
        place = None
        extents = list(image.extents(inode)) if kind is Kind.REG and inode.size else []
        if len(extents) == 1 and extents[0].image_offset >= 0:
            layer = max(n for n, start in enumerate(index.layer_starts) if start <= extents[0].image_offset)
            place = layer, extents[0].image_offset - index.layer_starts[layer]
        found[path] = Shown(
            kind.name,
            inode.mode & 0o7777,
            (inode.uid, inode.gid),
            inode.mtime_s * 1_000_000_000 + inode.mtime_ns,
            inode.size if kind is Kind.REG else 0,
            image.readlink(inode) if kind is Kind.SYMLINK else b"",
            inode.rdev if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
            dict(image.xattrs(inode)),
            0 if kind is Kind.DIR else inode.nlink,
            first.setdefault(inode.nid, path),
            place,
        )
    return found
