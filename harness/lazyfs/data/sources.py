"""Opens layers for the store: what a mount request says of a layer becomes its table and its units."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import ContentError, DigestMismatch, FormatError, UsageError

if TYPE_CHECKING:
    from harness.formats.table import LayerTable, RangeSource
    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.units import Units
    from harness.lazyfs.messages import LazyLayer
    from harness.model.policy import LazyPolicy
    from harness.oci.registry.link import Link
    from harness.oci.store import BlobStore


log = logging.getLogger(__name__)

_PROBED_BYTES = 10


class BlobRanges:
    """Reads ranges of one blob of a store (registry, or a layout on disk), as a RangeSource."""

    def __init__(self, store: BlobStore, digest: str, size: int) -> None:
        self._store = store
        self._digest = digest
        self.size = size

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``; raises FormatError past the end."""
        if offset < 0 or offset + size > self.size:
            raise FormatError(f"blob {self._digest}", f"range {offset}+{size} leaves its {self.size} bytes")
        return self._store.get_range(self._digest, offset, size) if size else b""


@dataclass(slots=True)
class OpenedLayer:
    """Holds an opened layer; the image itself wants the units ``prefetch`` first (eStargz landmark, SOCI artefact)."""

    number: int
    table: LayerTable
    units: Units
    source: RangeSource
    prefetch: list[int] = field(default_factory=list)


def fetch_verified(store: BlobStore, digest: str, size: int, what: str) -> bytes:
    """Fetches a whole blob; raises DigestMismatch unless it is the one named."""
    data = store.get_range(digest, 0, size)
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise DigestMismatch(what, digest, actual)
    return data


def probe_layer(store: BlobStore, digest: str, kind: str) -> None:
    """Asks what the reference daemons ask of a layer before its index, seen in a registry's log, and drops the answers.

    Both ask for bytes 0-1 to learn whether the blob is redirected; stargz-snapshotter then asks for the size (HEAD),
    soci-snapshotter for the ten bytes of the gzip header. Raises RegistryError.
    """
    store.get_range(digest, 0, 2)
    if kind == "estargz":
        store.blob_size(digest)
    else:
        store.get_range(digest, 0, 10)


def open_layer(
    store: BlobStore, layer: LazyLayer, policy: LazyPolicy | None = None, regions: SparseFile | None = None
) -> OpenedLayer:
    """Fetches, verifies and parses a layer's index (zTOC or eStargz TOC); blocks, so it runs in a worker thread.

    ``regions`` keeps a blob's regions where the policy has some. Raises ColdbenchError.
    """
    number, digest, size = layer.number, layer.digest, layer.size
    source: RangeSource = BlobRanges(store, digest, size)
    if policy is not None and policy.probe_layers and size >= _PROBED_BYTES:
        probe_layer(store, digest, layer.kind)
    what = f"layer {number} ({digest[:19]})"
    if layer.kind == "ztoc":
        from harness.formats.soci.ztoc import parse
        from harness.lazyfs.data.span_units import SpanUnits

        ztoc = parse(fetch_verified(store, layer.index_digest, layer.index_size, f"zTOC of {what}"))
        if ztoc.compressed_bytes != size:
            raise FormatError(f"zTOC of {what}", f"is of a layer of {ztoc.compressed_bytes} bytes, not {size}")
        prefetch = _prefetch_spans(store, layer, ztoc.spans, what) if layer.prefetch_digest else []
        return OpenedLayer(number, ztoc.to_table(), SpanUnits(ztoc), source, prefetch)
    if layer.kind == "estargz":
        from harness.formats.estargz.footer import LONGEST_FOOTER_BYTES
        from harness.formats.estargz.reader import TAIL_BYTES, EstargzToc, read_toc_member
        from harness.lazyfs.data.chunk_units import ChunkUnits
        from harness.lazyfs.data.pace import tail_of
        from harness.lazyfs.data.regions import RegionSource

        link: Link | None = getattr(store, "link", None)
        tail_bytes = TAIL_BYTES if policy is None else tail_of(policy, link, size, TAIL_BYTES)
        if policy is not None and policy.region_bytes:
            source = RegionSource(source, size, policy.region_bytes, policy.region_step, regions)
            tail_bytes = LONGEST_FOOTER_BYTES
        footer, member = read_toc_member(source, size, tail_bytes)
        toc = EstargzToc.from_member(member, footer, layer.index_digest)
        units = ChunkUnits(toc.chunks)
        prefetch = [
            chunk for chunk in range(len(toc.chunks)) if sum(units.extent(chunk)) <= toc.prefetch_bytes
        ] if toc.prefetch_bytes else []  # fmt: skip
        return OpenedLayer(number, toc.table, units, source, prefetch)
    raise UsageError(f"{what}: unknown kind of lazy layer {layer.kind!r}")


def _prefetch_spans(store: BlobStore, layer: LazyLayer, spans: int, what: str) -> list[int]:
    """Returns the spans that a SOCI prefetch artefact names; an unreadable one is left aside, as the reference does."""
    from harness.formats.soci.index import parse_prefetch

    try:
        data = fetch_verified(store, layer.prefetch_digest, layer.prefetch_size, f"prefetch artefact of {what}")
        ranges = parse_prefetch(data, spans)
    except ContentError as error:
        log.warning("%s: %s", what, error)
        return []
    return [span for first, last in ranges for span in range(first, last + 1)]
