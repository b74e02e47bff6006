"""This module chooses the files that a fault trial reads, and takes from the layers' tars what they really hold.

The truth is read apart from every mode.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from harness.formats.gzip.inflate import inflate
from harness.formats.tar.scanner import TarScanner
from harness.images.unpacked_tree import flattened, unpacked_tree
from harness.probes.fault_reads import Truth
from harness.probes.selection import rank

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.formats.tar.scanner import TarEntry
    from harness.model.faults import Faults
    from harness.oci.image import Image
    from harness.oci.store import ImageSource

#: Raised when what is stored or how it is made changes.
CACHE_VERSION = 1
_PIECE_BYTES = 1 << 20
#: What a container sees here is not the image's.
_NOT_THE_IMAGES = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})
_MOUNTED = ("/proc/", "/sys/", "/dev/", "/run/", "/tmp/")


@dataclass(frozen=True, slots=True)
class Samples:
    """Holds the files that the start touched and those it did not, each in an order drawn from the seed; and all
    truths.
    """

    touched: tuple[str, ...]
    untouched: tuple[str, ...]
    truth: Mapping[str, Truth]

    def cut(self, table: Faults, *, all_untouched: bool) -> Samples:
        """Returns as many files as a scenario asks for; with ``all_untouched`` all of the untouched ones."""
        untouched = self.untouched if all_untouched else self.untouched[: table.untouched + table.mapped]
        return Samples(self.touched[: table.touched], untouched, self.truth)


def choose(truth: Mapping[str, Truth], touched: Collection[str], seed: int) -> Samples:
    """Splits the files of an image in two: ``touched`` are those that a trace of the start names."""
    usable = sorted(
        (path for path in truth if path not in _NOT_THE_IMAGES and not path.startswith(_MOUNTED)),
        key=lambda path: rank(path, seed),
    )
    started = set(touched)
    return Samples(
        tuple(path for path in usable if path in started),
        tuple(path for path in usable if path not in started),
        truth,
    )


def load_truth(source: ImageSource, image: Image, cache: Path) -> dict[str, Truth]:
    """Returns size and sha256 of every regular file with bytes that the image shows, each inode under its first name.

    Sparse files are left out. The result is kept by image digest in ``cache``. Raises ContentError, FormatError for a
    layer that is not what it claims to be.
    """
    stored = cache / "truth" / f"{image.descriptor.digest.replace(':', '-')}.v{CACHE_VERSION}.json.gz"
    if stored.exists():
        with gzip.open(stored, "rt") as file:
            return {path: Truth(size, digest) for path, size, digest in json.load(file)}
    stored.parent.mkdir(parents=True, exist_ok=True)
    truth = _read_layers(source, image, stored.parent)
    temporary = stored.with_name(f"{stored.name}.{os.getpid()}")
    with gzip.open(temporary, "wt") as out:
        json.dump([[path, real.size, real.sha256] for path, real in truth.items()], out)
    os.replace(temporary, stored)
    return truth


def _read_layers(source: ImageSource, image: Image, directory: Path) -> dict[str, Truth]:
    layers: list[Sequence[TarEntry]] = []
    spools: list[BinaryIO] = []
    try:
        for number, layer in enumerate(image.layers):
            spool: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed below
            spools.append(spool)
            scanner, entries = TarScanner(), []
            for piece in inflate(source.open_blob(layer).stream(), f"layer {number} of {source.where}"):
                spool.write(piece)
                entries += scanner.feed(piece)
            scanner.close()
            spool.flush()
            layers.append(entries)
        return dict(_hashed(layers, spools))
    finally:
        for spool in spools:
            spool.close()


def _hashed(layers: Sequence[Sequence[TarEntry]], spools: Sequence[BinaryIO]) -> Iterator[tuple[str, Truth]]:
    for path, shown in flattened(unpacked_tree(layers)).items():
        if shown.place is None or shown.linked != path:
            continue
        layer, at = shown.place
        digest = hashlib.sha256()
        for start in range(0, shown.size, _PIECE_BYTES):
            size = min(_PIECE_BYTES, shown.size - start)
            digest.update(os.pread(spools[layer].fileno(), size, at + start))
        yield str(PurePosixPath("/") / os.fsdecode(path)), Truth(shown.size, digest.hexdigest())
