"""This module keeps what a session's images hold: layers, visible files, and what a start reads of them.

A gate that compares with a session of last week needs the paths of last week's image to say *which* files made it grow.
Files are ``images/DIGEST.json.gz`` in the session's directory; they are written once and never change.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY = "images"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Inventory:
    """Describes one image.

    ``layers`` are stored bytes from the lowest up, ``files`` bytes by path (0 for what is no file). ``reads`` are the
    paths a start reads in first-touch order; None where no start was traced.
    """

    digest: str
    layers: tuple[int, ...]
    files: dict[str, int]
    reads: tuple[str, ...] | None

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of kind "image"."""
        found = {
            "image-bytes": float(sum(self.layers)),
            "image-layers": float(len(self.layers)),
            "image-files": float(len(self.files)),
            "image-unpacked-bytes": float(sum(self.files.values())),
        }
        return found if self.reads is None else {**found, "files-read": float(len(self.reads))}


def place(session: Path, digest: str) -> Path:
    """Returns the path of one image's file."""
    return session / DIRECTORY / f"{digest.replace(':', '-')}.json.gz"


def save(session: Path, inventory: Inventory) -> None:
    """Writes an inventory; one that knows a trace takes the place of one that does not."""
    path = place(session, inventory.digest)
    if path.exists() and inventory.reads is None:
        return
    path.parent.mkdir(exist_ok=True)
    data = {
        "schema_version": VERSION, "digest": inventory.digest, "layers": inventory.layers, "files": inventory.files,
        "reads": inventory.reads,
    }  # fmt: skip
    write_atomically(path, gzip.compress(json.dumps(data).encode("utf-8", "surrogateescape"), mtime=0))


def load(session: Path, digest: str) -> Inventory | None:
    """Returns the inventory of an image; None where the session has none (it is older, or did not list files).

    Raises:
        UsageError: the file is not one of ours, or of a newer coldbench.
    """
    path = place(session, digest)
    if not path.exists():
        return None
    try:
        data = json.loads(gzip.decompress(path.read_bytes()))
        if data["schema_version"] > VERSION:
            raise UsageError(f"{path}: written by a newer coldbench; upgrade this one")
        reads = data["reads"]
        return Inventory(
            str(data["digest"]),
            tuple(int(size) for size in data["layers"]),
            {str(name): int(size) for name, size in data["files"].items()},
            None if reads is None else tuple(str(name) for name in reads),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not an inventory ({error}); remove it, and its paths are not compared") from None
