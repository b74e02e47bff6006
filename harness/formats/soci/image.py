"""This module indexes a whole image for SOCI: its layers side by side, then the index, written where the image goes."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ContentError, DigestMismatch, FormatError, UsageError
from harness.formats.gzip.checkpoints import file_pieces
from harness.formats.gzip.layer_stream import room_for
from harness.formats.sniff import sniffed
from harness.formats.soci import index as soci
from harness.formats.soci.ztoc_build import COMPRESSIONS, DEFAULT_SPAN_BYTES, LayerIndexer
from harness.formats.table import Kind
from harness.formats.tar.names import clean_name
from harness.formats.tar.scanner import KINDS
from harness.formats.tar.stack import lower_links
from harness.machine.records import recorded_directory
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from harness.oci.location import copy_blob, copy_image
from harness.oci.store import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from harness.formats.tar.reading import LayerReading
    from harness.formats.tar.scanner import TarEntry
    from harness.oci.descriptor import Platform
    from harness.oci.image import Image
    from harness.oci.store import Blob, ImageDestination, ImageSource

MAX_SPAN_SIZE = 128 << 20
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Options:
    """Says how to index. ``optimise_xattrs`` marks layers without extended attributes and opaque directories."""

    version: str = soci.V2
    span_size: int = DEFAULT_SPAN_BYTES
    min_layer_bytes: int = soci.DEFAULT_MIN_LAYER_BYTES
    tool: str = soci.REFERENCE_TOOL
    prefetch_files: tuple[str, ...] = ()
    optimise_xattrs: bool = False
    platform: Platform | None = None
    workers: int = 0
    """Says how many layers are indexed at a time; 0 is one per CPU."""


@dataclass(slots=True)
class LayerResult:
    """Holds the result for one layer: a zTOC, or the reason why there is none."""

    layer: Descriptor
    skipped: str = ""
    ztoc: Descriptor | None = None
    path: Path | None = None
    spans: int = 0
    entries: int = 0
    archive_bytes: int = 0
    plain_attributes: bool = False
    prefetch: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    reading: LayerReading | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "layer": self.layer.digest,
            "media_type": self.layer.media_type,
            "compressed_bytes": self.layer.size,
        }
        if self.ztoc is None:
            return {**out, "skipped": self.skipped}
        return {
            **out,
            "ztoc": self.ztoc.digest,
            "ztoc_bytes": self.ztoc.size,
            "spans": self.spans,
            "entries": self.entries,
            "archive_bytes": self.archive_bytes,
        }


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """Holds the result of :func:`index_image`: ``head`` is what the destination's name now points at."""

    head: Descriptor
    image: Descriptor
    index: Descriptor
    layers: tuple[LayerResult, ...]
    prefetch_missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head.to_json(),
            "image": self.image.to_json(),
            "soci_index": self.index.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
            "prefetch_missing": list(self.prefetch_missing),
        }


def _pieces(blob: Blob, where: str, check: bool) -> tuple[Iterable[bytes], Verifier | None]:
    """Returns the blob's pieces, and who is to verify them; nobody where the stream does, or a copy will (``check``
    false).
    """
    if blob.path is None:
        return blob.stream(_PIECE_BYTES), None
    return file_pieces(str(blob.path), _PIECE_BYTES), Verifier(blob.descriptor, where) if check else None


def _extents_of(wanted: frozenset[bytes], found: dict[bytes, tuple[int, int]]) -> Callable[[TarEntry], None] | None:
    """Returns a function that collects first and last payload byte of each wanted file (the last entry of a name
    counts).
    """
    if not wanted:
        return None

    def collect(entry: TarEntry) -> None:
        if KINDS.get(entry.flag) in (None, Kind.DIR):
            return
        name = clean_name(entry.name)
        if name in wanted:
            start = entry.payload_offset
            found[name] = start, start + max(entry.stored_bytes - 1, 0)

    return collect


@dataclass(frozen=True, slots=True)
class _Work:
    """Holds what the indexing of every layer of one image shares."""

    source: ImageSource
    destination: ImageDestination
    options: Options
    directory: Path
    wanted: frozenset[bytes]
    progress: Callable[[Descriptor, int], object]
    diff_ids: Mapping[str, str]


