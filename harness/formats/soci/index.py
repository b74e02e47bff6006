"""This module turns SOCI index manifests, v1 and v2, and prefetch artefacts into objects and back, as the reference
tool does.

An index is an OCI manifest whose layers are zTOCs. A v1 index has the image manifest as its subject; a v2 index
stands beside it in an OCI index, and each names the other in an annotation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import FormatError, UnsupportedMediaType
from harness.oci.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    go_json,
    is_digest,
    text_map,
)
from harness.oci.image import Image, parse_json
from harness.oci.store import referring

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.oci.store import ImageSource

V1, V2 = "application/vnd.amazon.soci.index.v1+json", "application/vnd.amazon.soci.index.v2+json"
ZTOC_TYPE = "application/octet-stream"
PREFETCH_TYPE = "application/vnd.amazon.soci.prefetch.v1+json"
REFERENCE_TOOL = "AWS SOCI CLI v0.2"
DEFAULT_MIN_LAYER_BYTES = 10 << 20
EMPTY_CONFIG = b"{}"

_PREFIX = "com.amazon.soci."
LAYER_DIGEST = _PREFIX + "image-layer-digest"
LAYER_TYPE = _PREFIX + "image-layer-mediaType"
SPAN_SIZE = _PREFIX + "span-size"
DISABLE_XATTRS = _PREFIX + "disable-xattrs"
BUILD_TOOL = _PREFIX + "build-tool-identifier"
INDEX_DIGEST = _PREFIX + "index-digest"
IMAGE_DIGEST = _PREFIX + "image-manifest-digest"

_MAX_PREFETCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class IndexedLayer:
    """Holds one layer's zTOC. ``no_xattrs``: the layer has neither extended attributes nor opaque directories."""

    layer_digest: str
    layer_media_type: str
    span_size: int
    ztoc: Descriptor
    no_xattrs: bool = False

    def descriptor(self) -> Descriptor:
        annotations = {
            LAYER_DIGEST: self.layer_digest,
            LAYER_TYPE: self.layer_media_type,
            SPAN_SIZE: str(self.span_size),
        }
        if self.no_xattrs:
            annotations[DISABLE_XATTRS] = "true"
        return Descriptor(ZTOC_TYPE, self.ztoc.digest, self.ztoc.size, annotations)


@dataclass(frozen=True, slots=True)
class SociIndex:
    """Holds a parsed or planned index. ``prefetch`` maps a layer digest to its prefetch artefact's descriptor."""

    version: str
    layers: tuple[IndexedLayer, ...]
    tool: str = REFERENCE_TOOL
    subject: Descriptor | None = None
    prefetch: dict[str, Descriptor] = field(default_factory=dict)

    def layer(self, digest: str) -> IndexedLayer | None:
        """Returns the zTOC of an image layer, None when it has none (a small layer)."""
        return next((layer for layer in self.layers if layer.layer_digest == digest), None)

    def to_bytes(self) -> bytes:
        """Writes the manifest, byte for byte as the reference tool does."""
        layers = [layer.descriptor() for layer in self.layers]
        layers += [
            Descriptor(PREFETCH_TYPE, artefact.digest, artefact.size, {LAYER_DIGEST: digest})
            for digest, artefact in self.prefetch.items()
        ]
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor.of(EMPTY_CONFIG, self.version).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        if self.subject is not None:
            manifest["subject"] = Descriptor(self.subject.media_type, self.subject.digest, self.subject.size).to_json()
        manifest["annotations"] = {BUILD_TOOL: self.tool}
        return go_json(manifest)


