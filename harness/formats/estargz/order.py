"""This module says which entries of a layer's tar go into its eStargz form, and in which order.

Rules of the reference writer (stargz-snapshotter, estargz/build.go): of entries with the same cleaned name the last one
stays, at its own place; entries with the format's own names at the root are dropped; prioritised files come first,
each after its parent directories and, for a hard link, after its target; then the landmark. Ours goes further where
the reference would break the layer:

- a hard link that stands before its target gets the target moved before it;
- what the entries mean is said by ``harness.formats.tar.reading``, and the new layer means the same in whatever order
  it is read: an entry below a symbolic link is written where the link leads, a directory that replaced something else
  gets an opaque marker, aufs's bookkeeping goes;
- a hard link to a file that a later entry of the same name replaces keeps that file's content, as unpacking in tar
  order would: the first such link becomes the file;
- a prioritised file needs no entries for its parent directories, and one that the layer does not have is reported.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.formats.estargz.toc import HIDDEN_NAMES, LANDMARK_CONTENT, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from harness.formats.table import OPAQUE_MARKER, WHITEOUT_PREFIX, Kind
from harness.formats.tar.entry_reader import GLOBAL_HEADER, EntryReader
from harness.formats.tar.names import clean_name, clean_target
from harness.formats.tar.reading import AUFS_PREFIX, IMPLIED
from harness.formats.tar.scanner import TarEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.formats.tar.reading import LayerReading

_HIDDEN = frozenset(name.encode() for name in HIDDEN_NAMES)


@dataclass(slots=True)
class Item:
    """Names one entry to write. ``header`` replaces the tar's own header blocks where it is set, ``content`` its
    payload.

    ``entry`` gives the metadata, ``payload`` the entry whose stored bytes are the payload (the same one, but for a
    link that took over a replaced file).
    """

    entry: TarEntry
    name: bytes
    kind: Kind
    payload: TarEntry
    header: bytes | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Holds entries in writing order (landmark included) and the prioritised names the layer does not have."""

    items: list[Item]
    missing: list[str]


def order_entries(entries: Iterable[TarEntry], prioritized: Sequence[str] = ()) -> Order:
    """Puts a tar's entries in eStargz order; FormatError for a type no layer holds, UnsafePath for a bad name."""
    current = _surviving(entries)
    done: dict[bytes, Item] = {}
    missing = [name for name in prioritized if not _move(clean_target(name.encode()), current, done)]
    first = list(done.values())
    for name in list(current):
        if name in current:
            if current[name].kind == Kind.HARDLINK:
                _move(name, current, done, parents=False)
            else:
                done[name] = current.pop(name)
    rest = list(done.values())[len(first) :]
    landmark = _landmark(PREFETCH_LANDMARK if prioritized else NO_PREFETCH_LANDMARK)
    return Order([*first, landmark, *rest], missing)


def _surviving(entries: Iterable[TarEntry]) -> dict[bytes, Item]:
    """Returns what the layer shows and hides, by path in tar order, each name once.

    Reading the items in any order in which links follow their targets gives what reading the tar gives.
    """
    reader = EntryReader()
    taken: list[TarEntry] = []
    last: dict[bytes, int] = {}
    placed: list[bytes] = []
    for entry in entries:
        if entry.flag == GLOBAL_HEADER or clean_name(entry.name) in _HIDDEN:
            continue
        reader.read(entry)
        last[reader.path] = len(taken)
        taken.append(entry)
        placed.append(reader.path)
    reading = reader.finish()
    names = _names(reading, last)
    owners = {number: placed[number] for number in names.values() if names.get(placed[number]) == number}
    current: dict[bytes, Item] = {}
    for number, entry in enumerate(taken):
        path = placed[number]
        if last[path] != number or path not in names:
            continue
        inode = names[path]
        owner = owners.setdefault(inode, path)
        if inode == number or owner == path:
            current[path] = _item(taken[inode], path, taken[inode].kind)
        else:
            target = clean_target(entry.linkname)
            current[path] = _item(entry, path, Kind.HARDLINK, b"" if names.get(target) == inode else owner)
    for path in sorted(reading.opaque - _opaque(current)):
        marker = path + b"/" + OPAQUE_MARKER if path else OPAQUE_MARKER
        current[marker] = Item(entry := _empty_file(marker), marker, Kind.REG, entry, encode_header(entry, size=0))
    return current


def _names(reading: LayerReading, last: dict[bytes, int]) -> dict[bytes, int]:
    """Returns every name to write and its inode: what the layer shows, and its markers."""
    names = {
        path + b"/" + base if path else base: number
        for path, children in reading.directories.items()
        for base, number in children.items()
        if number != IMPLIED
    }
    if reading.root != IMPLIED:
        names[b""] = reading.root
    hiding = set(reading.whiteouts.values())
    for path, number in last.items():
        if number in hiding or _counts(path, reading):
            names[path] = number
    return names


