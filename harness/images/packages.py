"""This module says which packages an image holds and which files each of them brought: dpkg, pip and npm.

It reads what the package managers left in the image: ``/var/lib/dpkg`` (status and ``info/*.list``; distroless images
have ``status.d`` without lists), ``*.dist-info`` (METADATA and RECORD, Python packaging specifications) and the
``package.json`` of each directory below a ``node_modules``. An image without any has no packages here, and what its
files belong to is then told by directory.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.formats.gzip.inflate import inflate
from harness.formats.table import Kind
from harness.formats.tar.names import clean_name
from harness.formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from harness.oci.image import Image
    from harness.oci.store import ImageSource

#: Metadata files are small; a larger one is no metadata.
LIMIT_BYTES = 16 << 20
_WANTED = re.compile(
    r"^/(?:usr/lib/sysimage/|var/lib/)dpkg/(?:status|info/[^/]+\.list)$"
    r"|/[^/]+\.dist-info/(?:METADATA|RECORD)$"
    r"|/node_modules/(?:@[^/]+/)?[^/]+/package\.json$"
)
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class Package:
    """Describes one package: who installed it, what it is called, the files it brought, and the packages it says it
    needs.
    """

    manager: str
    """It is ``dpkg``, ``pip`` or ``npm``."""
    name: str
    version: str
    files: frozenset[str]
    """Lists absolute paths that the image shows."""
    needs: tuple[str, ...] = ()
    """Names packages of the same manager; of alternatives, all."""
    essential: bool = False

    @property
    def key(self) -> str:
        """Returns ``dpkg:git``: a name that is unique among all packages of an image."""
        return f"{self.manager}:{self.name}"


def read_packages(
    source: ImageSource,
    image: Image,
    shown: Collection[str],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Package]:
    """Finds the packages of an image whose files are ``shown``; ``progress`` is told stored bytes as they are read.

    Raises ContentError for a layer that is not what it claims to be.
    """
    texts: dict[str, str] = {}
    for number, layer in enumerate(image.layers):
        blob = source.open_blob(layer).stream()
        pieces = _counted(blob, progress)
        texts.update(_metadata(inflate(pieces, f"layer {number} of {source.where}")))
    visible = shown if isinstance(shown, (set, frozenset)) else frozenset(shown)
    texts = {path: text for path, text in texts.items() if path in visible}
    return [*_dpkg(texts, visible), *_pip(texts, visible), *_npm(texts, visible)]


def _counted(pieces: Iterator[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        progress(len(piece))
        yield piece


def _metadata(pieces: Iterator[bytes]) -> dict[str, str]:
    """Returns the wanted files of one layer's tar, by absolute path, as text."""
    stream = _Pieces(pieces)
    scanner = TarScanner()
    found: dict[str, str] = {}
    while not scanner.ended:
        data = stream.read(min(scanner.skip, 1 << 20) or scanner.wanted)
        if not data:
            break
        for entry in scanner.feed(data):
            path = "/" + clean_name(entry.name).decode("utf-8", "surrogateescape").lstrip("/")
            if entry.kind is Kind.REG and entry.stored_bytes <= LIMIT_BYTES and _WANTED.search(path):
                content = stream.read(entry.stored_bytes)
                scanner.skipped(len(content))
                found[path] = content.decode("utf-8", "replace")
    return found


