"""This module binds the EROFS index: one artefact that makes an unmodified image mountable before its layers are there.

It is an OCI manifest whose ``subject`` is the image's manifest, with two or three blobs: the *head*, small and fetched
whole (file system metadata, where each layer's spans are, digests of spans and windows, prefetch list), the *windows*,
from which single ranges are fetched when a span is inflated, and perhaps a *pack*, which a start streams
(``harness.formats.erofs.pack``). docs/formats.md, "EROFS index", has the bytes and the
chain of digests. ``load_erofs_index`` and everything under it takes the artefact as hostile and raises FormatError or
DigestMismatch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.errors import DigestMismatch, FormatError
from harness.formats.erofs.head import decode_head, encode_index
from harness.formats.erofs.pack import PACK_TYPE
from harness.formats.erofs.spans import GZIP, PLAIN, WHOLE, ErofsIndex, IndexedLayer, LayerSpans
from harness.oci.descriptor import OCI_EMPTY, OCI_MANIFEST, Descriptor, digest_bytes, go_json, text_map
from harness.oci.image import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEFAULT_SPAN_BYTES",
    "GZIP",
    "HEAD_TYPE",
    "INDEX_TYPE",
    "PACK_TYPE",
    "PLAIN",
    "WHOLE",
    "WINDOWS_TYPE",
    "ErofsIndex",
    "IndexedLayer",
    "LayerSpans",
    "encode_index",
    "index_manifest",
    "index_pack",
    "index_parts",
    "load_erofs_index",
    "span_bytes_of",
]

INDEX_TYPE: Final = "application/vnd.coldbench.erofs.index.v1+json"
HEAD_TYPE: Final = "application/vnd.coldbench.erofs.head.v1"
WINDOWS_TYPE: Final = "application/vnd.coldbench.erofs.windows.v1"
ANNOTATION_SPAN_SIZE: Final = "org.coldbench.erofs.span-size"
ANNOTATION_HEAD: Final = "org.coldbench.erofs.head"
"""It is ``digest size`` of the head: lists of referrers show annotations, so it can be asked for
beside the manifest.
"""
EMPTY_CONFIG: Final = b"{}"
DEFAULT_SPAN_BYTES: Final = 1 << 20
"""Checkpoints stand this far apart: the table in docs/formats.md says what finer and coarser ones cost."""

MAX_HEAD_BYTES: Final = 1 << 28
_WHERE: Final = "EROFS index"


def index_manifest(
    subject: Descriptor, head: Descriptor, windows: Descriptor | None, span_bytes: int, pack: Descriptor | None = None
) -> bytes:
    """Makes the artefact's manifest (OCI image spec 1.1, "Guidelines for Artifact Usage")."""
    plain = Descriptor(subject.media_type, subject.digest, subject.size)
    return go_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": INDEX_TYPE,
            "config": Descriptor.of(EMPTY_CONFIG, OCI_EMPTY).to_json(),
            "layers": [part.to_json() for part in (head, windows, pack) if part is not None],
            "subject": plain.to_json(),
            "annotations": {ANNOTATION_HEAD: f"{head.digest} {head.size}", ANNOTATION_SPAN_SIZE: str(span_bytes)},
        }
    )


def index_parts(manifest: bytes, subject: str) -> tuple[Descriptor, Descriptor | None]:
    """Returns head and windows of an artefact that is about the image with manifest digest ``subject``; else
    FormatError.
    """
    document = parse_json(manifest, _WHERE)
    if document.get("artifactType") != INDEX_TYPE:
        raise FormatError(_WHERE, f"artifact type {document.get('artifactType')!r} is not {INDEX_TYPE}")
    about = Descriptor.from_json(document.get("subject"), f"{_WHERE}: subject")
    if about.digest != subject:
        raise FormatError(_WHERE, f"is about {about.digest}, not about the image {subject}")
    layers = document.get("layers")
    parts = [Descriptor.from_json(part, f"{_WHERE}: layers") for part in layers] if isinstance(layers, list) else []
    by_type = {part.media_type: part for part in parts}
    head = by_type.get(HEAD_TYPE)
    if head is None or len(by_type) != len(parts):
        raise FormatError(_WHERE, "has no head, or parts twice")
    if head.size > MAX_HEAD_BYTES:
        raise FormatError(_WHERE, f"a head of {head.size} bytes (at most {MAX_HEAD_BYTES})")
    return head, by_type.get(WINDOWS_TYPE)


def index_pack(manifest: bytes) -> Descriptor | None:
    """Returns the start pack of an artefact whose manifest ``index_parts`` took; raises FormatError."""
    layers = parse_json(manifest, _WHERE).get("layers")
    parts = [Descriptor.from_json(part, f"{_WHERE}: layers") for part in layers] if isinstance(layers, list) else []
    return next((part for part in parts if part.media_type == PACK_TYPE), None)


def span_bytes_of(manifest: bytes) -> int:
    """Returns the distance of checkpoints that an artefact says it was made with; FormatError where it says none."""
    annotations = text_map(parse_json(manifest, _WHERE).get("annotations"), _WHERE)
    text = annotations.get(ANNOTATION_SPAN_SIZE, "")
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise FormatError(_WHERE, f"a span size of {text[:20]!r} bytes")
    return int(text)


def load_erofs_index(manifest: bytes, head: bytes, image: Descriptor, layers: Sequence[Descriptor]) -> ErofsIndex:
    """Loads the index of ``image``, whose layers are ``layers``, from its manifest and its head's bytes (both
    unverified).

    The manifest is trusted as the caller got it (by digest, or as a referrer); the head must be the one it names.
    """
    descriptor, windows = index_parts(manifest, image.digest)
    actual = digest_bytes(head)
    if actual != descriptor.digest:
        raise DigestMismatch(f"{_WHERE}: head", descriptor.digest, actual)
    return decode_head(head, layers, windows)
