"""This module holds the one reading of a layer: where each entry goes, what it replaces, and what of lower layers it
hides.

The unpacker, the EROFS merge, the FUSE directories, the eStargz and SOCI converters and ``verify`` all ask here, so
that no two of them can answer differently. The reading is that of an unpacker which takes the entries in order, each
layer into a directory of its own under OverlayFS, as Docker and containerd do it:

- A later entry of a name replaces the earlier one. A directory over a directory keeps the children and takes the new
  metadata; anything else over a directory removes what it held.
- An entry below a symbolic link of its own layer goes where the link leads. Links are followed inside the layer's root
  (``..`` stops there, a target that begins with ``/`` starts there), and what is missing of that place is made, but
  nothing that ``..`` leaves again: as containerd and umoci, which resolve the path first. An entry below any other
  entry that is no directory is refused.
- A whiteout hides the name in lower layers, wherever it stands, never an entry of its own layer. A directory of the
  same name in the same layer is therefore a new one: opaque. So is a directory that replaced something else in its
  layer, and one with the attribute ``trusted.overlay.opaque=y``, which containerd obeys. A character device 0/0 is
  OverlayFS's own form of a whiteout, and is read as one.
- Names that begin with ``.wh..wh.`` are aufs's bookkeeping (but for the opaque marker). They and what lies below them
  are never shown; hard links to them keep their content.
- A directory that only names imply has mode 0755, owner 0:0 and time 0; so has one that a whiteout implies.
- A hard link is another name of the inode that its target has at that point of the layer; else of the one that a later
  entry of the layer makes; else of a lower layer's file (``stack``). A link to itself or to a directory is refused.

Sources: OCI image spec 1.1, layer.md; containerd archive/tar.go and pkg/fs RootPath; moby pkg/archive; Linux
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from harness.errors import FormatError, UnsafePath
from harness.formats.table import OPAQUE_MARKER, WHITEOUT_PREFIX, Kind
from harness.formats.tar.names import entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableSequence, Sequence


IMPLIED: Final = -1
"""It stands for a directory that no entry describes."""
AUFS_PREFIX: Final = b".wh..wh."
MAX_HOPS: Final = 40
"""So many symbolic links are followed for one name, as in the kernel."""
MAX_LATE_LINKS: Final = 1 << 20
_DIR, _SYMLINK, _HARDLINK = int(Kind.DIR), int(Kind.SYMLINK), int(Kind.HARDLINK)
_NOUNS: Final[dict[int, str]] = {
    Kind.REG: "file", Kind.CHAR: "device", Kind.BLOCK: "device", Kind.FIFO: "fifo", Kind.HARDLINK: "hard link",
}  # fmt: skip


class Action(IntEnum):
    """Says what an unpacker does with an entry."""

    PASS = 0
    """The entry is passed over: it is a marker, which counts when the layer has ended."""
    MAKE = 1
    """The entry is made at ``LayerReader.path``, where nothing is."""
    REPLACE = 2
    """The entry is made at ``LayerReader.path``; what is there goes first, but for a directory under a directory."""
    LINK = 3
    """``LayerReader.path`` is linked to ``LayerReader.target``, which is there; what is at ``path`` goes first."""
    CLEAR = 4
    """What is at ``LayerReader.path`` is removed: a hard link comes there when its target has come."""


@dataclass(frozen=True, slots=True)
class LayerReading:
    """Holds one layer, read. Numbers are those of its entries; IMPLIED stands for a directory without one.

    ``kinds`` are the entries'. ``directories`` maps each directory (parents before children) to its names and their
    inodes: a hard link has the number of the entry that it is a name of. ``nlinks`` counts the names of inodes that
    have or had more than one. ``whiteouts`` maps names that the layer hides in lower layers to their markers,
    ``opaque`` are directories whose lower content is hidden. ``lower_links`` are hard links into lower layers: entry ->
    target; ``directories`` hold the link's own number there. ``late_links`` are the links that became possible only at
    the layer's end, in the order in which an unpacker makes them: (name, target).
    """

    kinds: Sequence[int]
    directories: Mapping[bytes, dict[bytes, int]]
    root: int
    nlinks: Mapping[int, int]
    whiteouts: Mapping[bytes, int]
    opaque: frozenset[bytes]
    lower_links: Mapping[int, bytes] = field(default_factory=dict)
    late_links: Sequence[tuple[bytes, bytes]] = ()
    implied: Sequence[bytes] = ()
    """Lists the directories that hold some which no entry describes."""
    aufs: Sequence[bytes] = ()
    """Lists where aufs's bookkeeping was put, which an unpacker removes at the end."""

    def is_directory(self, number: int) -> bool:
        return number == IMPLIED or self.kinds[number] == _DIR

    def number_of(self, path: bytes) -> int:
        """Returns the entry of a path that the layer has; IMPLIED for a directory without one."""
        if not path:
            return self.root
        parent, _, base = path.rpartition(b"/")
        return self.directories[parent][base]

    def paths_of(self, number: int) -> list[bytes]:
        """Returns every name of an inode, in the order of the directories."""
        return [
            path + b"/" + base if path else base
            for path, children in self.directories.items()
            for base, found in children.items()
            if found == number
        ]


