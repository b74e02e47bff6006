"""This module checks all layers together: each mode must show what unpacking shows, with whiteouts, links and
replacements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import ContentError
from harness.formats.erofs.table import HIDDEN_NAMES, TarTable
from harness.formats.tar.names import clean_name
from harness.images.shown_tree import shown_by_erofs, shown_by_layers
from harness.images.unpacked_tree import flattened, unpacked_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.formats.erofs.spans import ErofsIndex
    from harness.formats.gzip.layer_stream import SpooledTar
    from harness.formats.table import LayerTable
    from harness.formats.tar.scanner import TarEntry
    from harness.images.unpacked_tree import Shown

WHOLE_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Together:
    """Collects layers while each is at hand, and compares when all have been seen."""

    layers: list[tuple[Sequence[TarEntry], int]] = field(default_factory=list)
    """Holds entries and bytes of each layer's tar."""
    tables: dict[str, dict[int, LayerTable]] = field(default_factory=dict)
    """Holds tables of the lazy forms that are served one directory per layer, by form and layer."""
    erofs: ErofsIndex | None = None

    def add(self, tar: SpooledTar) -> None:
        self.layers.append((tar.entries, tar.size))

    def differences(self) -> Iterator[tuple[str, list[str]]]:
        """Returns (what was compared, how it differs) for the unpacked layers and for each form."""
        yield "layers as they are unpacked", list(self._compared({}, frozenset(), places=True))
        for form, tables in self.tables.items():
            estargz = "eStargz" in form
            hidden = HIDDEN_NAMES if estargz else frozenset[bytes]()
            yield f"{form}, all layers together", list(self._compared(tables, hidden, places=not estargz))
        if self.erofs is not None:
            yield "EROFS metadata, all layers together", list(self._erofs(self.erofs))

    def _compared(self, tables: dict[int, LayerTable], hidden: frozenset[bytes], *, places: bool) -> Iterator[str]:
        try:
            complete = []
            for number, (entries, size) in enumerate(self.layers):
                table = TarTable(hidden=hidden)
                table.add(entries)
                complete.append(tables.get(number) or table.finish(size))
            shown = shown_by_layers(complete, places=places)
            truth = self._truth(hidden)
        except ContentError as error:
            yield str(error)
            return
        yield from _differences(truth, shown, whole_seconds=not places)

    def _erofs(self, index: ErofsIndex) -> Iterator[str]:
        try:
            yield from _differences(self._truth(HIDDEN_NAMES), shown_by_erofs(index))
        except ContentError as error:
            yield str(error)

    def _truth(self, hidden: frozenset[bytes]) -> dict[bytes, Shown]:
        kept = [
            [entry for entry in entries if clean_name(entry.name) not in hidden] if hidden else entries
            for entries, _ in self.layers
        ]
        return flattened(unpacked_tree(kept))


def _differences(truth: dict[bytes, Shown], shown: dict[bytes, Shown], *, whole_seconds: bool = False) -> Iterator[str]:
    """Yields one line for each name that is shown otherwise than unpacking shows it."""
    for path in sorted(truth.keys() | shown.keys()):
        name = repr("/" + path.decode("utf-8", "backslashreplace"))
        if path not in shown:
            yield f"{name} is not shown"
        elif path not in truth:
            yield f"{name} is shown, and unpacking does not show it"
        else:
            mine, other = truth[path], shown[path]
            if whole_seconds and abs(mine.mtime_ns - other.mtime_ns) < WHOLE_SECOND_NS:
                other = other._replace(mtime_ns=mine.mtime_ns)
            if mine.place is None or other.place is None:
                other = other._replace(place=mine.place)
            for what in mine._fields:
                if getattr(mine, what) != getattr(other, what):
                    yield f"{name}: {what} is {getattr(other, what)!r}, unpacking gives {getattr(mine, what)!r}"
                    break