def _index_layer(work: _Work, blob: Blob) -> LayerResult:
    layer, options, where, progress = blob.descriptor, work.options, work.source.where, work.progress
    result = LayerResult(layer)
    pieces, verifier = _pieces(blob, where, work.destination.has_blob(layer.digest))

    def on_piece(piece: bytes) -> None:
        if verifier is not None:
            verifier.update(piece)
        progress(layer, len(piece))

    extents: dict[bytes, tuple[int, int]] = {}
    collect = _extents_of(work.wanted, extents)
    compression, pieces = sniffed(pieces, f"{where}: layer {layer.digest}")
    if compression not in COMPRESSIONS:
        result.skipped = f"a layer compressed with {compression} has no zTOC"
        return result
    indexer = LayerIndexer(compression, options.span_size, collect)
    with indexer, room_for(f"the zTOC of layer {layer.digest}"):
        try:
            indexer.read(pieces, on_piece)
        except FormatError as error:
            raise type(error)(f"{where}: layer {layer.digest}, {error.where}", error.what) from None
        if verifier is not None:
            verifier.finish()
        if indexer.diff_id != work.diff_ids[layer.digest]:
            what = f"{where}: layer {layer.digest} decompressed"
            raise DigestMismatch(what, work.diff_ids[layer.digest], indexer.diff_id)
        result.reading = indexer.reading
        result.skipped = indexer.obstacle or ("" if indexer.span_starts else "an empty layer has no spans")
        if result.skipped:
            return result
        result.path = work.directory / layer.hex
        with open(result.path, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            digest, size = indexer.write(file, options.tool)
        result.ztoc = Descriptor(soci.ZTOC_TYPE, digest, size)
        result.spans, result.entries = len(indexer.span_digests), len(indexer.entries)
        result.archive_bytes = indexer.archive_bytes
        result.plain_attributes = options.optimise_xattrs and indexer.plain_attributes
        starts = indexer.span_starts
        for name, (first, last) in extents.items():
            result.prefetch[name] = bisect_right(starts, first) - 1, bisect_right(starts, last) - 1
    return result


def _too_bad(layer: Descriptor, options: Options) -> str:
    """Says why a layer gets no zTOC, as far as its descriptor tells."""
    if layer.compression not in COMPRESSIONS:
        return f"layers of media type {layer.media_type} have no zTOC"
    if layer.size < options.min_layer_bytes:
        return f"smaller than the minimum of {options.min_layer_bytes} bytes"
    return ""


def _index_layers(work: _Work, image: Image) -> dict[str, LayerResult]:
    source, options = work.source, work.options
    results = {layer.digest: LayerResult(layer, _too_bad(layer, options)) for layer in image.layers}
    todo = sorted((r.layer for r in results.values() if not r.skipped), key=lambda layer: -layer.size)
    if not todo:
        reasons = "; ".join(sorted({result.skipped for result in results.values()}))
        small = any(result.layer.compression in COMPRESSIONS for result in results.values())
        advice = "; lower --min-layer-size to index small layers" if small else ""
        raise UsageError(f"{source.where}: no layer to index ({reasons}){advice}")
    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1, "index") as pool:
        futures = [pool.submit(_index_layer, work, source.open_blob(layer)) for layer in todo]
        try:
            for future in futures:
                result = future.result()
                results[result.layer.digest] = result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if all(result.ztoc is None for result in results.values()):
        reasons = "; ".join(sorted({result.skipped for result in results.values()}))
        raise ContentError(f"{source.where}: no layer can have a zTOC ({reasons})")
    return results


