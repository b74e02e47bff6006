"""This module computes what a start read of its image: shares of files and bytes, per layer and package directory.

A *package directory* is what somebody would add to an image or leave out of it in one piece: a Python distribution, a
node module, else a directory near the root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.lazyfs.messages import Touch
    from harness.session.image_files import ListedFile

_PYTHON = re.compile(r"^(.*/(?:dist|site)-packages)/(.+)$")
_NODE = re.compile(r"^(.*?/node_modules)/((?:@[^/]+/)?[^/]+)(?:/|$)")
_METADATA = re.compile(r"^(.+?)(?:-[0-9][^/]*)?\.(?:dist-info|egg-info|egg-link|libs)$")
_MODULE = re.compile(r"^(.+?)\.(?:py|pyc|so|pth|cpython-.*|abi3\.so)$")
#: Directories of the root whose children say more than they do.
_DEEP = {"usr": 3, "opt": 3, "var": 3, "home": 3}


def package_of(path: str) -> str:
    """Returns the package directory that a file (absolute path) belongs to; it ends without a slash."""
    if (found := _NODE.match(path)) is not None:
        return f"{found[1]}/{found[2]}"
    if (found := _PYTHON.match(path)) is not None:
        return f"{found[1]}/{_python_name(found[2])}"
    parts = path.split("/")[1:-1]
    if not parts:
        return "/"
    depth = 4 if parts[:2] == ["usr", "local"] else _DEEP.get(parts[0], 2)
    return "/" + "/".join(parts[:depth])


def _python_name(rest: str) -> str:
    """Returns ``pandas`` for a file of pandas, of its metadata and of the libraries that its wheel brings along."""
    first, _, inner = rest.partition("/")
    if first == "__pycache__" and inner:
        first = inner.split(".")[0]
    found = _METADATA.match(first) or (None if inner else _MODULE.match(first))
    return first if found is None else found[1]


@dataclass(slots=True)
class Part:
    """Counts what a part of an image holds, and what was read. ``bytes_read`` counts from the first byte of a file
    that was read to the last, the kernel's read-ahead included."""

    name: str
    files: int = 0
    bytes: int = 0
    files_read: int = 0
    bytes_read: int = 0

    def add(self, size: int, read: int | None) -> None:
        """Counts a file of which ``read`` bytes were read; None when it was not touched."""
        self.files += 1
        self.bytes += size
        if read is not None:
            self.files_read += 1
            self.bytes_read += min(read, size)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "files": self.files, "bytes": self.bytes, "files_read": self.files_read,
            "bytes_read": self.bytes_read,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reads:
    """Holds the whole image, its layers (lowest first) and its package directories (the largest first)."""

    image: Part
    layers: tuple[Part, ...]
    packages: tuple[Part, ...]
    unknown: tuple[str, ...] = field(default=())
    """Lists touched paths that the image does not show: files of a lower layer that a higher one replaces."""

    @property
    def unread(self) -> tuple[Part, ...]:
        """Returns the package directories of which no file was read: this start could do without them."""
        return tuple(part for part in self.packages if not part.files_read)


def analyse(files: Iterable[ListedFile], touches: Sequence[Touch], layers: int) -> Reads:
    """Compares the reads of a trace (``Engine.first_touches``) with all files of an image of so many layers."""
    read = {touch.path: touch.size for touch in touches}
    image = Part("image")
    per_layer = [Part(str(number)) for number in range(layers)]
    packages: dict[str, Part] = {}
    seen: set[str] = set()
    for file in files:
        if file.kind != "file":
            continue
        got = read.get(file.path)
        if got is not None:
            seen.add(file.path)
        name = package_of(file.path)
        parts = [image, packages.setdefault(name, Part(name))]
        if 0 <= file.layer < layers:
            parts.append(per_layer[file.layer])
        for part in parts:
            part.add(file.size, got)
    return Reads(
        image=image,
        layers=tuple(per_layer),
        packages=tuple(_largest_first(packages.values(), lambda part: part.bytes)),
        unknown=tuple(path for path in read if path not in seen),
    )


def _largest_first(parts: Iterable[Part], size: Callable[[Part], int]) -> list[Part]:
    return sorted(parts, key=lambda part: (-size(part), part.name))


def most_read(reads: Reads) -> list[Part]:
    """Returns the package directories of which something was read, the most bytes read first."""
    return _largest_first((part for part in reads.packages if part.files_read), lambda part: part.bytes_read)
