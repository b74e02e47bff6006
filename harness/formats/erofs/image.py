"""This module writes and finds the EROFS index of a whole image: layers side by side, then metadata, blobs and the
referrer.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import DigestMismatch, FormatError, ImageNotFound, UnsafePath, UsageError
from harness.formats.erofs import index as form
from harness.formats.erofs.build import BuiltLayer, build_layer
from harness.formats.erofs.head import decode_head
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.pack_build import DEFAULT_PACK_BYTES
from harness.formats.erofs.packing import MadePack, make_pack, open_layers
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.erofs.writer import write_metadata
from harness.formats.gzip.checkpoints import file_pieces
from harness.formats.table import Kind
from harness.oci.descriptor import OCI_EMPTY, OCI_MANIFEST, Descriptor
from harness.oci.location import copy_image
from harness.oci.store import Verifier, referring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.formats.erofs.recording import Recording
    from harness.oci.descriptor import Platform
    from harness.oci.image import Image
    from harness.oci.store import BlobStore, ImageDestination, ImageSource

MIN_SPAN_BYTES, MAX_SPAN_BYTES = 64 << 10, 128 << 20
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Options:
    """Says how to index. ``prefetch`` names files (absolute or not) in the order in which a start needs them."""

    span_bytes: int = form.DEFAULT_SPAN_BYTES
    prefetch: tuple[str, ...] = ()
    platform: Platform | None = None
    workers: int = 0
    """Says how many layers are indexed at a time; 0 is one per CPU."""
    recordings: tuple[Recording, ...] = ()
    """Lists starts that a start pack is made of; without any there is none."""
    pack_bytes: int = DEFAULT_PACK_BYTES
    """This is the most that a pack holds, unpacked."""


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """Holds the result of :func:`index_image`: the artefact ``index``; a start fetches ``head_bytes`` of it before it
    mounts.
    """

    image: Descriptor
    index: Descriptor
    head_bytes: int
    windows_bytes: int
    metadata_bytes: int
    entries: int
    inodes: int
    layers: tuple[dict[str, Any], ...]
    prefetch_missing: tuple[str, ...] = ()
    pack: Descriptor | None = None
    pack_raw_bytes: int = 0
    """Counts the bytes of the pack, unpacked."""

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image.to_json(),
            "index": self.index.to_json(),
            "head_bytes": self.head_bytes,
            "windows_bytes": self.windows_bytes,
            "metadata_bytes": self.metadata_bytes,
            "entries": self.entries,
            "inodes": self.inodes,
            "layers": list(self.layers),
            "prefetch_missing": list(self.prefetch_missing),
            "pack": self.pack.to_json() if self.pack is not None else None,
            "pack_raw_bytes": self.pack_raw_bytes,
        }


def index_image(
    source: ImageSource,
    destination: ImageDestination | None = None,
    options: Options | None = None,
    progress: Callable[[Descriptor, int], object] = lambda layer, count: None,
    *,
    copy: bool = True,
) -> IndexedImage:
    """Indexes the image of ``source`` and stores the artefact as a referrer at ``destination``.

    With ``copy`` the image itself is copied there first; without, it must be there already. ``progress`` gets the
    bytes of each layer read. Raises UsageError for impossible options, ContentError (FormatError, UnsafePath,
    DigestMismatch) for layers that are damaged or that EROFS cannot present.
    """
    if destination is None:
        raise UsageError("no place to write the index to")
    options = options or Options()
    if not MIN_SPAN_BYTES <= options.span_bytes <= MAX_SPAN_BYTES:
        raise UsageError(f"span size {options.span_bytes} is not between {MIN_SPAN_BYTES} and {MAX_SPAN_BYTES} bytes")
    image = source.resolve(options.platform)
    layers = _build(source, image, options, progress)
    try:
        tree = merge_layers(
            [layer.table for layer in layers],
            [layer.fragments for layer in layers],
            lambda number: f"layer {image.layers[number].digest}",
        )
        metadata = write_metadata(tree, [layer.spans.size for layer in layers])
    except FormatError as error:
        kind = UnsafePath if isinstance(error, UnsafePath) else FormatError
        raise kind(f"{source.where}: {error.where}", error.what) from None
    extents, missing = prefetch_extents(metadata.data, metadata.layer_starts, layers, options.prefetch)
    head_bytes, window_bytes = form.encode_index(
        metadata.data, metadata.layer_starts, metadata.image_bytes, [layer.spans for layer in layers], extents
    )
    head = Descriptor.of(head_bytes, form.HEAD_TYPE)
    windows = Descriptor.of(window_bytes, form.WINDOWS_TYPE) if window_bytes else None
    made: MadePack | None = None
    if options.recordings:
        parsed = decode_head(head_bytes, image.layers, windows)
        opened = open_layers(source, image, parsed, _Ranges(window_bytes))
        made = make_pack(parsed, head.digest, opened, options.recordings, options.pack_bytes)
    if copy:
        copy_image(source, destination, referrers=False)
    destination.put_blob(Descriptor.of(form.EMPTY_CONFIG, OCI_EMPTY), form.EMPTY_CONFIG)
    destination.put_blob(head, head_bytes)
    if windows is not None:
        destination.put_blob(windows, window_bytes)
    pack = made.descriptor if made is not None else None
    if made is not None:
        destination.put_blob(made.descriptor, made.blob)
    manifest = form.index_manifest(image.descriptor, head, windows, options.span_bytes, pack)
    index = destination.add_referrer(image.descriptor, manifest, OCI_MANIFEST)
    return IndexedImage(
        image.descriptor, index, len(head_bytes), len(window_bytes), len(metadata.data),
        sum(len(layer.table) for layer in layers), metadata.inodes,
        tuple(_summary(layer) for layer in layers), missing, pack, made.pack.raw_bytes if made is not None else 0,
    )  # fmt: skip


class _Ranges:
    """Reads ranges of a blob that is in memory (``table.RangeSource``)."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_range(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def _summary(layer: BuiltLayer) -> dict[str, Any]:
    spans = layer.spans
    remark = {
        form.PLAIN: "uncompressed: ranges of the layer itself",
        form.WHOLE: "no way into zstd: fetched and inflated whole at start",
    }.get(spans.kind, "")
    return {
        "digest": spans.digest,
        "compression": spans.kind,
        "compressed_bytes": spans.compressed_bytes,
        "bytes": spans.size,
        "entries": len(layer.table),
        "spans": len(spans.ins),
        "windows_bytes": sum(map(len, spans.windows)),
        "remark": remark,
    }


