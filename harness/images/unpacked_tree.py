"""This module works out what unpacking an image's layers shows, a second time and apart from every mode, for
``verify``.

This is the plain way to do it, with one object per file: each layer's entries are applied in order to a tree of its
own, and the trees are laid over each other as OverlayFS does. It shares nothing with ``harness.formats.tar.reading``,
which the modes use, so that a mistake there is seen here. The rules are the same; they are listed there.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.formats.tar.limits import OPAQUE_XATTR, OVERLAY_PREFIXES, held_time, held_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.formats.tar.scanner import TarEntry

_GLOBAL_HEADER = ord("g")


class Shown(NamedTuple):
    """Holds one name of a tree.

    ``linked`` is the first name of the same inode, ``place`` the first byte of a file's payload (layer, offset in its
    tar), where the form can tell.
    """

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    target: bytes
    device: tuple[int, int]
    xattrs: Mapping[bytes, bytes]
    nlink: int
    linked: bytes
    place: tuple[int, int] | None = None


@dataclass(slots=True, eq=False)
class Node:
    """Holds one inode; a directory has ``children``. An ``entry`` of None is a directory that only names imply."""

    entry: TarEntry | None
    layer: int
    children: dict[bytes, Node] | None = None
    opaque: bool = False
    hidden: set[bytes] = field(default_factory=set)
    lower: bytes = b""
    """Holds, of a hard link into a lower layer, the target's path; ``stands_for`` is then the inode there."""
    stands_for: Node | None = None
    names: int = 0


def unpacked_tree(layers: Sequence[Sequence[TarEntry]]) -> Node:
    """Returns the root of what all layers show, bottom layer first. Raises FormatError where a link leads nowhere."""
    shown = _directory(None, 0)
    for number, entries in enumerate(layers):
        root, links = _unpack(entries, number)
        shown = _over(shown, root)
        for link in links:
            found = _lookup(shown, link.lower)
            if found is None or found.children is not None or found is link:
                raise FormatError(f"layer {number}", f"a hard link to {link.lower!r}, which is nowhere below")
            link.stands_for = found.stands_for or found
        _count(root)
    return shown


def flattened(root: Node) -> dict[bytes, Shown]:
    """Returns every name below the root (the root's is empty)."""
    found: dict[bytes, Shown] = {}
    first: dict[int, bytes] = {}
    for path, node in sorted(_walk(root), key=lambda item: item[0]):
        inode = node.stands_for or node
        found[path] = _shown(inode, first.setdefault(id(inode), path))
    return found