def _prefetch(
    layers: Sequence[LayerResult], wanted: frozenset[bytes]
) -> tuple[dict[str, list[tuple[int, int]]], tuple[str, ...]]:
    """Returns span ranges by layer digest (each file from the topmost layer that has it), and the files not found."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    missing: list[str] = []
    for name in sorted(wanted):
        holder = next((layer for layer in reversed(layers) if name in layer.prefetch), None)
        if holder is None:
            missing.append(name.decode("utf-8", "replace"))
        else:
            ranges.setdefault(holder.layer.digest, []).append(holder.prefetch[name])
    ordered = [layer.layer.digest for layer in layers if layer.layer.digest in ranges]
    return {digest: soci.merge_spans(ranges[digest]) for digest in dict.fromkeys(ordered)}, tuple(missing)


def _lookup_name(path: str) -> bytes:
    return os.path.normpath("/" + path).lstrip("/").encode("utf-8", "surrogateescape")


def index_image(
    source: ImageSource,
    destination: ImageDestination,
    options: Options,
    progress: Callable[[Descriptor, int], object] = lambda layer, count: None,
) -> IndexedImage:
    """Writes the image of ``source`` and its SOCI index to ``destination``.

    Version 1 copies what the source names and adds the index as a referrer; version 2 writes an OCI index with the
    annotated manifest (of one platform) and the SOCI index. ``progress`` gets the bytes of each layer read. Raises
    UsageError when every layer is too small, FormatError and DigestMismatch for damaged layers.
    """
    if not 0 < options.span_size <= MAX_SPAN_SIZE:
        raise UsageError(f"span size {options.span_size} is not between 1 and {MAX_SPAN_SIZE} bytes")
    image = source.resolve(options.platform)
    wanted = frozenset(_lookup_name(path) for path in options.prefetch_files)
    with recorded_directory("ztoc", Path(tempfile.gettempdir())) as directory:
        diff_ids = dict(zip((layer.digest for layer in image.layers), image.diff_ids, strict=True))
        results = _index_layers(_Work(source, destination, options, directory, wanted, progress, diff_ids), image)
        layers = tuple(results[layer.digest] for layer in image.layers)
        _check_links(source, layers)
        ranges, missing = _prefetch(layers, wanted)
        artefacts = {digest: soci.prefetch_bytes(spans) for digest, spans in ranges.items()}
        for layer in layers:
            if layer.ztoc is not None and layer.path is not None:
                destination.put_blob(layer.ztoc, layer.path)
    for artefact in artefacts.values():
        destination.put_blob(Descriptor.of(artefact, soci.PREFETCH_TYPE), artefact)
    destination.put_blob(Descriptor.of(soci.EMPTY_CONFIG, options.version), soci.EMPTY_CONFIG)
    index = soci.SociIndex(
        options.version,
        tuple(_indexed(layers, options)),
        options.tool,
        image.descriptor if options.version == soci.V1 else None,
        {digest: Descriptor.of(data, soci.PREFETCH_TYPE) for digest, data in artefacts.items()},
    ).to_bytes()
    write = _write_v1 if options.version == soci.V1 else _write_v2
    head, written, referrer = write(source, destination, image, index)
    return IndexedImage(head, written, referrer, layers, missing)


def _check_links(source: ImageSource, layers: Sequence[LayerResult]) -> None:
    """Refuses hard links into lower layers that lead nowhere, as far as all layers were read."""
    readings = [layer.reading for layer in layers if layer.reading is not None]
    if len(readings) == len(layers):
        lower_links(readings, lambda number: f"{source.where}: layer {layers[number].layer.digest}")


def _indexed(layers: Sequence[LayerResult], options: Options) -> Iterator[soci.IndexedLayer]:
    for result in layers:
        if result.ztoc is not None:
            layer = result.layer
            yield soci.IndexedLayer(
                layer.digest, layer.media_type, options.span_size, result.ztoc, result.plain_attributes
            )


def _write_v1(
    source: ImageSource, destination: ImageDestination, image: Image, index: bytes
) -> tuple[Descriptor, Descriptor, Descriptor]:
    head = copy_image(source, destination, referrers=False)
    return head, image.descriptor, destination.add_referrer(image.descriptor, index, OCI_MANIFEST)


def _write_v2(
    source: ImageSource, destination: ImageDestination, image: Image, index: bytes
) -> tuple[Descriptor, Descriptor, Descriptor]:
    for blob in (image.config_descriptor, *image.layers):
        copy_blob(source, destination, blob)
    put = getattr(destination, "put_nested_manifest", destination.put_manifest)
    # The original stays reachable by its digest: v1 indexes and signatures name it.
    put(image.manifest_bytes, image.descriptor.media_type)
    index_descriptor = put(index, OCI_MANIFEST)
    manifest = put(soci.annotated_manifest(image, index_descriptor.digest), OCI_MANIFEST)
    platform = image.descriptor.platform or image.platform
    head = destination.put_manifest(soci.enabled_index(manifest, index_descriptor, platform), OCI_INDEX)
    return head, manifest, index_descriptor
