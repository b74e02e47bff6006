"""Which entries of a layer's tar go into its eStargz form, and in which order.

Rules of the reference writer (stargz-snapshotter, estargz/build.go): of entries with the same cleaned name the last one
stays, at its own place; entries with the format's own names at the root are dropped; prioritised files come first,
each after its parent directories and, for a hard link, after its target; then the landmark. Ours goes further where
the reference would break the layer:

- a hard link that stands before its target gets the target moved before it;
- a hard link to a file that a later entry of the same name replaces keeps that file's content, as unpacking in tar
  order would: the first such link becomes the file;
- a prioritised file needs no entries for its parent directories, and one that the layer does not have is reported.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.formats.estargz.toc import HIDDEN_NAMES, LANDMARK_CONTENT, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from harness.formats.table import Kind
from harness.formats.tar.scanner import TarEntry, clean_name, clean_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HIDDEN = frozenset(name.encode() for name in HIDDEN_NAMES)
_GLOBAL_HEADER = ord("g")


@dataclass(slots=True)
class Item:
    """One entry to write. ``header`` replaces the tar's own header blocks where it is set, ``content`` its payload.

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
    """Entries in writing order (landmark included) and the prioritised names the layer does not have."""

    items: list[Item]
    missing: list[str]


def order_entries(entries: Iterable[TarEntry], prioritized: Sequence[str] = ()) -> Order:
    """Put a tar's entries in eStargz order; raises FormatError for a type no layer holds, UnsafePath for a bad name."""
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
    """Entries by cleaned name, in tar order, each name once."""
    current: dict[bytes, Item] = {}
    links: dict[bytes, list[Item]] = {}
    for entry in entries:
        if entry.flag == _GLOBAL_HEADER:
            continue
        name = clean_name(entry.name)
        if name in _HIDDEN:
            continue
        item = Item(entry, name, entry.kind, entry)
        if entry.sparse is not None or entry.flag not in b"0123456":
            item.header = encode_header(entry, size=entry.size)
        if item.kind == Kind.HARDLINK:
            target = clean_target(entry.linkname)
            if target == name:
                continue  # a link to itself says nothing
            links.setdefault(target, []).append(item)
        replaced = current.pop(name, None)
        if replaced is not None and replaced.kind != Kind.DIR and name in links:
            _take_over(replaced, links, current)
        current[name] = item
    return current


def _take_over(replaced: Item, links: dict[bytes, list[Item]], current: dict[bytes, Item]) -> None:
    """Let the first remaining hard link to a replaced file become that file, and the others link to it."""
    heirs = [link for link in links.pop(replaced.name) if current.get(link.name) is link]
    if not heirs:
        return
    if replaced.kind == Kind.HARDLINK:
        _retarget(heirs, clean_target(replaced.entry.linkname), links)
        return
    heir, others = heirs[0], heirs[1:]
    heir.header = encode_header(replaced.entry, size=replaced.payload.size, name=heir.entry.name)
    heir.kind, heir.payload = replaced.kind, replaced.payload
    heir.entry = _renamed(replaced.entry, heir.entry.name)
    _retarget(others, heir.name, links)


def _retarget(items: list[Item], target: bytes, links: dict[bytes, list[Item]]) -> None:
    for item in items:
        item.entry = _renamed(item.entry, item.entry.name, linkname=target)
        item.header = encode_header(item.entry, size=0)
        links.setdefault(target, []).append(item)


def _move(name: bytes, current: dict[bytes, Item], done: dict[bytes, Item], *, parents: bool = True) -> bool:
    """Move an entry, what it needs before it, and return whether the layer has it. Iterative: names nest deeply."""
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
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(LANDMARK_CONTENT), 0
    entry = TarEntry()
    entry.name, entry.linkname, entry.uname, entry.gname = name.encode(), b"", b"", b""
    entry.flag, entry.mode, entry.uid, entry.gid = ord("0"), 0, 0, 0
    entry.mtime_s = entry.mtime_ns = entry.devmajor = entry.devminor = 0
    entry.size = entry.stored_bytes = len(LANDMARK_CONTENT)
    entry.header_offset = entry.payload_offset = 0
    entry.pax, entry.sparse = {}, None
    return Item(entry, entry.name, Kind.REG, entry, info.tobuf(tarfile.USTAR_FORMAT), LANDMARK_CONTENT)


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
    """Header blocks that say what ``entry`` says, with another size or name (a sparse file written in full)."""
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
