"""This module finds which layers of an image can be served lazily, and how: a mount request says it of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ContentError, ImageNotFound
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION
from harness.formats.soci.index import find_index
from harness.lazyfs.messages import BlobName, ErofsIndexName, LazyLayer
from harness.model.modes import Form, find
from harness.oci.descriptor import is_digest
from harness.oci.store import referring

if TYPE_CHECKING:
    from harness.oci.descriptor import Descriptor
    from harness.oci.image import Image
    from harness.oci.store import ImageSource


EROFS_INDEX_TYPE = "application/vnd.coldbench.erofs.index.v1+json"
"""Equals ``harness.formats.erofs.index.INDEX_TYPE``, not imported as the agent does without numpy (a test compares)."""
HEAD_ANNOTATION = "org.coldbench.erofs.head"
"""Equals ``harness.formats.erofs.index.ANNOTATION_HEAD``; a list of referrers names the head by it: ``digest size``."""


def parse_head(text: str) -> tuple[str, int] | None:
    """Returns the digest and size of an index's head as ``HEAD_ANNOTATION`` gives them; None for anything else."""
    digest, _, size = text.partition(" ")
    return (digest, int(size)) if is_digest(digest) and size.isascii() and size.isdigit() and len(size) < 19 else None


@dataclass(frozen=True, slots=True)
class Plan:
    """Says which layers are served lazily, and which are not.

    ``lazy`` are the lazily served layers, bottom first; ``unpack`` are the numbers of the others (too small for an
    index, another media type), which are pulled and unpacked as the reference does. ``soci_index`` is the digest of the
    SOCI index that was found.
    """

    lazy: tuple[LazyLayer, ...]
    unpack: tuple[int, ...]
    soci_index: str | None = None


def plan_blob(source: ImageSource, image: Image, digest: str = "") -> ErofsIndexName:
    """Returns the index of mode ``erofs`` for a mount request; raises ImageNotFound when there is none.

    ``digest`` names the one to use: anybody who may push can list another. Without, the last one listed is taken.
    """
    indexes = referring(source, image.descriptor.digest, EROFS_INDEX_TYPE, last_first=True)
    found = next((index for index in indexes if digest in ("", index[0].digest)), None)
    if found is None and digest:
        raise ImageNotFound(f"{source.where}: the registry does not list the EROFS index {digest} that was pushed")
    if found is None:
        raise ImageNotFound(f"{source.where}: the image has no EROFS index; make one: coldbench index erofs")
    _, manifest = found
    return ErofsIndexName(manifest.decode(), _name(image.descriptor), tuple(map(_name, image.layers)))


def _name(descriptor: Descriptor) -> BlobName:
    return BlobName(descriptor.media_type, descriptor.digest, descriptor.size)


def plan_layers(source: ImageSource, image: Image, mode: str) -> Plan:
    """Finds the indexes of mode ``estargz`` or ``soci``; raises ContentError when the image has none at all."""
    lazy: list[LazyLayer] = []
    unpack: list[int] = []
    if find(mode).form is Form.ESTARGZ:
        for number, layer in enumerate(image.layers):
            digest = layer.annotations.get(TOC_DIGEST_ANNOTATION)
            if digest:
                lazy.append(LazyLayer(number, "estargz", layer.digest, layer.size, digest))
            else:
                unpack.append(number)
        if not lazy:
            raise ContentError(f"{source.where}: no layer is eStargz; convert the image: coldbench convert estargz")
        return Plan(tuple(lazy), tuple(unpack))
    found = find_index(source, image)
    if found is None:
        raise ContentError(f"{source.where}: the image has no SOCI index; make one: coldbench index soci")
    descriptor, index = found
    for number, layer in enumerate(image.layers):
        entry = index.layer(layer.digest)
        if entry is None:
            unpack.append(number)
            continue
        artefact = index.prefetch.get(layer.digest)
        prefetch = ("", 0) if artefact is None else (artefact.digest, artefact.size)
        lazy.append(LazyLayer(number, "ztoc", layer.digest, layer.size, entry.ztoc.digest, entry.ztoc.size, *prefetch))
    if not lazy:
        raise ContentError(f"{source.where}: the SOCI index {descriptor.digest} names none of the image's layers")
    return Plan(tuple(lazy), tuple(unpack), descriptor.digest)
