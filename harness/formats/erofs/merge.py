"""Merging an image's layers to the one tree that OverlayFS would show, as columns that the EROFS writer can place.

The tree is what unpacking every layer in order, each into its own directory of one OverlayFS, shows afterwards.
Decisions, where tools differ or the formats leave room:

- Whiteouts and opaque markers hide entries of lower layers only, wherever they stand in their own layer (OCI image
  spec 1.1, layer.md: "Whiteouts"). An entry that carries ``trusted.overlay.opaque=y`` is opaque too. No other
  ``trusted.overlay.*`` attribute survives: OverlayFS would obey it instead of showing it. AUFS leftovers (other names
  that begin with ``.wh..wh.``) are passed over.
- A directory over a directory keeps the children and takes the upper one's metadata. Every other meeting replaces.
- Later entries of one layer win in the order of the tar, as for an unpacker: a file over a directory removes the
  directory's content; an entry below a file or symlink of its own layer is refused.
- A parent that the layer itself does not describe (its root as well) has mode 0755, owner 0:0 and time 0, whatever
  lower layers say of it: it is a directory of this layer, and OverlayFS shows the uppermost one's metadata. Docker
  and the FUSE snapshotters do so too; containerd's full unpack copies a lower layer's metadata instead.
- A hard link shares its target's inode, metadata included. Its target is the entry of that name at that point of
  the unpacking, else one that comes later in the same layer. A target in a lower layer is copied up, as link(2) on
  OverlayFS does: the target's name and the new one share a new inode, other old names keep the old one.
- Link counts are those that OverlayFS reports: the names an inode has in its own layer, hidden ones included. A
  directory has two plus its subdirectories.
- A symlink's mode is 0777, whatever its header says: Linux has no other.
- Names are bytes; the order inside a directory is that of the bytes.

Sources: OCI image spec 1.1 (layer.md); Linux Documentation/filesystems/overlayfs.rst; containerd archive/tar.go
(mkparent); moby pkg/archive (createImpliedDirectories); stargz-snapshotter estargz (getOrCreateDir).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from harness.errors import FormatError, UnsafePath
from harness.formats.erofs.layout import NAME_MAX
from harness.formats.table import OPAQUE_MARKER, WHITEOUT_PREFIX, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from harness.formats.table import LayerTable

_META_PREFIX: Final = b".wh..wh."
_OVERLAY_XATTR: Final = b"trusted.overlay."
_OPAQUE_XATTR: Final = b"trusted.overlay.opaque"
_Value = TypeVar("_Value")
_KINDS: Final = np.array([kind.value for kind in Kind], dtype=np.uint8)

Fragment = tuple[int, int, int]
"""(offset in the file, bytes, offset in the layer's address space) of one stored piece of a sparse file."""


@dataclass(frozen=True, slots=True)
class MergedTree:
    """One tree: columns by inode (0 is the root) and, by directory in depth-first order, its entries.

    Directory ``k`` is inode ``directories[k]``; its entries are ``[starts[k], starts[k + 1])`` of ``entry_names`` and
    ``entry_inodes``, sorted by name, ``.`` and ``..`` among them. An inode's number is its place in a depth-first
    walk in which a directory's other children follow it at once, before its subdirectories: what is looked up
    together is stored together. ``layers`` is -1 where the inode has no data; ``offsets`` are in the address space
    of that layer. Units as in ``LayerTable``.
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
    tables: Sequence[LayerTable], sparse: Sequence[Mapping[int, Sequence[Fragment]]] | None = None
) -> MergedTree:
    """Merge ``tables``, bottom layer first; ``sparse`` gives each layer's sparse entries and their stored pieces.

    Raises UnsafePath for names that no directory can hold or that lead through a file or symlink, and FormatError for
    everything else that a table must not say.
    """
    for number, table in enumerate(tables):
        check_table(table, f"layer {number}")
    merger = _Merger(tables)
    for number, table in enumerate(tables):
        merger.add(number, table)
    return merger.finish(sparse or [])


def check_table(table: LayerTable, where: str) -> None:
    """Refuse a table with impossible names, kinds, extents or times; FormatError or UnsafePath says which."""
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
    """The attributes without those that OverlayFS keeps to itself."""
    if not any(name.startswith(_OVERLAY_XATTR) for name in attributes):
        return attributes
    return {name: value for name, value in attributes.items() if not name.startswith(_OVERLAY_XATTR)}


@dataclass(slots=True)
class _Merger:
    """The tree while layers are put on it: a dict of children per directory path; numbers are entries of all layers."""

    tables: Sequence[LayerTable]
    total: int = 0
    kinds: bytearray = field(default_factory=bytearray)
    directories: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    nlinks: dict[int, int] = field(default_factory=dict)
    root: int = -1
    extra_sources: list[int] = field(default_factory=list)
    """Inodes beyond the tables' entries: the entry each was copied up from, -1 for an implied directory."""
    first: int = 0
    """First entry of the layer being added, and likewise of the extra inodes: what is older lies below."""
    first_extra: int = 0
    own_directories: set[bytes] = field(default_factory=set)
    """Paths whose directory, where there is one, is known to be the layer's being added."""
    where: str = ""

    def __post_init__(self) -> None:
        self.kinds = bytearray(b"".join(table.kinds.tobytes() for table in self.tables))
        self.total = len(self.kinds)
        self.directories[b""] = {}
        self.root = self._extra(-1, Kind.DIR)  # shown where there is no layer

    def _extra(self, source: int, kind: int) -> int:
        self.extra_sources.append(source)
        self.kinds.append(kind)
        return self.total + len(self.extra_sources) - 1

    def _is_own(self, number: int) -> bool:
        """Whether the inode belongs to the layer being added."""
        return number >= self.first_extra if number >= self.total else number >= self.first

    def add(self, layer: int, table: LayerTable) -> None:
        """Put one layer on top."""
        self.where = f"layer {layer}"
        self.first_extra = self.total + len(self.extra_sources)
        names, links = table.names, table.links
        self._hide(names, table)
        directories, kinds = self.directories, self.kinds
        self.root = self._extra(-1, Kind.DIR)
        self.own_directories = {b""}
        postponed: list[tuple[int, bytes, bytes]] = []
        last_parent, children = b"", directories[b""]
        for number, name in enumerate(names, self.first):
            parent, _, base = name.rpartition(b"/")
            if parent != last_parent:
                found = directories.get(parent) if parent in self.own_directories else None
                children = self._make_parents(parent) if found is None else found
                last_parent = parent
            if base[:4] == WHITEOUT_PREFIX:
                continue
            kind = kinds[number]
            old = children.get(base)
            if kind == 2:  # Kind.DIR: looking members up would cost a third of this loop
                if not base:
                    self.root = number
                    continue
                if old is None or kinds[old] != 2:
                    if old is not None:
                        self._unlink(old)
                    directories[name] = {}
                children[base] = number
            elif not base:
                raise FormatError(self.where, "the root is not a directory")
            elif kind == 8:  # Kind.HARDLINK
                target = links.get(number - self.first)
                if target is None:
                    raise FormatError(self.where, f"hard link {name[:200]!r} without a target")
                if not self._link(name, target):
                    postponed.append((number, name, target))
            else:
                if old is not None:
                    if kinds[old] == 2:
                        self._drop(name)
                    else:
                        self._unlink(old)
                children[base] = number
        if postponed:
            self._resolve(postponed, {name: number for number, name in enumerate(names, self.first)})
        self.first += len(names)

    def _hide(self, names: Sequence[bytes], table: LayerTable) -> None:
        """Apply the layer's whiteouts and opaque markers to what lies below."""
        for name in [name for name in names if b".wh." in name]:
            parent, _, base = name.rpartition(b"/")
            if base == OPAQUE_MARKER:
                self._empty(parent)
            elif base.startswith(WHITEOUT_PREFIX) and not base.startswith(_META_PREFIX):
                hidden = base[len(WHITEOUT_PREFIX) :]
                if hidden in {b"", b".", b".."}:
                    raise UnsafePath(self.where, f"whiteout {name[:200]!r} names no entry")
                children = self.directories.get(parent)
                if children is None or hidden not in children:
                    continue
                if self.kinds[children.pop(hidden)] == Kind.DIR:
                    self._drop(parent + b"/" + hidden if parent else hidden)
        for index, attributes in table.xattrs.items():
            if attributes.get(_OPAQUE_XATTR) == b"y" and table.kinds[index] == Kind.DIR:
                self._empty(names[index])

    def _empty(self, path: bytes) -> None:
        if path in self.directories:
            self._drop(path)
            self.directories[path] = {}

    def _drop(self, path: bytes) -> None:
        """Forget a directory's content, all the way down; the caller replaces or removes its own entry."""
        stack = [path]
        while stack:
            top = stack.pop()
            prefix = top + b"/" if top else b""
            for base, number in self.directories.pop(top).items():
                if self.kinds[number] == Kind.DIR:
                    stack.append(prefix + base)
                else:
                    self._unlink(number)

    def _unlink(self, number: int) -> None:
        """One name less; a name of a lower layer is only hidden, its inode keeps its count."""
        if number in self.nlinks and self._is_own(number):
            self.nlinks[number] -= 1

    def _make_parents(self, path: bytes) -> dict[bytes, int]:
        """Children of ``path``, whose directories become this layer's where they are missing or only below."""
        missing = []
        while path not in self.own_directories or path not in self.directories:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        children = self.directories[path]
        for made in reversed(missing):
            base = made.rpartition(b"/")[2]
            old = children.get(base)
            if old is None or not self._is_own(old):
                children[base] = self._extra(-1, Kind.DIR)
                children = self.directories.setdefault(made, {})
            elif made in self.directories:
                children = self.directories[made]
            else:
                kind = Kind(self.kinds[old]).name.lower()
                raise UnsafePath(self.where, f"an entry stands below {made[:200]!r}, which is a {kind} of this layer")
            self.own_directories.add(made)
        return children

    def _link(self, name: bytes, target: bytes) -> bool:
        """Make ``name`` another name of ``target``'s inode; false when nothing has that name."""
        if target == name:
            raise FormatError(self.where, f"hard link {name[:200]!r} to itself")
        holder, _, target_base = target.rpartition(b"/")
        inode = self.directories.get(holder, {}).get(target_base)
        if inode is None or not target_base:
            return False
        if self.kinds[inode] == Kind.DIR:
            raise FormatError(self.where, f"hard link {name[:200]!r} to the directory {target[:200]!r}")
        if not self._is_own(inode):  # copied up, as link(2) on OverlayFS does
            inode = self._extra(inode, self.kinds[inode])
            self.directories[holder][target_base] = inode
        parent, _, base = name.rpartition(b"/")
        children = self.directories[parent]
        old = children.get(base)
        if old is not None:
            if self.kinds[old] == Kind.DIR:
                self._drop(name)
            else:
                self._unlink(old)
        children[base] = inode
        self.nlinks[inode] = self.nlinks.get(inode, 1) + 1
        return True

    def _resolve(self, postponed: list[tuple[int, bytes, bytes]], last: Mapping[bytes, int]) -> None:
        """Links to names that come later in the layer, in as many rounds as links lead to links."""
        while postponed:
            left = []
            for number, name, target in postponed:
                parent, _, base = name.rpartition(b"/")
                old = self._make_parents(parent).get(base)
                if old is not None and last[name] > number:
                    continue  # a later entry of the same name
                if not self._link(name, target):
                    left.append((number, name, target))
            if len(left) == len(postponed):
                _, name, target = left[0]
                raise FormatError(
                    self.where,
                    f"hard link {name[:200]!r} to {target[:200]!r}, which no layer has (or links in a circle)",
                )
            postponed = left

    def finish(self, sparse: Sequence[Mapping[int, Sequence[Fragment]]]) -> MergedTree:
        """The tree in its final order."""
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
        # Copied-up inodes take everything but their links from their source; implied directories are made of constants.
        sources = sequence.copy()
        extra = np.array(self.extra_sources, dtype=np.int64)
        while (rows := np.flatnonzero(sources >= self.total)).size and (extra[sources[rows] - self.total] >= 0).any():
            rows = rows[extra[sources[rows] - self.total] >= 0]
            sources[rows] = extra[sources[rows] - self.total]
        implied = sources >= self.total
        sources[implied] = 0
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
        targets: dict[int, list[int]] = {}
        for inode in np.flatnonzero((sources != sequence) & ~implied).tolist():
            targets.setdefault(int(sources[inode]), []).append(inode)

        def by_inode(parts: Iterable[Mapping[int, _Value]], keep: Callable[[int], bool]) -> dict[int, _Value]:
            out: dict[int, _Value] = {}
            first = 0
            for table, part in zip(self.tables, parts, strict=False):
                for index, value in part.items():
                    entry = first + index
                    number = int(number_of[entry])
                    for inode in [*targets.get(entry, ()), *([number] if number >= 0 else ())]:
                        if keep(int(final_kinds[inode])):
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
        """Names and inodes of all directories, each sorted, depth first; where each begins; whose they are."""
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