def parse_index(data: bytes, where: str = "SOCI index") -> SociIndex:
    """Reads an index manifest; UnsupportedMediaType when it is another kind of artefact, FormatError when it is
    damaged.

    Layers of unknown media types are tolerated and left out.
    """
    document = parse_json(data, where)
    config = Descriptor.from_json(document.get("config"), f"{where}: config")
    version = config.media_type
    if version not in (V1, V2):
        raise UnsupportedMediaType(f"{where}: config of media type {version!r} is not a SOCI index's")
    entries = document.get("layers")
    if not isinstance(entries, list):
        raise FormatError(where, "has no layers")
    layers: list[IndexedLayer] = []
    prefetch: dict[str, Descriptor] = {}
    for number, entry in enumerate(entries):
        descriptor = Descriptor.from_json(entry, f"{where}: layer {number}")
        notes = descriptor.annotations
        digest = notes.get(LAYER_DIGEST, "")
        if descriptor.media_type == PREFETCH_TYPE and digest:
            prefetch[digest] = descriptor
        if descriptor.media_type != ZTOC_TYPE:
            continue
        if not digest:
            raise FormatError(f"{where}: layer {number}", f"has no annotation {LAYER_DIGEST}")
        span_size = notes.get(SPAN_SIZE, "0")
        if not (span_size.isascii() and span_size.isdigit() and len(span_size) < 19):
            raise FormatError(f"{where}: layer {number}", f"span size {span_size[:40]!r} is not a number")
        layers.append(
            IndexedLayer(
                digest,
                notes.get(LAYER_TYPE, ""),
                int(span_size),
                Descriptor(ZTOC_TYPE, descriptor.digest, descriptor.size),
                notes.get(DISABLE_XATTRS) == "true",
            )
        )
    subject = document.get("subject")
    return SociIndex(
        version,
        tuple(layers),
        text_map(document.get("annotations"), where).get(BUILD_TOOL, ""),
        Descriptor.from_json(subject, f"{where}: subject") if subject else None,
        prefetch,
    )


def find_index(source: ImageSource, image: Image, *, v1: bool = True) -> tuple[Descriptor, SociIndex] | None:
    """Returns the index of an image: the one its manifest names (v2), else (``v1``) the first among its referrers."""
    digest = image.annotations.get(INDEX_DIGEST)
    if digest:
        if not is_digest(digest):
            raise FormatError(f"{source.where}: annotation {INDEX_DIGEST}", f"{digest[:80]!r} is not a digest")
        data, media_type = source.manifest(digest)
        return Descriptor(media_type, digest, len(data)), parse_index(data, f"{source.where}: SOCI index {digest}")
    if v1:
        for referrer, data in referring(source, image.descriptor.digest, V1):
            return referrer, parse_index(data, f"{source.where}: SOCI index {referrer.digest}")
    return None


# Version 2: the image repackaged in an OCI index


def annotated_manifest(image: Image, index_digest: str) -> bytes:
    """Returns the image manifest with OCI media types and the annotation that names its index;
    layers are as they were.
    """
    manifest = image.manifest
    config = Descriptor.from_json(manifest["config"]).to_json()
    config["mediaType"] = OCI_CONFIG
    out: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if manifest.get("artifactType"):
        out["artifactType"] = manifest["artifactType"]
    out["config"] = config
    out["layers"] = [layer.to_json() for layer in image.layers]
    if manifest.get("subject"):
        out["subject"] = Descriptor.from_json(manifest["subject"]).to_json()
    out["annotations"] = dict(sorted({**image.annotations, INDEX_DIGEST: index_digest}.items()))
    return go_json(out)


def enabled_index(image: Descriptor, soci: Descriptor, platform: Platform) -> bytes:
    """Returns the OCI index that holds an annotated image manifest and its SOCI index."""
    entries = [
        Descriptor(image.media_type, image.digest, image.size, {INDEX_DIGEST: soci.digest}, platform),
        Descriptor(soci.media_type, soci.digest, soci.size, {IMAGE_DIGEST: image.digest}, platform, V2),
    ]
    return go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]})


# Prefetch artefacts


def merge_spans(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns (first, last) span ranges sorted, touching ones joined."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def prefetch_bytes(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Writes a prefetch artefact: which spans of one layer to fetch ahead, as inclusive ranges."""
    spans = [{"start_span": first, "end_span": last} for first, last in ranges]
    return go_json({"version": "1.0", "prefetch_spans": spans})


def parse_prefetch(data: bytes, spans: int) -> list[tuple[int, int]]:
    """Reads the ranges of a prefetch artefact for a layer of ``spans`` spans; FormatError when it names others."""
    where = "SOCI prefetch artefact"
    if len(data) > _MAX_PREFETCH_BYTES:
        raise FormatError(where, f"{len(data)} bytes are more than {_MAX_PREFETCH_BYTES}")
    try:
        ranges = [(entry["start_span"], entry["end_span"]) for entry in json.loads(data)["prefetch_spans"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(where, f"is not a list of spans ({type(error).__name__})") from None
    for first, last in ranges:
        if type(first) is not int or type(last) is not int or not 0 <= first <= last < spans:
            raise FormatError(where, f"names spans {first!r} to {last!r} of {spans}")
    return merge_spans(ranges)
