"""This module puts a start pack into an image's EROFS index: the same head and windows, and the pack as a third
part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.errors import FormatError, UsageError
from harness.formats.erofs import index as form
from harness.formats.erofs.byte_source import IndexedByteSource
from harness.formats.erofs.pack import Pack, decode_table, pack_descriptor, table_bytes
from harness.formats.erofs.pack_build import DEFAULT_PACK_BYTES, build_pack
from harness.formats.erofs.recording import Recording, unite
from harness.formats.erofs.spans import WHOLE
from harness.oci.descriptor import OCI_EMPTY, OCI_MANIFEST, Descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.erofs.pack_build import LayerBytes
    from harness.formats.erofs.spans import ErofsIndex
    from harness.formats.table import RangeSource
    from harness.oci.image import Image
    from harness.oci.store import ImageDestination, ImageSource


class MadePack(NamedTuple):
    """Holds a pack and how the artefact's manifest names it."""

    descriptor: Descriptor
    pack: Pack
    blob: bytes


class _Whole:
    """Stands for a layer without a way in; its bytes are in no pack."""

    def read(self, offset: int, size: int) -> bytes:
        raise FormatError("start pack", f"{size} bytes at {offset} of a layer that is fetched whole before the mount")


def open_layers(source: ImageSource, image: Image, index: ErofsIndex, windows: RangeSource | None) -> list[LayerBytes]:
    """Opens each layer's address space, read through the index from ``source``."""
    return [
        _Whole() if layer.kind == WHOLE else IndexedByteSource(layer, source.open_blob(descriptor), windows)
        for layer, descriptor in zip(index.layers, image.layers, strict=True)
    ]


def make_pack(
    index: ErofsIndex, head_digest: str, layers: Sequence[LayerBytes], recordings: Sequence[Recording], most_bytes: int
) -> MadePack:
    """Makes a pack of ``recordings`` for the index whose head has ``head_digest``.

    Raises UsageError where the recordings hold nothing of this image, ContentError for layers that are damaged.
    """
    built = build_pack(index, head_digest, layers, unite(recordings), most_bytes)
    if built is None:
        raise UsageError(
            "the recording asks for nothing that a pack of this image can hold; record a start of it: "
            "coldbench index erofs IMAGE --record SCENARIO"
        )
    table, blob = built
    pack = pack_descriptor(table, blob)
    return MadePack(pack, decode_table(table, pack, head_digest, index), blob)


def add_pack(
    source: ImageSource,
    destination: ImageDestination,
    image: Image,
    manifest: bytes,
    recordings: Sequence[Recording],
    *,
    most_bytes: int = DEFAULT_PACK_BYTES,
) -> Descriptor:
    """Stores the index of ``manifest``, whose blobs both stores have, with a pack of ``recordings`` at ``destination``.

    Returns the new artefact. Raises what ``make_pack`` raises.
    """
    head, windows = form.index_parts(manifest, image.descriptor.digest)
    index = form.load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)
    layers = open_layers(source, image, index, source.open_blob(windows) if windows is not None else None)
    made = make_pack(index, head.digest, layers, recordings, most_bytes)
    destination.put_blob(Descriptor.of(form.EMPTY_CONFIG, OCI_EMPTY), form.EMPTY_CONFIG)
    destination.put_blob(made.descriptor, made.blob)
    packed = form.index_manifest(image.descriptor, head, windows, form.span_bytes_of(manifest), made.descriptor)
    return destination.add_referrer(image.descriptor, packed, OCI_MANIFEST)


def load_pack(source: ImageSource, image: Image, manifest: bytes, index: ErofsIndex) -> MadePack | None:
    """Loads the pack of an index, every frame checked; None where the index has none.

    Raises FormatError, DigestMismatch or RegistryError.
    """
    descriptor = form.index_pack(manifest)
    if descriptor is None:
        return None
    head, _ = form.index_parts(manifest, image.descriptor.digest)
    blob = source.open_blob(descriptor).read()
    pack = decode_table(blob[: table_bytes(descriptor)], descriptor, head.digest, index)
    for number, frame in enumerate(pack.frames):
        frame.check(memoryview(blob)[frame.offset : frame.offset + frame.packed_bytes], number)
    return MadePack(descriptor, pack, blob)


def recording_of(pack: Pack, index: ErofsIndex) -> Recording:
    """Returns what a pack holds, as the recording that it is made of again."""
    found = []
    for frame in pack.frames:
        for begin, end in zip(frame.begins, frame.ends, strict=True):
            for layer in index.layers:
                low, high = max(begin, layer.start), min(end, layer.start + layer.size)
                if low < high:
                    found.append((layer.digest, low - layer.start, high - layer.start))
    return Recording(tuple(found))
