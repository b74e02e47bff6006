"""This module lists the files that an image shows when its layers are stacked.

Run-time workloads choose from the list what they touch, and ``coldbench trace`` says what of it a start never reads.

The list is read out of band from the layers' tars, merged as OverlayFS would show them, and kept by image digest in the
cache directory: listing a gigabyte takes seconds, and every trial of a session needs the same list.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.erofs.merge import MergedTree, merge_layers
from harness.formats.erofs.table import TarTable
from harness.formats.gzip.inflate import inflate
from harness.formats.table import Kind
from harness.probes.selection import ImageFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from harness.oci.image import Image
    from harness.oci.store import ImageSource

#: Raised when what is stored or how it is made changes.
CACHE_VERSION = 1


@dataclass(frozen=True, slots=True)
class ListedFile:
    """Describes a visible entry: path, kind (``file``, ``dir``, ``other``), bytes, its data's layer (-1: none)."""

    path: str
    kind: str
    size: int
    layer: int
    executable: bool

    def for_selection(self) -> ImageFile:
        return ImageFile(self.path, self.kind, self.size, self.executable)


def list_files(
    source: ImageSource, image: Image, cache: Path | None = None, progress: Callable[[int], None] = lambda _: None
) -> list[ListedFile]:
    """Lists the visible entries of the image by path; ``progress`` is told stored bytes as they are read.

    Raises ContentError for a layer that is not what it claims to be.
    """
    stored = None
    if cache is not None:
        stored = cache / "files" / f"{image.descriptor.digest.replace(':', '-')}.v{CACHE_VERSION}.json.gz"
        if stored.exists():
            with gzip.open(stored, "rt") as file:
                return [ListedFile(*row) for row in json.load(file)]
    tables = []
    for number, layer in enumerate(image.layers):
        table = TarTable()
        size, where = 0, f"layer {number} of {source.where}"
        pieces = _counted(source.open_blob(layer).stream(), progress)
        try:
            for piece in inflate(pieces, where):
                size += len(piece)
                table.feed(piece)
            tables.append(table.finish(size))
        except FormatError as error:
            if error.where.startswith(where):
                raise
            raise type(error)(f"{where}, {error.where}", error.what) from None
    files = walk(merge_layers(tables))
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        temporary = stored.with_name(f"{stored.name}.{os.getpid()}")
        with gzip.open(temporary, "wt") as out:
            json.dump([[f.path, f.kind, f.size, f.layer, f.executable] for f in files], out)
        os.replace(temporary, stored)
    return files


def _counted(pieces: Iterable[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        progress(len(piece))
        yield piece


def walk(tree: MergedTree) -> list[ListedFile]:
    """Walks the merged tree's entries by path; names that are not UTF-8 keep their bytes as surrogates."""
    files: list[ListedFile] = []
    place = {int(inode): k for k, inode in enumerate(tree.directories)}
    pending = [(0, "")]
    while pending:
        inode, path = pending.pop()
        k = place[inode]
        for at in range(int(tree.starts[k]), int(tree.starts[k + 1])):
            name = tree.entry_names[at]
            if name in {b".", b".."}:
                continue
            child = int(tree.entry_inodes[at])
            full = f"{path}/{os.fsdecode(name)}"
            kind = int(tree.kinds[child])
            word = {Kind.REG: "file", Kind.DIR: "dir"}.get(Kind(kind), "other")
            size = int(tree.sizes[child]) if kind == Kind.REG else 0
            runs = kind == Kind.REG and bool(int(tree.modes[child]) & stat.S_IXUSR)
            files.append(ListedFile(full, word, size, int(tree.layers[child]), runs))
            if kind == Kind.DIR:
                pending.append((child, full))
    return sorted(files, key=lambda f: f.path)
