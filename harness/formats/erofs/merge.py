"""This module merges an image's layers to the one tree that OverlayFS would show, as columns that the EROFS writer can
place.

The tree is what unpacking every layer in order, each into its own directory of one OverlayFS, shows afterwards.
Decisions, where tools differ or the formats leave room:

- What an entry of a layer means is said by ``harness.formats.tar.reading``; hard links into lower layers are names of
  the lower inode (``stack``).
- A directory over a directory keeps the children and takes the upper one's metadata. Every other meeting replaces.
- A parent that the layer itself does not describe (its root as well) has mode 0755, owner 0:0 and time 0, whatever
  lower layers say of it: it is a directory of this layer, and OverlayFS shows the uppermost one's metadata. Docker
  and the FUSE snapshotters do so too; containerd's full unpack copies a lower layer's metadata instead.
- Link counts are those that OverlayFS reports: the names an inode has in all layers, hidden ones included. A
  directory has two plus its subdirectories.
- A symlink's mode is 0777, whatever its header says: Linux has no other.
- Names are bytes; the order inside a directory is that of the bytes.

Sources: Linux Documentation/filesystems/overlayfs.rst; containerd archive/tar.go (mkparent); moby pkg/archive
(createImpliedDirectories); stargz-snapshotter estargz (getOrCreateDir).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from harness.errors import FormatError, UnsafePath
from harness.formats.erofs.layout import NAME_MAX
from harness.formats.table import Kind
from harness.formats.tar.limits import OVERLAY_PREFIXES, held_table
from harness.formats.tar.reading import IMPLIED
from harness.formats.tar.stack import lower_links
from harness.formats.tar.table_reading import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from harness.formats.table import LayerTable
    from harness.formats.tar.reading import LayerReading
    from harness.formats.tar.stack import LowerLink

_Value = TypeVar("_Value")
_KINDS: Final = np.array([kind.value for kind in Kind], dtype=np.uint8)

Fragment = tuple[int, int, int]
"""This is (offset in the file, bytes, offset in the layer's address space) of one stored piece of a sparse file."""


@dataclass(frozen=True, slots=True)
class MergedTree:
    """Holds one tree: columns by inode (0 is the root) and, by directory in depth-first order, its entries.

    Directory ``k`` is inode ``directories[k]``; its entries are ``[starts[k], starts[k + 1])`` of ``entry_names`` and
    ``entry_inodes``, sorted by name, ``.`` and ``..`` among them. An inode's number is its place in a depth-first
    walk in which a directory's other children follow it at once, before its subdirectories: what is looked up
    together is stored together. ``layers`` is -1 where the inode has no data; ``offsets`` are in the address space
    of that layer. Units are those of ``LayerTable``.
    """

    kinds: npt.NDArray[np.uint8]
    modes: npt.NDArray[np.uint16]
    uids: npt.NDArray[np.uint32]
    gids: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    mtimes_s: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.uint32]
    nlinks: npt.NDArray[np.uint32]
    links: Mapping[int, bytes]
    rdevs: Mapping[int, tuple[int, int]]
    xattrs: Mapping[int, Mapping[bytes, bytes]]
    fragments: Mapping[int, Sequence[Fragment]]
    directories: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    entry_names: Sequence[bytes]
    entry_inodes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kinds)


def merge_layers(
    tables: Sequence[LayerTable],
    sparse: Sequence[Mapping[int, Sequence[Fragment]]] | None = None,
    where: Callable[[int], str] = "layer {}".format,
) -> MergedTree:
    """Merges ``tables``, bottom layer first; ``sparse`` gives each layer's sparse entries and their stored pieces.

    ``where`` names a layer in errors.

    Raises UnsafePath for names that no directory can hold or that lead through a file or symlink, and FormatError for
    everything else that a table must not say.
    """
    for number, table in enumerate(tables):
        check_table(table, where(number))
    tables = [held_table(table) for table in tables]
    readings = [read_table(table, where(number)) for number, table in enumerate(tables)]
    links = lower_links(readings, where)
    merger = _Merger(tables, readings, links=links)
    for number in range(len(tables)):
        merger.add(number)
    return merger.finish(sparse or [])


