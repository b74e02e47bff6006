"""This module makes the same image with its layers compressed otherwise: gzip, zstd or not at all, at a level.

Every layer is inflated once, held against its diff ID, and written anew; the configuration stays as it is, to the byte,
since the tars do. The result depends on the tars, the compression and the version of its library alone: gzip is written
in blocks of a fixed size, and zstd by its multi-threaded writer, whose output does not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import zstandard

from harness.errors import DigestMismatch
from harness.formats.gzip.inflate import inflate
from harness.formats.gzip.layer_stream import room_for
from harness.oci.converted import write_converted
from harness.oci.descriptor import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
)
from harness.oci.location import copy_blob
from harness.oci.recipe.layer_gzip import GzipLayerWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from harness.model.image import Compression
    from harness.oci.image import Image
    from harness.oci.store import ImageDestination, ImageSource

RECOMPRESSION_VERSION = 1
"""It is raised when the same tar gives other bytes, so that what is cached is made anew."""

COPY_NAME = ".coldbench-copy"

_MEDIA_TYPES = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD, "none": OCI_LAYER}


@dataclass(frozen=True, slots=True)
class LayerRecompression:
    """Describes one layer before and after, with the diff ID of the tar after. ``unchanged`` says why it was passed on
    as is.
    """

    source: Descriptor
    target: Descriptor
    diff_id: str
    uncompressed_bytes: int
    unchanged: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecompression:
    """Holds the new manifest, and what became of each layer."""

    manifest: Descriptor
    layers: tuple[LayerRecompression, ...]

    @property
    def source_bytes(self) -> int:
        return sum(layer.source.size for layer in self.layers)

    @property
    def target_bytes(self) -> int:
        return sum(layer.target.size for layer in self.layers)


class _Packer(Protocol):
    """Writes a layer; it is done when it is left."""

    def write(self, data: bytes, /) -> object: ...


class _Sink:
    """Writes a file, and counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _packer(compression: Compression, sink: _Sink) -> AbstractContextManager[_Packer]:
    if compression.kind == "gzip":
        return GzipLayerWriter(sink, level=compression.level)
    if compression.kind == "zstd":
        cores = os.cpu_count() or 1
        packer = zstandard.ZstdCompressor(level=compression.level, threads=cores, write_checksum=True)
        return packer.stream_writer(sink, closefd=False)  # type: ignore[arg-type] # it asks a file for no more than write
    return nullcontext(sink)


def convert_layers(
    source: ImageSource,
    image: Image,
    destination: ImageDestination,
    compression: Compression,
    *,
    copy_number: int = 0,
    scratch: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda _number, _done: None,
) -> ImageRecompression:
    """Writes ``image``, as ``source`` resolved it, with its layers compressed as asked.

    ``scratch`` has room for one packed layer. ``progress(layer, done)`` counts up to each source layer's stored size.
    Layers that must not be distributed are passed on as they are.

    With a ``copy_number`` every tar begins with one file more (``COPY_NAME``) that holds it: the same files otherwise,
    but no blob, diff ID or configuration of another copy, in any form made of it.

    Raises:
        DigestMismatch: a layer's tar is not the one the configuration promises.
        ContentError, RegistryError, DiskFull: it cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="coldbench-convert-", dir=scratch) as directory:
        job = _Job(source, image, destination, compression, _numbered(copy_number), Path(directory), progress)
        layers = [job.layer(number) for number in range(len(image.layers))]
    targets, diff_ids = [layer.target for layer in layers], [layer.diff_id for layer in layers]
    return ImageRecompression(write_converted(destination, image, targets, diff_ids), tuple(layers))


def _numbered(number: int) -> bytes:
    """Returns the entry that tells a copy's tars from another's; empty for 0.

    A comment in a global header would do for the tars, but converters to eStargz drop it.
    """
    if not number:
        return b""
    header = tarfile.TarInfo(COPY_NAME)
    content = f"{number:>15}\n".encode()
    header.size, header.mode = len(content), 0o444
    return header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(tarfile.BLOCKSIZE, b"\0")


@dataclass(frozen=True, slots=True)
class _Job:
    source: ImageSource
    image: Image
    destination: ImageDestination
    compression: Compression
    before: bytes
    """Holds what every tar begins with, before its own first header."""
    scratch: Path
    progress: Callable[[int, int], None]

    def layer(self, number: int) -> LayerRecompression:
        """Writes the layer anew, its tar held against the diff ID."""
        layer, diff_id = self.image.layers[number], self.image.diff_ids[number]
        where = f"layer {number} ({layer.digest})"
        if "nondistributable" in layer.media_type or "foreign" in layer.media_type:
            copy_blob(self.source, self.destination, layer)
            self.progress(number, layer.size)
            return LayerRecompression(layer, layer, diff_id, 0, "not distributable")
        path = self.scratch / f"layer-{number}"
        plain, written = hashlib.sha256(), hashlib.sha256(self.before)
        size = len(self.before)
        with room_for(where, self.scratch), open(path, "wb") as out:
            sink = _Sink(out)
            with _packer(self.compression, sink) as packer:
                packer.write(self.before)
                for piece in inflate(self._counted(number, layer), where):
                    plain.update(piece)
                    if self.before:
                        written.update(piece)
                    size += len(piece)
                    packer.write(piece)
        found = f"sha256:{plain.hexdigest()}"
        if found != diff_id:
            raise DigestMismatch(f"{where}: decompressed", diff_id, found)
        # What an annotation says of a layer (an eStargz TOC, a size) it says of the bytes that are no more.
        target = Descriptor(_MEDIA_TYPES[self.compression.kind], sink.digest, sink.size)
        self.destination.put_blob(target, path)
        path.unlink()
        self.progress(number, layer.size)
        made = f"sha256:{written.hexdigest()}" if self.before else diff_id
        return LayerRecompression(layer, target, made, size)

    def _counted(self, number: int, layer: Descriptor) -> Iterator[bytes]:
        read = 0
        for piece in self.source.open_blob(layer).stream():
            read += len(piece)
            self.progress(number, min(read, layer.size))
            yield piece