def _build(
    source: ImageSource, image: Image, options: Options, progress: Callable[[Descriptor, int], object]
) -> list[BuiltLayer]:
    """Builds all layers, the largest first, each once however often the image names it."""

    def build(layer: Descriptor) -> BuiltLayer:
        blob = source.open_blob(layer)
        path = blob.path
        verifier = Verifier(layer, source.where) if path is not None else None
        pieces = file_pieces(str(path), _PIECE_BYTES) if path is not None else blob.stream(_PIECE_BYTES)

        def on_piece(piece: bytes) -> None:
            if verifier is not None:
                verifier.update(piece)
            progress(layer, len(piece))

        where = f"{source.where}: layer {layer.digest}"
        try:
            built = build_layer(
                pieces, digest=layer.digest, span_bytes=options.span_bytes, where=where,
                on_piece=on_piece,
            )  # fmt: skip
        except FormatError as error:
            what = str(error).removeprefix(where).lstrip(",: ")
            raise type(error)(where, what) from None
        if verifier is not None:
            verifier.finish()
        if built.diff_id != diff_ids[layer.digest]:
            raise DigestMismatch(f"{where} decompressed", diff_ids[layer.digest], built.diff_id)
        return built

    diff_ids = dict(zip((layer.digest for layer in image.layers), image.diff_ids, strict=True))
    distinct = sorted({layer.digest: layer for layer in image.layers}.values(), key=lambda layer: -layer.size)
    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1, "index") as pool:
        futures = {layer.digest: pool.submit(build, layer) for layer in distinct}
        try:
            return [futures[layer.digest].result() for layer in image.layers]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prefetch_extents(
    metadata: bytes,
    layer_starts: Sequence[int],
    layers: Sequence[BuiltLayer],
    paths: Sequence[str],
) -> tuple[list[tuple[int, int, int]], tuple[str, ...]]:
    """Returns (layer, begin, end) of each named file's data in the given order, and the names that are no file with
    data.
    """
    image = ErofsImage(over_bytes(metadata))
    extents: dict[tuple[int, int, int], None] = {}
    missing = []
    for path in paths:
        inode = image.resolve(os.fsencode(path))
        if inode is None or inode.kind != Kind.REG:
            missing.append(path)
            continue
        for extent in image.extents(inode):
            if extent.image_offset >= 0:
                number = max(n for n, start in enumerate(layer_starts) if start <= extent.image_offset)
                begin = extent.image_offset - layer_starts[number]
                extents[number, begin, min(begin + extent.size, layers[number].spans.size)] = None
    return list(extents), tuple(missing)


def find_erofs_index(store: BlobStore | ImageSource, image: Descriptor) -> tuple[Descriptor, bytes]:
    """Returns (descriptor, manifest) of the image's EROFS index: the referrer listed last, where there are several.

    ImageNotFound when there is none; the manifest's bytes are those of its digest.
    """
    for found in referring(store, image.digest, form.INDEX_TYPE, last_first=True):
        return found
    raise ImageNotFound(
        f"{store.where}: no EROFS index refers to {image.digest}; write one with: coldbench index erofs IMAGE"
    )
