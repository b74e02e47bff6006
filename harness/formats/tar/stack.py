"""This module looks up hard links into lower layers, through the readings of all layers.

Such a link is another name of the very inode that the lower layer made, as in a plain file system: content, owner and
times are one, and its link count counts the names in every layer. Its target is the file that the stack shows under
that name once the layer itself is on top: what the layer hides or replaces is no target. (Docker and containerd, which
unpack each layer for itself, fail here; umoci, which unpacks all into one directory, does the same as we.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.tar.names import entry_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.formats.tar.reading import LayerReading


@dataclass(frozen=True, slots=True)
class LowerLink:
    """Says that entry ``number`` of ``layer`` (all its names: ``paths``) is the inode of entry
    ``target`` of ``lower``.
    """

    layer: int
    number: int
    paths: tuple[bytes, ...]
    lower: int
    target: int


def lower_links(readings: Sequence[LayerReading], where: Callable[[int], str]) -> list[LowerLink]:
    """Returns all hard links into lower layers, bottom layer first; FormatError for one to nothing or to a directory.

    ``where`` names a layer in errors.
    """
    found: list[LowerLink] = []
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for layer, reading in enumerate(readings):
        for number, target in reading.lower_links.items():
            paths = tuple(reading.paths_of(number))
            if not paths:
                continue
            at = find_below(readings, layer, target)
            at = known.get(at, at) if at is not None else None
            if at is None or readings[at[0]].is_directory(at[1]):
                what = "which is a directory" if at is not None else "which neither this layer nor one below it has"
                shown = target[:200].decode("utf-8", "backslashreplace")
                raise FormatError(f"{where(layer)}, {entry_of(paths[0])}", f"a hard link to {shown!r}, {what}")
            known[layer, number] = at
            found.append(LowerLink(layer, number, paths, *at))
    return found


def find_below(readings: Sequence[LayerReading], layer: int, path: bytes) -> tuple[int, int] | None:
    """Returns (layer, entry) of what the layers below ``layer`` show at ``path`` with ``layer`` on top; None for
    nothing.
    """
    for number in range(layer, -1, -1):
        reading = readings[number]
        at, base, last = b"", b"", False
        directories = reading.directories
        parts = path.split(b"/")
        for depth, base in enumerate(parts):
            children = directories.get(at)
            if children is None:
                break
            if at in reading.opaque:
                last = True
            below = at + b"/" + base if at else base
            if below in reading.whiteouts:
                return None
            found = children.get(base)
            if found is None:
                break
            if depth == len(parts) - 1:
                if number == layer:
                    return None
                return number, found
            if below not in directories:
                return None  # a file of this layer hides what is below its name
            at = below
        if last:
            return None
    return None