@dataclass(frozen=True, slots=True)
class _Late:
    """Holds a hard link whose target has not come yet."""

    number: int
    name: bytes
    base: bytes
    children: dict[bytes, int]
    target: bytes


class LayerReader:
    """Reads entries one after the other. ``take`` says what to do with each, ``finish`` gives the whole.

    ``kinds`` and ``links`` hold the entries' kinds and the links' targets by number; whoever has none yet (an
    unpacker) leaves them out and gives both to ``take``.
    """

    def __init__(self, kinds: Sequence[int] | None = None, links: Mapping[int, bytes] | None = None) -> None:
        self.parent = self.base = b""
        """Says where the entry last taken goes: directory and name."""
        self.target = b""
        """Names what a hard link last taken is linked to."""
        self.directories: dict[bytes, dict[bytes, int]] = {b"": {}}
        self._own_kinds: MutableSequence[int] = bytearray()
        self._own_links: dict[int, bytes] = {}
        self.kinds = self._own_kinds if kinds is None else kinds
        self.links: Mapping[int, bytes] = self._own_links if links is None else links
        self.count = 0
        self._root = IMPLIED
        self._nlinks: dict[int, int] = {}
        self._whiteouts: dict[bytes, tuple[int, dict[bytes, int]]] = {}
        self._opaque: set[bytes] = set()
        self._late: list[_Late] = []
        self._implied: dict[bytes, None] = {}
        """Lists where directories were made that no entry had described by then."""
        self._aufs: list[bytes] = []

    @property
    def path(self) -> bytes:
        """Returns where the entry last taken goes."""
        return self.parent + b"/" + self.base if self.parent else self.base

    def take(
        self, name: bytes, kind: int, link: bytes = b"", *, whiteout: bool = False, opaque: bool = False
    ) -> Action:
        """Reads the next entry, of an unpacker that has no table: its cleaned ``name``, ``kind`` and ``link`` target.

        ``whiteout`` says that it is a character device 0/0, ``opaque`` that it is a directory with that attribute.
        """
        number = self.count
        self._own_kinds.append(kind)
        if kind == _SYMLINK:
            self._own_links[number] = link
        return self.place(number, name, kind, link, whiteout=whiteout, opaque=opaque)

    def add_file(self, parent: bytes, base: bytes) -> bool:
        """Takes a regular file that is made at ``base``, no marker, in ``parent``; false, and nothing taken, if not so.

        This is ``take`` where there is nothing to decide.
        """
        children = self.directories.get(parent)
        if children is None or base in children:
            return False
        number = self.count
        children[base] = number
        self._own_kinds.append(1)
        self.count = number + 1
        self.parent, self.base = parent, base
        return True

    def place(
        self, number: int, name: bytes, kind: int, link: bytes = b"", *, whiteout: bool = False, opaque: bool = False
    ) -> Action:
        """Reads entry ``number``, whose kind and target the given columns hold as well."""
        self.count = number + 1
        parent, _, base = name.rpartition(b"/")
        children = self.directories.get(parent)
        if children is None:
            parent, children = self._enter(parent, name)
            name = parent + b"/" + base if parent else base
        self.parent, self.base = parent, base
        if base[:4] == WHITEOUT_PREFIX and self._is_marker(number, name, parent, base, children):
            return Action.PASS
        if not base and kind != _DIR:
            raise FormatError(entry_of(name), "the layer's root is not a directory")
        if whiteout:
            self._whiteouts[name] = number, children
            return Action.PASS
        if kind == _HARDLINK:
            return self._link(number, name, base, link, children)
        if kind == _DIR:
            return self._directory(number, name, base, children, opaque=opaque)
        old = children.get(base)
        children[base] = number
        if old is None:
            return Action.MAKE
        self._let_go(name, old)
        return Action.REPLACE

    def enter(self, path: bytes) -> dict[bytes, int]:
        """Returns the names of the directory that ``path`` leads to, made where it is missing."""
        children = self.directories.get(path)
        return self._enter(path, path)[1] if children is None else children

    def finish(self) -> LayerReading:
        """Declares the layer's end: late links, what markers hide. Raises FormatError."""
        late, lower = self._finish_links()
        self._late.clear()
        aufs = [path for path in self._aufs if self._remove(path)]
        whiteouts: dict[bytes, int] = {}
        for path, (number, children) in self._whiteouts.items():
            parent, _, base = path.rpartition(b"/")
            if self.directories.get(parent) is not children:
                continue  # its directory was replaced
            own = children.get(base)
            if own is None:
                whiteouts[path] = number
            elif self._kind(own) == _DIR:
                self._opaque.add(path)
        opaque = frozenset(path for path in self._opaque if path in self.directories)
        implied = [path for path in self._implied if IMPLIED in self.directories.get(path, {}).values()]
        return LayerReading(
            self.kinds, self.directories, self._root, self._nlinks, whiteouts, opaque, lower, late, implied, aufs
        )

    def _kind(self, number: int) -> int:
        return self.kinds[number] if number >= 0 else _DIR

    def _enter(self, path: bytes, name: bytes) -> tuple[bytes, dict[bytes, int]]:
        """Returns (path, names) of the directory that ``path`` leads to; ``name`` is the entry that needs it.

        Only what is missing of the place it leads to is made: nothing that a link's ``..`` leaves again.
        """
        pending = path.split(b"/")[::-1]
        at, hops = b"", 0
        children: dict[bytes, int] | None = self.directories[b""]
        while pending:
            part = pending.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                at = at.rpartition(b"/")[0]
                children = self.directories.get(at)
                continue
            below = at + b"/" + part if at else part
            number = None if children is None else children.get(part)
            if number is not None and number >= 0 and self.kinds[number] != _DIR:
                kind = self.kinds[number]
                if kind != _SYMLINK:
                    what = f"stands below {_show(below)}, which is a {_NOUNS[kind]} of this layer and not a directory"
                    raise UnsafePath(entry_of(name), what)
                hops += 1
                if hops > MAX_HOPS:
                    raise UnsafePath(entry_of(name), f"leads through more than {MAX_HOPS} symbolic links")
                target = self.links[number]
                pending += target.split(b"/")[::-1]
                if target[:1] == b"/":
                    at, children = b"", self.directories[b""]
                continue
            at, children = below, self.directories.get(below)
        return at, self._made(at, name) if children is None else children

    def _made(self, path: bytes, name: bytes) -> dict[bytes, int]:
        """Returns the names of a directory that is missing; it is made, and what is missing above it."""
        at, children = b"", self.directories[b""]
        for part in path.split(b"/"):
            below = at + b"/" + part if at else part
            if part not in children:
                if part[:4] == WHITEOUT_PREFIX:
                    if part == OPAQUE_MARKER or not part.startswith(AUFS_PREFIX):
                        raise FormatError(entry_of(name), f"stands below {_show(below)}, which is a marker")
                    self._aufs.append(below)
                children[part] = IMPLIED
                self._implied[at] = None
                self.directories[below] = {}
            at, children = below, self.directories[below]
        return children

    def _is_marker(self, number: int, name: bytes, parent: bytes, base: bytes, children: dict[bytes, int]) -> bool:
        """Notes a whiteout or an opaque marker; false for aufs's bookkeeping, which is kept aside until the end."""
        if base == OPAQUE_MARKER:
            self._opaque.add(parent)
            return True
        if base.startswith(AUFS_PREFIX):
            self._aufs.append(name)
            return False
        hidden = base[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise UnsafePath(entry_of(name), "a whiteout that names no entry")
        self._whiteouts[parent + b"/" + hidden if parent else hidden] = number, children
        return True

    def _directory(self, number: int, name: bytes, base: bytes, children: dict[bytes, int], *, opaque: bool) -> Action:
        if opaque:
            self._opaque.add(name)
        if not base:
            self._root = number
            return Action.REPLACE
        old = children.get(base)
        children[base] = number
        if old is None:
            self.directories[name] = {}
            return Action.MAKE
        if self._kind(old) != _DIR:
            self._unlink(old)
            self.directories[name] = {}
            self._opaque.add(name)
        return Action.REPLACE

    def _link(self, number: int, name: bytes, base: bytes, target: bytes, children: dict[bytes, int]) -> Action:
        found, target = self._find(target)
        if target == name:
            raise FormatError(entry_of(name), "a hard link to itself")
        self.target = target
        old = children.get(base)
        if found is None:
            if len(self._late) >= MAX_LATE_LINKS:
                raise FormatError(entry_of(name), "too many hard links to files that did not come yet")
            self._late.append(_Late(number, name, base, children, target))
            if old is None:
                return Action.PASS
            del children[base]
            self._let_go(name, old)
            return Action.CLEAR
        if self._kind(found) == _DIR:
            raise _to_directory(name, target)
        if old == found:
            return Action.PASS
        if old is not None:
            self._let_go(name, old)
            # What went away may have been the target's own directory.
            if self._find(target)[0] != found:
                raise FormatError(entry_of(name), f"a hard link to {_show(target)}, which it replaces")
        children[base] = found
        self._nlinks[found] = self._nlinks.get(found, 1) + 1
        return Action.LINK

    def _find(self, path: bytes) -> tuple[int | None, bytes]:
        """Returns the inode that a link's target names now, and where it is; symbolic links of the layer are followed
        to it.

        The last component is not followed, as link(2) does not.
        """
        parent, _, base = path.rpartition(b"/")
        children = self.directories.get(parent)
        if children is None:
            parent = self._lead(parent)
            path = parent + b"/" + base if parent else base
            children = self.directories.get(parent)
        if not base or children is None:
            return None, path
        return children.get(base), path

    def _lead(self, path: bytes) -> bytes:
        """Returns where ``path`` leads to, as ``_enter`` does, without making anything."""
        pending = path.split(b"/")[::-1]
        at, hops = b"", 0
        while pending:
            part = pending.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                at = at.rpartition(b"/")[0]
                continue
            number = self.directories.get(at, {}).get(part)
            if number is not None and number >= 0 and self.kinds[number] == _SYMLINK and hops < MAX_HOPS:
                hops += 1
                target = self.links[number]
                pending += target.split(b"/")[::-1]
                if target[:1] == b"/":
                    at = b""
                continue
            at = at + b"/" + part if at else part
        return at

    def _finish_links(self) -> tuple[list[tuple[bytes, bytes]], dict[int, bytes]]:
        """Makes the links to names that came later; returns those made, and those into lower layers."""
        late = {one.name: one for one in self._late if self._is_open(one)}
        made: list[tuple[bytes, bytes]] = []
        lower: dict[int, bytes] = {}
        for one in late.values():
            chain, found = self._follow(one, late)
            if found is None:
                found = chain[-1].number
                lower[found] = chain[-1].target
            for link in reversed(chain):
                if link.children.get(link.base) == found:
                    continue  # made on behalf of another
                if self._kind(found) == _DIR:
                    raise _to_directory(link.name, link.target)
                link.children[link.base] = found
                if found != link.number:
                    self._nlinks[found] = self._nlinks.get(found, 1) + 1
                if found not in lower:
                    made.append((link.name, link.target))
        return made, lower

    def _follow(self, link: _Late, late: Mapping[bytes, _Late]) -> tuple[list[_Late], int | None]:
        """Follows links from this one on, each to the next; returns them, and the inode of the last one's target.

        The inode is None where the target is in a lower layer.
        """
        chain: dict[bytes, _Late] = {}
        while True:
            if link.name in chain:
                raise FormatError(entry_of(link.name), f"a hard link to {_show(link.target)}: links in a circle")
            chain[link.name] = link
            found, _ = self._find(link.target)
            following = late.get(link.target)
            if found is not None or following is None:
                return list(chain.values()), found
            link = following

    def _is_open(self, late: _Late) -> bool:
        """Says whether no later entry took the link's name or its directory."""
        parent = late.name.rpartition(b"/")[0]
        return late.base not in late.children and self.directories.get(parent) is late.children

    def _let_go(self, path: bytes, number: int) -> None:
        """Notes that what ``number`` was at ``path`` is replaced by something else."""
        if self._kind(number) == _DIR:
            self._drop(path)
        else:
            self._unlink(number)

    def _drop(self, path: bytes) -> None:
        """Forgets a directory's content, all the way down."""
        stack = [path]
        while stack:
            top = stack.pop()
            self._opaque.discard(top)
            for base, number in self.directories.pop(top).items():
                if self._kind(number) == _DIR:
                    stack.append(top + b"/" + base)
                else:
                    self._unlink(number)

    def _unlink(self, number: int) -> None:
        """Notes that an inode has one name less."""
        count = self._nlinks.get(number)
        if count is not None:
            self._nlinks[number] = count - 1

    def _remove(self, path: bytes) -> bool:
        """Takes a name away at the layer's end; says whether it was there."""
        parent, _, base = path.rpartition(b"/")
        number = self.directories.get(parent, {}).pop(base, None)
        if number is None:
            return False
        self._let_go(path, number)
        return True


def _to_directory(name: bytes, target: bytes) -> FormatError:
    return FormatError(entry_of(name), f"a hard link to {_show(target)}, which is a directory")


def _show(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "backslashreplace") or "/")