def check_table(table: LayerTable, where: str) -> None:
    """Refuses a table with impossible names, kinds, extents or times; FormatError or UnsafePath says which."""
    count = len(table.names)
    columns = (table.kinds, table.modes, table.uids, table.gids, table.sizes, table.offsets, table.mtimes_s)
    if any(len(column) != count for column in (*columns, table.mtimes_ns)):
        raise FormatError(where, "columns of different lengths")
    if not count:
        return
    joined = b"/\0/" + b"/\0/".join(filter(None, table.names)) + b"/\0/"
    if joined.count(b"\0") != sum(map(bool, table.names)) + 1 and any(table.names):
        raise UnsafePath(where, "a name holds a NUL byte")
    if any(table.names):
        for bad in (b"//", b"/./", b"/../"):
            if bad in joined:
                raise UnsafePath(where, f"a name has a component {bad[1:-1].decode()!r}, which no entry can have")
    if not np.isin(table.kinds, _KINDS).all():
        raise FormatError(where, f"unknown entry type {int(table.kinds[~np.isin(table.kinds, _KINDS)][0])}")
    regular = table.kinds == Kind.REG
    sized = regular & (table.sizes > 0)
    if (table.sizes[regular] < 0).any() or (table.offsets[sized] < -1).any():
        raise FormatError(where, "negative size or offset")
    stored = sized & (table.offsets >= 0)
    if (table.sizes[stored] > table.address_space_bytes - table.offsets[stored]).any():
        index = int(np.flatnonzero(stored & (table.sizes > table.address_space_bytes - table.offsets))[0])
        raise FormatError(
            f"{where}: entry {table.names[index][:200]!r}",
            f"{table.sizes[index]} bytes at {table.offsets[index]} are outside the layer's {table.address_space_bytes}",
        )
    if (table.mtimes_ns > 999_999_999).any():
        raise FormatError(where, "a time with more than 999 999 999 nanoseconds")


