"""What an image is made of, as plain data: layers, sizes, entries, ratios, lazy forms and what they add in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import ColdbenchError
from harness.oci.image import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.oci.descriptor import Descriptor
    from harness.oci.image import Image
    from harness.oci.store import ImageSource


def inspect_image(
    source: ImageSource,
    *,
    read_layers: bool = True,
    advance: Callable[[str, int, int], object] | None = None,
) -> dict[str, Any]:
    """Facts of the image for this host's platform; with ``read_layers`` every layer is read, verified and unpacked.

    A lazy form that is announced but cannot be read is reported with its error, not raised.
    """
    image = source.resolve()
    artefacts, ztocs = _artefacts(source, image)
    layers = []
    for number, descriptor in enumerate(image.layers):
        facts: dict[str, Any] = {
            "digest": descriptor.digest,
            "diff_id": image.diff_ids[number],
            "media_type": descriptor.media_type,
            "compression": descriptor.compression,
            "compressed_bytes": descriptor.size,
        }
        if read_layers:
            facts |= _read_layer(source, descriptor, image.diff_ids[number], advance)
        estargz = _estargz(source, descriptor)
        if estargz is not None:
            facts["estargz"] = estargz
        if descriptor.digest in ztocs:
            facts["ztoc"] = ztocs[descriptor.digest]
        facts["lazy"] = _lazy_label(facts)
        layers.append(facts)
    total: dict[str, Any] = {"compressed_bytes": image.compressed_bytes}
    if read_layers:
        total["uncompressed_bytes"] = sum(layer["uncompressed_bytes"] for layer in layers)
        total["entries"] = sum(layer["entries"] for layer in layers)
        total["files"] = sum(layer["files"] for layer in layers)
    total["added_bytes"] = sum(artefact["bytes"] for artefact in artefacts) + sum(
        layer["estargz"].get("toc_bytes", 0) for layer in layers if "estargz" in layer
    )
    return {
        "digest": image.descriptor.digest,
        "media_type": image.descriptor.media_type,
        "platform": str(image.platform),
        "config_digest": image.config_descriptor.digest,
        "indexes": [descriptor.digest for descriptor, _ in image.chain],
        "command": [*(_run(image).get("Entrypoint") or []), *(_run(image).get("Cmd") or [])],
        "layers": layers,
        "total": total,
        "artefacts": artefacts,
    }


def _run(image: Image) -> dict[str, Any]:
    return image.config.get("config") or {}


def _read_layer(
    source: ImageSource, layer: Descriptor, diff_id: str, advance: Callable[[str, int, int], object] | None
) -> dict[str, Any]:
    import hashlib

    from harness.errors import DigestMismatch
    from harness.formats.layer_stream import decompressed
    from harness.formats.tar import TarScanner

    done = 0

    def pieces() -> Any:
        nonlocal done
        for piece in source.open_blob(layer).stream():
            done += len(piece)
            if advance is not None:
                advance(f"reading {layer.hex[:12]}", done, layer.size)
            yield piece

    scanner = TarScanner()
    plain = hashlib.sha256()
    size = entries = files = 0
    for piece in decompressed(pieces(), layer.compression or "none", f"{source.where}: layer {layer.digest}"):
        plain.update(piece)
        size += len(piece)
        for entry in scanner.feed(piece):
            entries += 1
            files += entry.flag in b"0"
    scanner.close()
    actual = f"sha256:{plain.hexdigest()}"
    if actual != diff_id:
        raise DigestMismatch(f"{source.where}: unpacked layer {layer.digest}", diff_id, actual)
    return {
        "uncompressed_bytes": size,
        "ratio": round(size / layer.size, 3) if layer.size else None,
        "entries": entries,
        "files": files,
    }


def _estargz(source: ImageSource, layer: Descriptor) -> dict[str, Any] | None:
    from harness.formats.estargz_reader import EstargzToc, read_toc_member
    from harness.formats.estargz_toc import TOC_DIGEST_ANNOTATION, ZSTD_TOC_DIGEST_ANNOTATION

    announced = layer.annotations.get(TOC_DIGEST_ANNOTATION) or layer.annotations.get(ZSTD_TOC_DIGEST_ANNOTATION)
    if announced is None:
        return None
    if TOC_DIGEST_ANNOTATION not in layer.annotations:
        return {"toc_digest": announced, "form": "zstd:chunked"}
    try:
        footer, member = read_toc_member(source.open_blob(layer), layer.size)
        toc = EstargzToc.from_member(member, footer, announced)
    except ColdbenchError as error:
        return {"toc_digest": announced, "error": str(error)}
    return {"toc_digest": announced, "toc_bytes": len(member), "entries": len(toc.table)}


def _artefacts(source: ImageSource, image: Image) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Artefacts about the image, and each indexed layer's zTOC by the layer's digest."""
    from harness.formats.erofs_index import INDEX_TYPE
    from harness.formats.soci_index import V1, V2, find_index

    found: list[dict[str, Any]] = []
    ztocs: dict[str, dict[str, Any]] = {}
    soci_digest = ""
    try:
        soci = find_index(source, image)
    except ColdbenchError as error:
        found.append({"kind": "SOCI index", "digest": "", "bytes": 0, "detail": f"cannot be read: {error}"})
        soci = None
    if soci is not None:
        descriptor, index = soci
        soci_digest = descriptor.digest
        size = descriptor.size
        for layer in index.layers:
            size += layer.ztoc.size
            ztocs[layer.layer_digest] = {
                "digest": layer.ztoc.digest,
                "bytes": layer.ztoc.size,
                "span_size": layer.span_size,
            } | _spans(source, layer.ztoc)
        detail = f"{len(index.layers)} of {len(image.layers)} layers"
        found.append({"kind": "SOCI index", "digest": soci_digest, "bytes": size, "detail": detail})
    for referrer in source.referrers(image.descriptor.digest):
        if referrer.digest == soci_digest:
            continue
        data, _ = source.manifest(referrer.digest)
        parts = parse_json(data, source.where).get("layers") or []
        size = len(data) + sum(int(part.get("size", 0)) for part in parts)
        kinds = {INDEX_TYPE: "EROFS index", V1: "SOCI index", V2: "SOCI index"}
        kind = kinds.get(referrer.artifact_type, referrer.artifact_type or "artefact")
        found.append({"kind": kind, "digest": referrer.digest, "bytes": size, "detail": ""})
    return found, ztocs


def _spans(source: ImageSource, ztoc: Descriptor) -> dict[str, Any]:
    from harness.formats.ztoc import parse

    try:
        parsed = parse(source.open_blob(ztoc).read())
    except ColdbenchError as error:
        return {"error": str(error)}
    return {"spans": parsed.spans, "entries": len(parsed)}


def _lazy_label(facts: dict[str, Any]) -> str:
    labels = []
    if "estargz" in facts:
        toc = facts["estargz"]
        labels.append(
            f"eStargz, TOC {toc['toc_bytes']} B" if "toc_bytes" in toc else f"eStargz ({toc.get('error', '')})"
        )
    if "ztoc" in facts:
        ztoc = facts["ztoc"]
        spans = f"{ztoc['spans']} spans" if "spans" in ztoc else ztoc.get("error", "")
        labels.append(f"zTOC {ztoc['bytes']} B, {spans}")
    return "; ".join(labels)
