"""This module reads a whole layer from its table: columns are checked, then each entry is put where it goes
(``reading``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.errors import FormatError
from harness.formats.table import Kind
from harness.formats.tar.limits import MAX_OWNER, OPAQUE_XATTR, check_device, check_owner, check_symlink
from harness.formats.tar.names import NAME_MAX, check_length
from harness.formats.tar.reading import LayerReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.formats.table import LayerTable
    from harness.formats.tar.reading import LayerReading

_HARDLINK: Final = int(Kind.HARDLINK)


def read_table(table: LayerTable, where: str) -> LayerReading:
    """Reads a layer whose entries are there as columns; ``where`` names it in errors.

    Raises FormatError and UnsafePath for what no unpacker could make: such entries are refused in every mode.
    """
    try:
        _check_columns(table)
        devices = frozenset(index for index, device in table.rdevs.items() if device == (0, 0))
        whiteouts = frozenset(index for index in devices if table.kinds[index] == Kind.CHAR)
        opaque = frozenset(
            index
            for index, attributes in table.xattrs.items()
            if attributes.get(OPAQUE_XATTR) == b"y" and table.kinds[index] == Kind.DIR
        )
        return read_entries(table.names, table.kinds.tobytes(), table.links, whiteouts=whiteouts, opaque=opaque)
    except FormatError as error:
        raise type(error)(f"{where}, {error.where}", error.what) from None


def _check_columns(table: LayerTable) -> None:
    if not len(table):
        return
    if len(max(table.names, key=len)) > NAME_MAX:
        for name in table.names:
            check_length(name)
    for owners in (table.uids, table.gids):
        if int(owners.max()) > MAX_OWNER:
            at = int(owners.argmax())
            check_owner(table.names[at], int(table.uids[at]), int(table.gids[at]))
    for index, target in table.links.items():
        if table.kinds[index] == Kind.SYMLINK:
            check_symlink(table.names[index], target)
    for index, device in table.rdevs.items():
        check_device(table.names[index], *device)


def read_entries(
    names: Sequence[bytes],
    kinds: Sequence[int],
    links: Mapping[int, bytes],
    *,
    whiteouts: frozenset[int] = frozenset(),
    opaque: frozenset[int] = frozenset(),
) -> LayerReading:
    """Reads a whole layer whose entries are there as columns (see ``LayerTable``).

    ``whiteouts`` are the character devices 0/0, ``opaque`` the directories with that attribute. An entry for which
    there is nothing to decide takes a quarter of a microsecond; every other goes through ``LayerReader.place``.
    """
    reader = LayerReader(kinds, links)
    directories = reader.directories
    ways = bytearray(kinds)
    for number in (*whiteouts, *opaque):
        ways[number] = _HARDLINK + 1
    last, children = b"", directories[b""]
    for number, kind, name in zip(range(len(names)), ways, names, strict=True):
        parent, _, base = name.rpartition(b"/")
        if parent != last:
            found = directories.get(parent)
            if found is not None:
                last, children = parent, found
        if (
            kind >= 8  # Kind.HARDLINK: looking members up would cost a third of this loop
            or parent != last
            or base in children
            or (base < b"/" and (not base or base[:4] == b".wh."))
        ):
            reader.place(
                number,
                name,
                kinds[number],
                links.get(number, b""),
                whiteout=number in whiteouts,
                opaque=number in opaque,
            )
            last, children = b"", directories[b""]
            continue
        children[base] = number
        if kind == 2:  # Kind.DIR
            directories[name] = {}
    return reader.finish()
