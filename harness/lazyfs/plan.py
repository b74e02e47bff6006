"""Which layers of an image can be served lazily, and how: what a mount request says of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import ContentError, ImageNotFound
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION
from harness.formats.soci.index import find_index
from harness.model.modes import Form, find
from harness.oci.store import referring

if TYPE_CHECKING:
    from harness.oci.image import Image
    from harness.oci.store import ImageSource


EROFS_INDEX_TYPE = "application/vnd.coldbench.erofs.index.v1+json"
"""``harness.formats.erofs.index.INDEX_TYPE``; not imported, since the agent does without numpy (a test compares)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``lazy``: one message per lazily served layer (``sources.open_layer``), bottom first; ``unpack``: the numbers of
    the others (too small for an index, another media type), which are pulled and unpacked as the reference does."""

    lazy: list[dict[str, Any]]
    unpack: list[int]
    details: dict[str, Any] = field(default_factory=dict)


def plan_blob(source: ImageSource, image: Image) -> dict[str, Any]:
    """The index of mode ``erofs`` for a mount request (``BlobImage.open``); ImageNotFound when there is none."""
    found = next(referring(source, image.descriptor.digest, EROFS_INDEX_TYPE, last_first=True), None)
    if found is None:
        raise ImageNotFound(f"{source.where}: the image has no EROFS index; make one: coldbench index erofs")
    _, manifest = found
    return {
        "manifest": manifest.decode(),
        "image": image.descriptor.to_json(),
        "layers": [layer.to_json() for layer in image.layers],
    }


def plan_layers(source: ImageSource, image: Image, mode: str) -> Plan:
    """Find the indexes of mode ``estargz`` or ``soci``; ContentError when the image has none at all."""
    lazy: list[dict[str, Any]] = []
    unpack: list[int] = []
    details: dict[str, Any] = {}
    if find(mode).form is Form.ESTARGZ:
        for number, layer in enumerate(image.layers):
            digest = layer.annotations.get(TOC_DIGEST_ANNOTATION)
            if digest:
                lazy.append(
                    {
                        "number": number,
                        "kind": "estargz",
                        "digest": layer.digest,
                        "size": layer.size,
                        "toc_digest": digest,
                    }
                )
            else:
                unpack.append(number)
        if not lazy:
            raise ContentError(f"{source.where}: no layer is eStargz; convert the image: coldbench convert estargz")
        return Plan(lazy, unpack)
    found = find_index(source, image)
    if found is None:
        raise ContentError(f"{source.where}: the image has no SOCI index; make one: coldbench index soci")
    descriptor, index = found
    details["soci_index"] = descriptor.digest
    for number, layer in enumerate(image.layers):
        entry = index.layer(layer.digest)
        if entry is None:
            unpack.append(number)
            continue
        message = {
            "number": number, "kind": "ztoc", "digest": layer.digest, "size": layer.size,
            "ztoc_digest": entry.ztoc.digest, "ztoc_size": entry.ztoc.size,
        }  # fmt: skip
        artefact = index.prefetch.get(layer.digest)
        if artefact is not None:
            message |= {"prefetch_digest": artefact.digest, "prefetch_size": artefact.size}
        lazy.append(message)
    if not lazy:
        raise ContentError(f"{source.where}: the SOCI index {descriptor.digest} names none of the image's layers")
    return Plan(lazy, unpack, details)
