"""This module converts an image: every layer to eStargz, then the configuration and manifest that go with the new
layers.

The manifest names the TOC's digest (verification starts there); the configuration gets the new diff IDs, because the
decompressed tar of an eStargz layer has the TOC and a landmark in it. Everything else of the image stays.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ContentError, DigestMismatch, UsageError
from harness.formats.estargz.footer import FOOTER_BYTES, is_estargz
from harness.formats.estargz.reader import EstargzToc, read_toc_member
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION
from harness.formats.estargz.writer import EstargzOptions, write_estargz
from harness.formats.gzip.layer_stream import errors_of, room_for, spool
from harness.formats.tar.stack import lower_links
from harness.machine.records import recorded_directory
from harness.oci.converted import write_converted
from harness.oci.descriptor import OCI_LAYER_GZIP, Descriptor
from harness.oci.location import copy_blob

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.gzip.layer_stream import SpooledTar
    from harness.formats.tar.reading import LayerReading
    from harness.oci.image import Image
    from harness.oci.store import ImageDestination, ImageSource

LAYERS_SIDE_BY_SIDE = 2
"""So many layers are converted at once: one inflates and parses while the other is compressed; more only costs disk."""
_SPOOL_SHARE = 0.1
"""It is the part of a layer's progress that inflating it is (measured: 1.5 of 14 seconds)."""

Progress = "Callable[[int, int], None]"


@dataclass(frozen=True, slots=True)
class LayerConversion:
    """Describes one layer before and after. ``unchanged`` says why it was passed on as it is ("" when it was
    converted).
    """

    source: Descriptor
    target: Descriptor
    diff_id: str
    unchanged: str = ""
    entries: int = 0
    uncompressed_bytes: int = 0
    missing: tuple[str, ...] = ()
    unencodable_names: int = 0


@dataclass(frozen=True, slots=True)
class ImageConversion:
    """Holds the new manifest and what became of each layer. ``missing``: prioritised names that no layer has."""

    manifest: Descriptor
    layers: tuple[LayerConversion, ...]
    missing: tuple[str, ...]

    @property
    def source_bytes(self) -> int:
        return sum(layer.source.size for layer in self.layers)

    @property
    def target_bytes(self) -> int:
        return sum(layer.target.size for layer in self.layers)


