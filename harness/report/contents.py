"""This module says what of an image a use of it never read, by package and by directory, with who brought it.

A *use* is a start and the commands that a scenario runs after it. A package none of whose files was read is not free
to go: another that was read may need it. So the needs that packages state are followed, from those that were read (and
those that a system cannot do without) down; what is left is what the image could do without.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.session.reads import package_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from harness.images.packages import Package
    from harness.session.image_files import ListedFile

UNOWNED = "files"
"""It stands for a package manager where none says whose a file is."""
_COMPILED = re.compile(r"^(.*)/__pycache__/([^/]+?)\.[^/.]+(?:\.opt-\d)?\.pyc$")


@dataclass(frozen=True, slots=True)
class Unread:
    """Names something of which no file was read. ``brought_by`` is ``dpkg:git``, ``pip:scipy``, ``npm:lodash`` or
    ``files``.

    ``layer`` counts from 0, the lowest; it is the one that holds most of its bytes.
    """

    name: str
    brought_by: str
    files: int
    bytes: int
    layer: int
    needed_by: str = ""
    """Names a package that states this need, and that was read or that a needed one needs; empty where it can go."""

    @property
    def can_go(self) -> bool:
        return not self.needed_by


@dataclass(frozen=True, slots=True)
class LayerUse:
    """Says of one layer what it weighs in the registry, and how much of what it shows was read."""

    number: int
    compressed_bytes: int
    bytes: int
    bytes_read: int
    made_by: str = ""
    """Quotes the line of the Dockerfile, as the image's history has it."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Holds what was not read.

    ``packages`` and ``directories`` name the largest first; directories are read by no package's file either, and say
    who brought most of them.
    """

    files: int
    bytes: int
    files_read: int
    bytes_read: int
    packages: tuple[Unread, ...]
    directories: tuple[Unread, ...]
    layers: tuple[LayerUse, ...]

    @property
    def droppable(self) -> tuple[Unread, ...]:
        """Returns the packages that can go, the largest first."""
        return tuple(package for package in self.packages if package.can_go)


def look(
    files: Sequence[ListedFile],
    read: Collection[str],
    packages: Sequence[Package],
    layers: Sequence[int],
    history: Sequence[str] = (),
) -> Contents:
    """Puts what was read against what is there; ``layers`` are stored bytes from the lowest up.

    ``history`` says what made each layer, where the image says so for all of them.
    """
    touched = set(read)
    plain = {file.path: file for file in files if file.kind == "file"}
    owner = {path: package for package in packages for path in package.files if path in plain}
    for path in plain:
        # Compiled when it was installed: no list names it, and it stands for its source.
        source = _source_of(path)
        if path not in owner and source in owner:
            owner[path] = owner[source]
    return Contents(
        files=len(plain),
        bytes=sum(file.size for file in plain.values()),
        files_read=sum(path in touched for path in plain),
        bytes_read=sum(file.size for path, file in plain.items() if path in touched),
        packages=_packages(plain, touched, packages, owner),
        directories=_directories(plain, touched, owner),
        layers=_layers(plain, touched, layers, history),
    )


def _source_of(path: str) -> str:
    """Returns ``/a/b.py`` for ``/a/__pycache__/b.cpython-311.pyc`` (PEP 3147); empty for what is not compiled from a
    source.
    """
    found = _COMPILED.match(path)
    return f"{found[1]}/{found[2]}.py" if found else ""


def _packages(
    plain: dict[str, ListedFile], touched: set[str], packages: Sequence[Package], owner: dict[str, Package]
) -> tuple[Unread, ...]:
    held: dict[str, list[ListedFile]] = {package.key: [] for package in packages}
    for path, package in owner.items():
        held[package.key].append(plain[path])
    used = {package.key for package in packages if any(file.path in touched for file in held[package.key])}
    needed = _needed(packages, used)
    found = [
        Unread(
            package.name, package.key, len(held[package.key]), sum(file.size for file in held[package.key]),
            _layer_of(held[package.key]), needed.get(package.key, ""),
        )
        for package in packages
        if package.key not in used and held[package.key]
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda unread: (-unread.bytes, unread.brought_by)))


def _needed(packages: Sequence[Package], used: set[str]) -> dict[str, str]:
    """Returns every package that a used or essential one needs, itself or through others, and which one says so."""
    known = {package.key: package for package in packages}
    needed = {package.key: "the system" for package in packages if package.essential}
    pending = [*used, *needed]
    while pending:
        package = known[pending.pop()]
        for name in package.needs:
            key = f"{package.manager}:{name}"
            if key in known and key not in needed and key not in used:
                needed[key] = package.key
                pending.append(key)
    return needed


def _directories(plain: dict[str, ListedFile], touched: set[str], owner: dict[str, Package]) -> tuple[Unread, ...]:
    held: dict[str, list[ListedFile]] = {}
    for file in plain.values():
        held.setdefault(package_of(file.path), []).append(file)
    found = []
    for name, files in held.items():
        if any(file.path in touched for file in files):
            continue
        weights: Counter[str] = Counter()
        for file in files:
            package = owner.get(file.path)
            weights[package.key if package else UNOWNED] += file.size + 1
        (most, _), *others = weights.most_common()
        brought = most if not others else f"{most} and {len(others)} more"
        found.append(Unread(name, brought, len(files), sum(file.size for file in files), _layer_of(files)))
    return tuple(sorted(found, key=lambda unread: (-unread.bytes, unread.name)))


def _layer_of(files: Sequence[ListedFile]) -> int:
    weights: Counter[int] = Counter()
    for file in files:
        weights[file.layer] += file.size + 1
    return weights.most_common(1)[0][0] if weights else -1


def _layers(
    plain: dict[str, ListedFile], touched: set[str], layers: Sequence[int], history: Sequence[str]
) -> tuple[LayerUse, ...]:
    shown, read = Counter[int](), Counter[int]()
    for file in plain.values():
        shown[file.layer] += file.size
        read[file.layer] += file.size if file.path in touched else 0
    made = list(history) if len(history) == len(layers) else [""] * len(layers)
    return tuple(
        LayerUse(number, size, shown[number], read[number], made[number]) for number, size in enumerate(layers)
    )


@dataclass(frozen=True, slots=True)
class Order:
    """Says how layers from the lowest up should lie, and what is sent again when the smallest one changes, before and
    after.

    A layer that changes takes all above it along, since builders make those anew. Large layers change seldom (a
    distribution, dependencies) and small ones often (the program), so the large ones belong below.
    """

    numbers: tuple[int, ...]
    resent_now_bytes: int
    resent_then_bytes: int

    @property
    def is_best(self) -> bool:
        return self.resent_then_bytes >= self.resent_now_bytes


def order(layers: Sequence[LayerUse]) -> Order | None:
    """Says how the layers should lie; None for fewer than two."""
    if len(layers) < 2:
        return None
    smallest = min(layers, key=lambda layer: layer.compressed_bytes)
    best = sorted(layers, key=lambda layer: -layer.compressed_bytes)
    now = sum(layer.compressed_bytes for layer in layers[smallest.number :])
    return Order(tuple(layer.number for layer in best), now, smallest.compressed_bytes)