def _counts(path: bytes, reading: LayerReading) -> bool:
    """Says whether this is a marker that says at the layer's end what it said where it stood.

    It does not when its directory was replaced after it: written again, it would hide what the layer shows.
    """
    parent, _, base = path.rpartition(b"/")
    if base == OPAQUE_MARKER:
        return parent in reading.opaque
    if not base.startswith(WHITEOUT_PREFIX) or base.startswith(AUFS_PREFIX):
        return False
    hidden = base[len(WHITEOUT_PREFIX) :]
    below = parent + b"/" + hidden if parent else hidden
    own = reading.directories.get(parent, {}).get(hidden)
    if own is None:
        return below in reading.whiteouts
    return below in reading.opaque or not reading.is_directory(own)


def _opaque(items: dict[bytes, Item]) -> frozenset[bytes]:
    """Returns the directories that are opaque by what the items themselves say."""
    reader = EntryReader()
    for item in items.values():
        if item.kind is not Kind.HARDLINK:
            reader.read(item.entry)
    return reader.finish().opaque


def _item(entry: TarEntry, path: bytes, kind: Kind, target: bytes = b"") -> Item:
    """Makes the item for ``path``, with a header of its own where the tar's says something else."""
    written = entry
    if clean_name(entry.name) != path or target:
        written = _renamed(entry, path, target or None)
    item = Item(written, path, kind, entry)
    if written is not entry or entry.sparse is not None or entry.flag not in b"0123456":
        item.header = encode_header(written, size=entry.size)
    return item


def _move(name: bytes, current: dict[bytes, Item], done: dict[bytes, Item], *, parents: bool = True) -> bool:
    """Moves an entry, and what it needs before it; says whether the layer has it. It is iterative: names nest
    deeply.
    """
    if name not in current and name not in done:
        return False
    pending = [name]
    seen: set[bytes] = set()
    while pending:
        at = pending[-1]
        item = current.get(at)
        if item is None or at in seen:
            pending.pop()
            if item is not None:
                done[at] = current.pop(at)
            continue
        seen.add(at)
        if item.kind == Kind.HARDLINK:
            target = clean_target(item.entry.linkname)
            if target not in seen:
                pending.append(target)
        if parents:
            pieces = at.split(b"/")
            pending.extend(b"/".join(pieces[:depth]) for depth in range(len(pieces) - 1, -1, -1))
    return True


def _landmark(name: str) -> Item:
    entry = _empty_file(name.encode())
    entry.size = entry.stored_bytes = len(LANDMARK_CONTENT)
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(LANDMARK_CONTENT), 0
    return Item(entry, entry.name, Kind.REG, entry, info.tobuf(tarfile.USTAR_FORMAT), LANDMARK_CONTENT)


def _empty_file(name: bytes) -> TarEntry:
    entry = TarEntry()
    entry.name, entry.linkname, entry.uname, entry.gname = name, b"", b"", b""
    entry.flag, entry.mode, entry.uid, entry.gid = ord("0"), 0, 0, 0
    entry.mtime_s = entry.mtime_ns = entry.devmajor = entry.devminor = 0
    entry.size = entry.stored_bytes = entry.header_offset = entry.payload_offset = 0
    entry.pax, entry.sparse = {}, None
    return entry


def _renamed(entry: TarEntry, name: bytes, linkname: bytes | None = None) -> TarEntry:
    copy = TarEntry()
    for field in TarEntry.__slots__:
        setattr(copy, field, getattr(entry, field))
    copy.name = name
    if linkname is not None:
        copy.linkname = linkname
    return copy


_SUPERSEDED_RECORDS = (b"GNU.sparse.", b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid", b"uname", b"gname")


def encode_header(entry: TarEntry, *, size: int, name: bytes | None = None) -> bytes:
    """Writes header blocks that say what ``entry`` says, with another size or name (a sparse file written in full)."""
    kind = entry.kind
    info = tarfile.TarInfo(_text(entry.name if name is None else name))
    info.type = tarfile.REGTYPE if kind == Kind.REG else bytes((entry.flag,))
    info.size = size if kind == Kind.REG else 0
    info.linkname, info.uname, info.gname = _text(entry.linkname), _text(entry.uname), _text(entry.gname)
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.devmajor, info.devminor = entry.devmajor, entry.devminor
    info.pax_headers = {
        _text(key): _text(value) for key, value in entry.pax.items() if not key.startswith(_SUPERSEDED_RECORDS)
    }
    info.mtime = entry.mtime_s
    if entry.mtime_ns:
        info.pax_headers["mtime"] = _pax_time(entry.mtime_s, entry.mtime_ns)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _pax_time(seconds: int, nanoseconds: int) -> str:
    if seconds >= 0:
        return f"{seconds}.{nanoseconds:09d}"
    whole, rest = -seconds - 1, 1_000_000_000 - nanoseconds
    return f"-{whole}.{rest:09d}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