def convert_image(
    source: ImageSource,
    image: Image,
    destination: ImageDestination,
    options: EstargzOptions,
    *,
    scratch: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda _number, _done: None,
) -> ImageConversion:
    """Converts ``image``, as ``source`` resolved it, and writes it to ``destination``.

    ``scratch`` has room for two layers unpacked. ``progress(layer, done)`` counts up to each source layer's stored
    size. The result depends on the image and the options alone. Raises ContentError, RegistryError or DiskFull.
    """
    if options.chunk_size <= 0 or options.min_chunk_size < 0:
        raise UsageError("chunk sizes are numbers of bytes above 0")
    with (
        recorded_directory("convert", Path(scratch or tempfile.gettempdir())) as directory,
        ThreadPoolExecutor(os.cpu_count() or 1, "compress") as compressors,
        ThreadPoolExecutor(LAYERS_SIDE_BY_SIDE, "layer") as layers,
    ):
        job = _Job(source, destination, image, options, directory, compressors, progress)
        futures = [layers.submit(job.layer, number) for number in range(len(image.layers))]
        try:
            results = [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
    lower_links([reading for _, reading in results], job.where)
    converted = tuple(layer for layer, _ in results)
    manifest = write_converted(
        destination, image, [layer.target for layer in converted], [layer.diff_id for layer in converted]
    )
    missing = [name for name in options.prioritized if all(name in layer.missing for layer in converted)]
    return ImageConversion(manifest, converted, tuple(missing))


@dataclass(frozen=True, slots=True)
class _Job:
    source: ImageSource
    destination: ImageDestination
    image: Image
    options: EstargzOptions
    scratch: Path
    compressors: ThreadPoolExecutor
    progress: Callable[[int, int], None]

    def where(self, number: int) -> str:
        return f"layer {number} ({self.image.layers[number].digest})"

    def layer(self, number: int) -> tuple[LayerConversion, LayerReading]:
        """Converts the layer, and says what it means; every layer is read whole and held against its diff ID."""
        source, diff_id = self.image.layers[number], self.image.diff_ids[number]
        where = self.where(number)
        report = _LayerProgress(number, source.size, self.progress)
        blob = self.source.open_blob(source)
        with spool(blob.stream(), where, directory=self.scratch, progress=report.spooled) as tar:
            if tar.diff_id != diff_id:
                raise DigestMismatch(f"{where}: decompressed", diff_id, tar.diff_id)
            report.tar_size = tar.size
            return self._form(number, source, diff_id, tar, report), tar.reading

    def _form(
        self, number: int, source: Descriptor, diff_id: str, tar: SpooledTar, report: _LayerProgress
    ) -> LayerConversion:
        if "nondistributable" in source.media_type or "foreign" in source.media_type:
            copy_blob(self.source, self.destination, source)
            copy_blob(self.source, self.destination, source)
            self.progress(number, source.size)
            return LayerConversion(source, source, diff_id, unchanged="not distributable")
        toc_digest = self._toc_digest(source)
        if toc_digest is not None:
            copy_blob(self.source, self.destination, source)
            self.progress(number, source.size)
            annotations = {**source.annotations, TOC_DIGEST_ANNOTATION: toc_digest}
            target = replace(source, media_type=OCI_LAYER_GZIP, annotations=annotations)
            return LayerConversion(source, target, diff_id, unchanged="already eStargz")
        return self._convert(number, source, tar, report)

    def _toc_digest(self, layer: Descriptor) -> str | None:
        """Returns the TOC's digest if the layer is eStargz already and says so truthfully, else None.

        Such a layer stays as it is, whatever its chunk size; but what is to be prioritised takes a new order.
        """
        if self.options.prioritized:
            return None
        promised = layer.annotations.get(TOC_DIGEST_ANNOTATION)
        if layer.compression != "gzip" or promised is None or layer.size < FOOTER_BYTES:
            return None
        blob = self.source.open_blob(layer)
        if not is_estargz(blob.read_range(layer.size - FOOTER_BYTES, FOOTER_BYTES)):
            return None
        try:
            footer, member = read_toc_member(blob, layer.size)
            EstargzToc.from_member(member, footer, promised)
        except ContentError:
            return None  # whatever it says, it cannot be read lazily: convert it
        return promised

    def _convert(self, number: int, source: Descriptor, tar: SpooledTar, report: _LayerProgress) -> LayerConversion:
        path = self.scratch / f"layer-{number}"
        with room_for(self.where(number), self.scratch), errors_of(self.where(number)), open(path, "wb") as out:
            written = write_estargz(
                tar.descriptor, tar.entries, out, self.options, pool=self.compressors, progress=report.written
            )
        target = Descriptor(
            OCI_LAYER_GZIP, written.digest, written.size, annotations={**source.annotations, **written.annotations}
        )
        self.destination.put_blob(target, path)
        path.unlink()
        self.progress(number, source.size)
        return LayerConversion(
            source,
            target,
            written.diff_id,
            entries=written.entries,
            uncompressed_bytes=written.uncompressed_size,
            missing=written.missing,
            unencodable_names=written.unencodable_names,
        )


class _LayerProgress:
    """Maps bytes read and bytes written to one count that ends at the layer's stored size."""

    def __init__(self, number: int, size: int, report: Callable[[int, int], None]) -> None:
        self.tar_size = 1
        self._number, self._size, self._report = number, size, report
        self._read = self._written = 0

    def spooled(self, count: int) -> None:
        self._read += count
        self._report(self._number, int(self._read * _SPOOL_SHARE))

    def written(self, count: int) -> None:
        self._written += count
        share = _SPOOL_SHARE + (1 - _SPOOL_SHARE) * min(1.0, self._written / max(1, self.tar_size))
        self._report(self._number, int(self._size * share))