def _visible(attributes: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Returns the attributes without those that OverlayFS keeps to itself."""
    if not any(name.startswith(OVERLAY_PREFIXES) for name in attributes):
        return attributes
    return {name: value for name, value in attributes.items() if not name.startswith(OVERLAY_PREFIXES)}


@dataclass(slots=True)
class _Merger:
    """Holds the tree while layers are put on it: a dict of children per directory path; numbers are entries of all
    layers.

    A number beyond all entries is a directory that no entry describes.
    """

    tables: Sequence[LayerTable]
    readings: Sequence[LayerReading]
    total: int = 0
    kinds: bytearray = field(default_factory=bytearray)
    directories: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    nlinks: dict[int, int] = field(default_factory=dict)
    root: int = -1
    links: Sequence[LowerLink] = ()
    firsts: list[int] = field(default_factory=list)
    """Holds each layer's first entry."""

    def __post_init__(self) -> None:
        self.kinds = bytearray(b"".join(table.kinds.tobytes() for table in self.tables))
        self.total = len(self.kinds)
        self.directories[b""] = {}
        self.root = self._implied()  # shown where there is no layer
        first = 0
        for table in self.tables:
            self.firsts.append(first)
            first += len(table)

    def _implied(self) -> int:
        self.kinds.append(Kind.DIR)
        return len(self.kinds) - 1

    def add(self, layer: int) -> None:
        """Puts one layer on top."""
        reading, first, kinds = self.readings[layer], self.firsts[layer], self.kinds
        for path in reading.whiteouts:
            self._hide(path)
        for path in reading.opaque:
            if path in self.directories:
                self._drop(path)
                self.directories[path] = {}
        self.root = first + reading.root if reading.root >= 0 else self._implied()
        for inode, count in reading.nlinks.items():
            self.nlinks[first + inode] = count
        for path, own in reading.directories.items():
            children = self.directories.setdefault(path, {})
            if children:
                for base in children.keys() & own.keys():
                    if kinds[children[base]] == Kind.DIR and own[base] >= 0 and kinds[first + own[base]] != Kind.DIR:
                        self._drop(path + b"/" + base if path else base)
            children.update(zip(own, map(first.__add__, own.values()), strict=True) if first else own)
        for path in reading.implied:
            self.directories[path].update(
                {base: self._implied() for base, number in reading.directories[path].items() if number == IMPLIED}
            )
        for link in self.links:
            if link.layer == layer:
                inode = self.firsts[link.lower] + link.target
                self.nlinks[inode] = self.nlinks.get(inode, 1) + len(link.paths)
                for path in link.paths:
                    parent, _, base = path.rpartition(b"/")
                    self.directories[parent][base] = inode

    def _hide(self, path: bytes) -> None:
        parent, _, base = path.rpartition(b"/")
        found = self.directories.get(parent, {}).pop(base, None)
        if found is not None and self.kinds[found] == Kind.DIR:
            self._drop(path)

    def _drop(self, path: bytes) -> None:
        """Forgets a directory's content, all the way down; the caller replaces or removes its own entry."""
        stack = [path]
        while stack:
            top = stack.pop()
            prefix = top + b"/" if top else b""
            stack += [
                prefix + base for base, number in self.directories.pop(top).items() if self.kinds[number] == Kind.DIR
            ]

    def finish(self, sparse: Sequence[Mapping[int, Sequence[Fragment]]]) -> MergedTree:
        """Returns the tree in its final order."""
        kinds = np.frombuffer(bytes(self.kinds), dtype=np.uint8)
        names, owners, starts, directories = self._flatten()
        entries = np.array(owners, dtype=np.int64)
        is_directory = kinds[entries] == Kind.DIR
        group = np.repeat(np.arange(len(directories)), np.diff(starts))
        # A directory's own inode ("." stands for it), then its other children; each inode at its first name.
        own = np.array(directories, dtype=np.int64)
        sequence = np.concatenate([own, entries[~is_directory]])
        sequence = sequence[
            np.argsort(np.concatenate([np.arange(len(own)) * 2, group[~is_directory] * 2 + 1]), kind="stable")
        ]
        number_of = np.full(len(kinds), -1, dtype=np.int64)
        number_of[sequence[::-1]] = np.arange(len(sequence))[::-1]
        sequence = sequence[number_of[sequence] == np.arange(len(sequence))]
        number_of[sequence] = np.arange(len(sequence))
        implied = sequence >= self.total
        sources = np.where(implied, 0, sequence)
        nlinks = np.ones(len(sequence), dtype=np.uint32)
        for number, count in self.nlinks.items():
            if number_of[number] >= 0:
                nlinks[number_of[number]] = count
        nlinks[number_of[own]] = np.add.reduceat(is_directory.astype(np.uint32), starts[:-1])
        layer_of = np.repeat(np.arange(len(self.tables), dtype=np.int32), [len(table) for table in self.tables])
        final_kinds = kinds[sequence]

        def column(name: str, constant: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
            parts = [getattr(table, name) for table in self.tables]
            values = np.concatenate(parts) if self.total else np.zeros(1, dtype)
            return np.where(implied, constant, values[sources]).astype(dtype, copy=False)

        sizes = column("sizes", 0, np.int64)
        sizes[final_kinds != Kind.REG] = 0
        layers = np.where(implied | (sizes == 0), -1, layer_of[sources] if self.total else -1).astype(np.int32)

        def by_inode(parts: Iterable[Mapping[int, _Value]], keep: Callable[[int], bool]) -> dict[int, _Value]:
            out: dict[int, _Value] = {}
            first = 0
            for table, part in zip(self.tables, parts, strict=False):
                for index, value in part.items():
                    inode = int(number_of[first + index])
                    if inode >= 0 and keep(int(final_kinds[inode])):
                        out[inode] = value
                first += len(table)
            return out

        xattrs = by_inode((table.xattrs for table in self.tables), lambda kind: True)
        return MergedTree(
            kinds=final_kinds,
            modes=np.where(final_kinds == Kind.SYMLINK, 0o777, column("modes", 0o755, np.uint16) & 0o7777).astype(
                np.uint16
            ),
            uids=column("uids", 0, np.uint32),
            gids=column("gids", 0, np.uint32),
            sizes=sizes,
            layers=layers,
            offsets=column("offsets", -1, np.int64),
            mtimes_s=column("mtimes_s", 0, np.int64),
            mtimes_ns=column("mtimes_ns", 0, np.uint32),
            nlinks=nlinks,
            links=by_inode((table.links for table in self.tables), lambda kind: kind == Kind.SYMLINK),
            rdevs=by_inode((table.rdevs for table in self.tables), lambda kind: kind in {Kind.CHAR, Kind.BLOCK}),
            xattrs={inode: _visible(attributes) for inode, attributes in xattrs.items()},
            fragments=by_inode(sparse, lambda kind: kind == Kind.REG),
            directories=number_of[own],
            starts=starts,
            entry_names=names,
            entry_inodes=number_of[entries],
        )

    def _flatten(self) -> tuple[list[bytes], list[int], npt.NDArray[np.int64], list[int]]:
        """Returns names and inodes of all directories, each sorted, depth first; where each begins; whose they are."""
        directories = self.directories
        names: list[bytes] = []
        owners: list[int] = []
        starts = [0]
        own: list[int] = []
        for path in sorted(directories, key=lambda path: path.replace(b"/", b"\0")):
            children = directories[path]
            if path:
                parent, _, base = path.rpartition(b"/")
                above = directories[parent]
                children[b"."], children[b".."] = above[base], above[b"."]
            else:
                children[b"."] = children[b".."] = self.root
            own.append(children[b"."])
            ordered = sorted(children)
            names += ordered
            owners.extend(map(children.__getitem__, ordered))
            starts.append(len(names))
        if len(max(names, key=len)) > NAME_MAX:
            raise UnsafePath("merged layers", f"a name component is longer than {NAME_MAX} bytes")
        return names, owners, np.array(starts, dtype=np.int64), own
