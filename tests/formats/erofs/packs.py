"""Indexes with start packs for tests: right ones, and ones whose table says what no honest table says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.formats.erofs import index as form
from harness.formats.erofs.image import find_erofs_index
from harness.formats.erofs.pack import encode_table, pack_descriptor
from harness.formats.erofs.packing import load_pack
from harness.formats.erofs.recording import Recording
from harness.oci.descriptor import OCI_MANIFEST
from harness.oci.layout import LayoutStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.erofs.pack import Frame
    from harness.formats.erofs.packing import MadePack
    from harness.formats.erofs.spans import ErofsIndex
    from harness.oci.descriptor import Descriptor
    from harness.oci.store import ImageSource


def whole_image(source: ImageSource, step: int = 128 << 10) -> Recording:
    """A recording of a start that reads every layer from its end to its beginning."""
    _, manifest = find_erofs_index(source, source.resolve().descriptor)
    index = index_of(source, manifest)
    return Recording(
        tuple(
            (layer.digest, begin, min(begin + step, layer.size))
            for layer in index.layers
            for begin in reversed(range(0, layer.size, step))
        )
    )


def index_of(source: ImageSource, manifest: bytes) -> ErofsIndex:
    """The loaded index of an artefact's manifest."""
    image = source.resolve()
    head, _ = form.index_parts(manifest, image.descriptor.digest)
    return form.load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)


def loaded_pack(source: ImageSource) -> tuple[MadePack, ErofsIndex, bytes]:
    """The pack of the image's index, the index and its manifest."""
    image = source.resolve()
    _, manifest = find_erofs_index(source, image.descriptor)
    index = index_of(source, manifest)
    made = load_pack(source, image, manifest, index)
    assert made is not None
    return made, index, manifest


def put_pack(
    source: ImageSource,
    change: Callable[[list[Frame], list[bytes]], None] = lambda frames, blobs: None,
    *,
    head: str = "",
    descriptor: Callable[[Descriptor], Descriptor] = lambda pack: pack,
) -> Descriptor:
    """The same index with another pack, which is signed right up to the manifest, listed last; its descriptor.

    ``change`` edits frames and their packed bytes, ``head`` says what index it belongs to, ``descriptor`` how the
    manifest names it.
    """
    made, _, manifest = loaded_pack(source)
    image = source.resolve()
    head_part, windows = form.index_parts(manifest, image.descriptor.digest)
    frames = list(made.pack.frames)
    blobs = [made.blob[frame.offset : frame.offset + frame.packed_bytes] for frame in frames]
    change(frames, blobs)
    table = encode_table(head or head_part.digest, frames)
    blob = table + b"".join(blobs)
    pack = descriptor(pack_descriptor(table, blob))
    assert isinstance(source.store, LayoutStore)
    source.store.put_blob(pack, blob)
    text = form.index_manifest(image.descriptor, head_part, windows, form.span_bytes_of(manifest), pack)
    source.store.add_referrer(image.descriptor, text, OCI_MANIFEST)
    return pack


def with_ranges(frame: Frame, *ranges: tuple[int, int]) -> Frame:
    """The frame with these ranges in the place of its own."""
    return replace(frame, begins=tuple(begin for begin, _ in ranges), ends=tuple(end for _, end in ranges))