class _Pieces:
    """Reads exact sizes from an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            if not self._held:
                self._held = next(self._pieces, b"")
                if not self._held:
                    break
            parts.append(self._held[:left])
            self._held = self._held[left:]
            left -= len(parts[-1])
        return b"".join(parts)


# -- dpkg


@dataclass(slots=True)
class _Status:
    version: str = ""
    needs: list[str] = field(default_factory=list)
    provides: list[str] = field(default_factory=list)
    essential: bool = False


def _dpkg(texts: dict[str, str], shown: Collection[str]) -> Iterator[Package]:
    status = next((text for path, text in texts.items() if path.endswith("/dpkg/status")), "")
    known = dict(_stanzas(status))
    providers = {name: package for package, entry in known.items() for name in entry.provides}
    for path, text in texts.items():
        if "/dpkg/info/" not in path:
            continue
        name = path.rsplit("/", 1)[1].removesuffix(".list").partition(":")[0]
        entry = known.get(name, _Status())
        needs = tuple(dict.fromkeys(providers.get(need, need) for need in entry.needs))
        files = frozenset(_shown(line, shown) for line in text.splitlines()) - {""}
        yield Package("dpkg", name, entry.version, files, needs, entry.essential)


def _shown(path: str, shown: Collection[str]) -> str:
    """Says where the image shows a path of a list: dpkg names /bin/ls where /bin leads to /usr/bin. Empty: nowhere."""
    return path if path in shown else f"/usr{path}" if f"/usr{path}" in shown else ""


def _stanzas(status: str) -> Iterator[tuple[str, _Status]]:
    """Yields the packages of a status file (deb-control(5)), with what they need and provide."""
    for stanza in status.split("\n\n"):
        fields = {}
        for line in re.sub(r"\n[ \t]+", " ", stanza).splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields[name] = value.strip()
        if "Package" not in fields:
            continue
        needs = [w for key in ("Pre-Depends", "Depends") for w in _names(fields.get(key, ""))]
        provides = _names(fields.get("Provides", ""))
        important = fields.get("Essential") == "yes" or fields.get("Priority") == "required"
        yield fields["Package"], _Status(fields.get("Version", ""), needs, provides, important)


def _names(relation: str) -> list[str]:
    """Returns the package names of a relation field: ``libc6 (>= 2.36), python3:any | python`` gives libc6, python3,
    python.
    """
    words = re.split(r"[,|]", relation)
    return [name for word in words if (name := word.strip().partition(" ")[0].partition(":")[0])]


# -- pip


def _normal(name: str) -> str:
    """Returns a distribution's name as comparisons take it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(texts: dict[str, str], shown: Collection[str]) -> Iterator[Package]:
    for path, text in texts.items():
        if not path.endswith(".dist-info/METADATA"):
            continue
        place = path.rsplit("/", 2)[0]
        head: dict[str, list[str]] = {}
        for line in text.partition("\n\n")[0].splitlines():
            name, colon, value = line.partition(": ")
            if colon:
                head.setdefault(name, []).append(value)
        needs = [
            _normal(found[1])
            for value in head.get("Requires-Dist", [])
            if "extra ==" not in value and (found := _REQUIREMENT.match(value))
        ]
        record = texts.get(f"{path.removesuffix('METADATA')}RECORD", "")
        files = {_joined(place, row[0]) for row in csv.reader(record.splitlines()) if row}
        name, version = _normal(head.get("Name", ["?"])[0]), head.get("Version", [""])[0]
        yield Package("pip", name, version, frozenset(files & set(shown)), tuple(dict.fromkeys(needs)))


def _joined(place: str, relative: str) -> str:
    """Returns an absolute path; RECORD names scripts as ``../../../bin/pip``."""
    parts: list[str] = []
    for part in f"{place}/{relative}".split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/" + "/".join(parts)


# -- npm


def _npm(texts: dict[str, str], shown: Collection[str]) -> Iterator[Package]:
    end = "/package.json"
    places = {path.removesuffix(end): text for path, text in texts.items() if path.endswith(end)}
    files: dict[str, set[str]] = {place: set() for place in places}
    for path in shown:
        # The innermost package directory owns a file.
        at = path
        while at:
            at = at.rpartition("/")[0]
            if at in files:
                files[at].add(path)
                break
    for place, text in places.items():
        try:
            said = json.loads(text)
        except ValueError:
            continue
        if not isinstance(said, dict):
            continue
        needs = said.get("dependencies")
        name = place.rpartition("/node_modules/")[2]
        version = said.get("version")
        yield Package(
            "npm", name, version if isinstance(version, str) else "", frozenset(files[place]),
            tuple(needs) if isinstance(needs, dict) else (),
        )  # fmt: skip