def _walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    waiting = [(b"", root)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        prefix = path + b"/" if path else b""
        waiting += [(prefix + base, child) for base, child in (node.children or {}).items()]


def _shown(node: Node, linked: bytes) -> Shown:
    entry = node.entry
    if entry is None:
        return Shown("DIR", 0o755, (0, 0), 0, 0, b"", (0, 0), {}, 0, linked)
    kind = entry.kind
    seconds, nanoseconds = held_time(entry.mtime_s, entry.mtime_ns)
    attributes = held_xattrs(kind, entry.xattrs)
    return Shown(
        kind.name,
        0o777 if kind is Kind.SYMLINK else entry.mode & 0o7777,
        (entry.uid, entry.gid),
        seconds * 1_000_000_000 + nanoseconds,
        entry.size if kind is Kind.REG else 0,
        entry.linkname if kind is Kind.SYMLINK else b"",
        (entry.devmajor, entry.devminor) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
        {name: value for name, value in attributes.items() if not name.startswith(OVERLAY_PREFIXES)},
        0 if kind is Kind.DIR else node.names,
        linked,
        (node.layer, entry.payload_offset) if kind is Kind.REG and entry.size and entry.sparse is None else None,
    )


def _directory(entry: TarEntry | None, layer: int) -> Node:
    return Node(entry, layer, {})


def _unpack(entries: Sequence[TarEntry], layer: int) -> tuple[Node, list[Node]]:
    """Returns one layer's tree, and its hard links into lower layers."""
    root = _directory(None, layer)
    waiting: list[tuple[Node, bytes, bytes, Node]] = []
    for entry in entries:
        if entry.flag == _GLOBAL_HEADER:
            continue
        path = _normal(entry.name)
        if not path:
            root.entry = entry
            root.opaque = root.opaque or _says_opaque(entry)
            continue
        above, _, base = path.rpartition(b"/")
        parent = _reach(root, above, layer, make=True)
        assert parent is not None
        assert parent.children is not None
        if base == b".wh..wh..opq":
            parent.opaque = True
        elif base.startswith(b".wh.") and not base.startswith(b".wh..wh."):
            parent.hidden.add(base[4:])
        elif entry.kind is Kind.CHAR and (entry.devmajor, entry.devminor) == (0, 0):
            parent.hidden.add(base)
        elif entry.kind is Kind.DIR:
            _make_directory(parent, base, entry, layer)
        elif entry.kind is Kind.HARDLINK:
            target = _normal(entry.linkname)
            found = _find(root, target, layer)
            parent.children.pop(base, None)
            if found is None:
                waiting.append((parent, base, target, Node(entry, layer, lower=target)))
            else:
                parent.children[base] = found
        else:
            parent.children[base] = Node(entry, layer)
    links = _link_late(root, waiting, layer)
    for _, node in _walk(root):
        children = node.children or {}
        for base in [base for base in children if base.startswith(b".wh..wh.")]:
            del children[base]
        for base in node.hidden & children.keys():
            node.hidden.discard(base)
            children[base].opaque = True
    return root, links


def _make_directory(parent: Node, base: bytes, entry: TarEntry, layer: int) -> None:
    assert parent.children is not None
    old = parent.children.get(base)
    if old is None or old.children is None:
        parent.children[base] = _directory(entry, layer)
        parent.children[base].opaque = old is not None
    else:
        old.entry = entry
    parent.children[base].opaque |= _says_opaque(entry)


def _link_late(root: Node, waiting: list[tuple[Node, bytes, bytes, Node]], layer: int) -> list[Node]:
    """Makes the links whose targets came later; what is left leads into lower layers."""
    open_places = {(id(late[0]), late[1]): late for late in waiting if late[1] not in (late[0].children or {})}
    waiting = list(open_places.values())  # the last entry of a name counts
    while waiting:
        left = []
        for parent, base, target, node in waiting:
            found = _find(root, target, layer)
            assert parent.children is not None
            if found is None:
                left.append((parent, base, target, node))
            else:
                parent.children[base] = found
        if len(left) == len(waiting):
            break
        waiting = left
    links: list[Node] = []
    made: dict[bytes, Node] = {}
    for parent, base, target, node in waiting:
        assert parent.children is not None
        parent.children[base] = made.setdefault(target, node)
        links.append(node)
    while True:  # a link to a link into a lower layer is a name of the same file
        joined = [
            (parent, base, found)
            for parent, base, target, _ in waiting
            if (found := _find(root, target, layer)) is not None and (parent.children or {})[base] is not found
        ]
        if not joined:
            break
        for parent, base, found in joined:
            assert parent.children is not None
            parent.children[base] = found
    return [node for node in links if any(child is node for _, child in _walk(root))]


def _normal(name: bytes) -> bytes:
    return posixpath.normpath(b"/" + name).lstrip(b"/")


def _says_opaque(entry: TarEntry) -> bool:
    return entry.xattrs.get(OPAQUE_XATTR) == b"y"


def _reach(root: Node, path: bytes, layer: int, *, make: bool) -> Node | None:
    """Returns the directory that ``path`` leads to inside the root, symbolic links followed; None where it is
    missing.
    """
    above: list[tuple[bytes, Node | None]] = [(b"", root)]
    parts = path.split(b"/")[::-1]
    hops = 0
    while parts:
        part = parts.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            above = above[:-1] or above
            continue
        parent = above[-1][1]
        found = (parent.children or {}).get(part) if parent is not None else None
        if found is not None and found.children is None:
            hops += 1
            if found.entry is None or found.entry.kind is not Kind.SYMLINK or hops > 40:
                if make:
                    raise FormatError(f"layer {layer}", f"{path!r} leads through what is no directory")
                return None
            parts += found.entry.linkname.split(b"/")[::-1]
            above = [(b"", root)] if found.entry.linkname[:1] == b"/" else above
            continue
        above.append((part, found))
    at = root
    for part, node in above[1:]:
        if node is None and not make:
            return None
        assert at.children is not None
        at = node or at.children.setdefault(part, _directory(None, layer))
    return at


def _find(root: Node, path: bytes, layer: int) -> Node | None:
    above, _, base = path.rpartition(b"/")
    parent = _reach(root, above, layer, make=False)
    return (parent.children or {}).get(base) if parent is not None else None


def _lookup(root: Node, path: bytes) -> Node | None:
    """Returns what a merged tree has at a path; no link is followed."""
    node: Node | None = root
    for part in path.split(b"/"):
        if node is None or node.children is None:
            return None
        node = node.children.get(part)
    return node


def _over(lower: Node, upper: Node) -> Node:
    """Returns the directory ``upper`` over the directory ``lower``."""
    result = _directory(upper.entry, upper.layer)
    waiting: list[tuple[Node, Node | None, Node]] = [(result, lower, upper)]
    while waiting:
        merged, below, above = waiting.pop()
        assert merged.children is not None
        under = {} if below is None or below.children is None or above.opaque else below.children
        merged.children.update({base: child for base, child in under.items() if base not in above.hidden})
        for base, child in (above.children or {}).items():
            beside = merged.children.get(base)
            if child.children is None:
                merged.children[base] = child
            else:
                merged.children[base] = _directory(child.entry, child.layer)
                waiting.append((merged.children[base], beside, child))
    return result


def _count(root: Node) -> None:
    """Counts the names that one layer gives."""
    for _, node in _walk(root):
        (node.stands_for or node).names += 1
