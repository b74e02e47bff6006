"""This module says what an image is made of, as plain data: layers, sizes, entries, ratios, lazy forms and what they
add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import ColdbenchError
from harness.oci.image import parse_json
from harness.oci.store import RangeIgnored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.formats.erofs.spans import ErofsIndex
    from harness.oci.descriptor import Descriptor, Platform
    from harness.oci.image import Image
    from harness.oci.store import ImageSource


def inspect_image(
    source: ImageSource,
    platform: Platform | None = None,
    *,
    read_layers: bool = True,
    advance: Callable[[str, int, int], object] | None = None,
) -> dict[str, Any]:
    """Gathers facts of the image for a platform (this host's by default).

    With ``read_layers`` every layer is read, verified and unpacked.
    A lazy form that is announced but cannot be read is reported with its error, not raised.
    """
    image = source.resolve(platform)
    artefacts, parts = _artefacts(source, image)
    remarks = list(_remarks(source, image))
    layers = []
    for number, descriptor in enumerate(image.layers):
        facts: dict[str, Any] = {
            "digest": descriptor.digest,
            "diff_id": image.diff_ids[number],
            "media_type": descriptor.media_type,
            "compression": _compression(source, descriptor),
            "compressed_bytes": descriptor.size,
        }
        if read_layers:
            facts |= _read_layer(source, descriptor, image.diff_ids[number], advance)
        estargz = _estargz(source, descriptor)
        if estargz is not None:
            facts["estargz"] = estargz
        facts |= parts.get(descriptor.digest, {})
        facts["lazy"] = [form for form in ("estargz", "ztoc", "erofs") if form in facts]
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
        "remarks": remarks,
    }


def _remarks(source: ImageSource, image: Image) -> Iterator[str]:
    """Says where the image claims one thing and is another: it works all the same, and surprises whoever trusts the
    labels.
    """
    stated = image.descriptor.platform
    if stated is not None and str(stated) and not image.platform.accepts(stated):
        yield f"the index says {stated}, its configuration says {image.platform or 'nothing'}"
    lying = [
        f"layer {number} is {actual}, its media type says {layer.compression}"
        for number, layer in enumerate(image.layers)
        if (actual := _compression(source, layer)) != layer.compression
    ]
    yield from lying[:3]
    if len(lying) > 3:
        yield f"{len(lying) - 3} more layers whose media types are wrong"


def _compression(source: ImageSource, layer: Descriptor) -> str:
    """Returns what the layer is compressed with by its first bytes, as engines look at it; its media type may be
    wrong.
    """
    from harness.formats.sniff import SNIFFED_BYTES, compression_of

    try:
        first = source.open_blob(layer).read_range(0, min(SNIFFED_BYTES, layer.size))
    except RangeIgnored:
        return str(layer.compression)
    return compression_of(first, f"{source.where}: layer {layer.digest}")


def _run(image: Image) -> dict[str, Any]:
    return image.config.get("config") or {}


def _read_layer(
    source: ImageSource, layer: Descriptor, diff_id: str, advance: Callable[[str, int, int], object] | None
) -> dict[str, Any]:
    import hashlib

    from harness.errors import DigestMismatch
    from harness.formats.gzip.inflate import inflate
    from harness.formats.tar.scanner import TarScanner

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
    for piece in inflate(pieces(), f"{source.where}: layer {layer.digest}"):
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
    """Describes the layer's own TOC, where its descriptor announces one or it ends in a footer."""
    from harness.errors import DigestMismatch
    from harness.formats.estargz.footer import FOOTER_BYTES, is_estargz
    from harness.formats.estargz.reader import EstargzToc, read_toc_member
    from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION, ZSTD_TOC_DIGEST_ANNOTATION
    from harness.oci.descriptor import digest_bytes

    notes, blob = layer.annotations, source.open_blob(layer)
    announced, packed = notes.get(TOC_DIGEST_ANNOTATION), notes.get(ZSTD_TOC_DIGEST_ANNOTATION)
    out: dict[str, Any] = {
        "form": "zstd:chunked" if layer.compression == "zstd" else "eStargz",
        "toc_digest": announced or packed or "",
    }
    try:
        if (announced or packed) is None and not (
            layer.compression == "gzip"
            and layer.size >= FOOTER_BYTES
            and is_estargz(blob.read_range(layer.size - FOOTER_BYTES, FOOTER_BYTES))
        ):
            return None
        footer, member = read_toc_member(blob, layer.size)
        if announced is None and packed is not None and digest_bytes(member) != packed:
            raise DigestMismatch(f"{out['form']} TOC, compressed", packed, digest_bytes(member))
        toc = EstargzToc.from_member(member, footer, announced)
    except ColdbenchError as error:
        return {**out, "error": str(error)}
    return {
        **out,
        "toc_bytes": len(member),
        "entries": len(toc.table),
        "chunks": len(toc.chunks),
        "prefetch_bytes": toc.prefetch_bytes,
    }


def _artefacts(source: ImageSource, image: Image) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns the artefacts about the image, and what they say of each layer by its digest (``ztoc``, ``erofs``)."""
    from harness.formats.erofs.index import INDEX_TYPE
    from harness.formats.soci.index import V1, V2
    from harness.oci.descriptor import Descriptor

    found: list[dict[str, Any]] = []
    parts: dict[str, dict[str, Any]] = {}
    kinds = {INDEX_TYPE: "EROFS index", V1: "SOCI index v1", V2: "SOCI index v2"}
    for finder, kind in ((_soci, "SOCI index"), (_erofs, "EROFS index")):
        try:
            facts = finder(source, image, parts)
        except ColdbenchError as error:
            facts = {"kind": kind, "digest": "", "bytes": 0, "detail": f"cannot be read: {error}"}
        if facts is not None:
            found.append(facts)
    known = {facts["digest"] for facts in found}
    for referrer in source.referrers(image.descriptor.digest):
        if referrer.digest in known:
            continue
        data, _ = source.manifest(referrer.digest)
        layers = Descriptor.list_from_json(parse_json(data, source.where).get("layers"), source.where)
        size = len(data) + sum(part.size for part in layers)
        kind = kinds.get(referrer.artifact_type, referrer.artifact_type or "artefact")
        found.append({"kind": kind, "digest": referrer.digest, "bytes": size, "detail": "not used"})
    return found, parts


def _soci(source: ImageSource, image: Image, parts: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    from harness.formats.soci.index import V2, find_index

    soci = find_index(source, image)
    if soci is None:
        return None
    descriptor, index = soci
    size = descriptor.size + sum(artefact.size for artefact in index.prefetch.values())
    for layer in index.layers:
        size += layer.ztoc.size
        parts.setdefault(layer.layer_digest, {})["ztoc"] = {
            "index": descriptor.digest,
            "digest": layer.ztoc.digest,
            "bytes": layer.ztoc.size,
            "span_size": layer.span_size,
        } | _spans(source, layer.ztoc)
    detail = f"{len(index.layers)} of {len(image.layers)} layers"
    if index.prefetch:
        detail += f", prefetch lists for {len(index.prefetch)}"
    kind = f"SOCI index {'v2' if index.version == V2 else 'v1'}"
    return {"kind": kind, "digest": descriptor.digest, "bytes": size, "detail": detail}


def _spans(source: ImageSource, ztoc: Descriptor) -> dict[str, Any]:
    from harness.formats.soci.ztoc import parse

    try:
        parsed = parse(source.open_blob(ztoc).read())
    except ColdbenchError as error:
        return {"error": str(error)}
    return {"spans": parsed.spans, "entries": len(parsed)}


def _pack(source: ImageSource, image: Image, manifest: bytes, index: ErofsIndex) -> dict[str, Any]:
    """Describes what the index's start pack adds and holds; empty where it has none."""
    from harness.formats.erofs.index import index_pack
    from harness.formats.erofs.packing import load_pack
    from harness.images.pack_contents import files_in

    named = index_pack(manifest)
    if named is None:
        return {}
    facts: dict[str, Any] = {"digest": named.digest, "bytes": named.size}
    try:
        made = load_pack(source, image, manifest, index)
    except ColdbenchError as error:
        return {**facts, "error": str(error)}
    assert made is not None
    files = [{"path": path, "bytes": size} for path, size in files_in(made, index)]
    counts = {"raw_bytes": made.pack.raw_bytes, "frames": len(made.pack.frames), "ranges": len(made.pack.ranges())}
    return {**facts, **counts, "files": files}


def _erofs(source: ImageSource, image: Image, parts: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    from harness.errors import ImageNotFound
    from harness.formats.erofs.image import find_erofs_index
    from harness.formats.erofs.index import index_parts, load_erofs_index

    try:
        descriptor, manifest = find_erofs_index(source, image.descriptor)
    except ImageNotFound:
        return None
    head, windows = index_parts(manifest, image.descriptor.digest)
    index = load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)
    for layer in index.layers:
        sizes = [size for size in layer.window_sizes if size]
        parts.setdefault(layer.digest, {})["erofs"] = {
            "index": descriptor.digest,
            "spans": len(layer),
            "windows": len(sizes),
            "bytes": sum(sizes),
        }
    pack = _pack(source, image, manifest, index)
    packed = "" if not pack else f", start pack {pack['bytes']} B"
    return {
        "kind": "EROFS index",
        "digest": descriptor.digest,
        "bytes": len(manifest) + head.size + (windows.size if windows is not None else 0) + pack.get("bytes", 0),
        "detail": f"head {head.size} B, metadata {len(index.metadata)} B, {len(index.prefetch)} extents prefetched"
        f"{packed}",
        **({"pack": pack} if pack else {}),
        "head_bytes": head.size,
        "metadata_bytes": len(index.metadata),
        "prefetch_extents": len(index.prefetch),
    }
