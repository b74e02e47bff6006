"""Opens layers for the store: from what the deploy message says of a layer to its table and units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import DigestMismatch, FormatError, UsageError

if TYPE_CHECKING:
    from harness.formats.table import LayerTable, RangeSource
    from harness.lazyfs.units import Units
    from harness.oci.store import BlobStore


class BlobRanges:
    """A RangeSource over one blob of a store (registry, or a layout on disk)."""

    def __init__(self, store: BlobStore, digest: str, size: int) -> None:
        self._store = store
        self._digest = digest
        self.size = size

    def read_range(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; FormatError past the end."""
        if offset < 0 or offset + size > self.size:
            raise FormatError(f"blob {self._digest}", f"range {offset}+{size} leaves its {self.size} bytes")
        return self._store.get_range(self._digest, offset, size) if size else b""


@dataclass(slots=True)
class OpenedLayer:
    """``prefetch_bytes``: how much of the blob's beginning the image itself wants fetched first (eStargz landmark)."""

    number: int
    table: LayerTable
    units: Units
    source: RangeSource
    size: int
    prefetch_bytes: int = 0


def fetch_verified(store: BlobStore, digest: str, size: int, what: str) -> bytes:
    """A whole blob; DigestMismatch unless it is the one named."""
    data = store.get_range(digest, 0, size)
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise DigestMismatch(what, digest, actual)
    return data


def open_layer(store: BlobStore, message: dict[str, Any]) -> OpenedLayer:
    """Fetch and parse a layer's index (zTOC or eStargz TOC), verified; blocks, so it runs in a worker thread.

    ``message``: ``number``, ``kind`` (``ztoc`` or ``estargz``), ``digest``, ``size``, and the index's own digest:
    ``ztoc_digest`` and ``ztoc_size``, or ``toc_digest``. Raises ColdbenchError.
    """
    number, digest, size = int(message["number"]), str(message["digest"]), int(message["size"])
    source = BlobRanges(store, digest, size)
    what = f"layer {number} ({digest[:19]})"
    if message["kind"] == "ztoc":
        from harness.formats.ztoc import parse
        from harness.lazyfs.span_units import SpanUnits

        ztoc = parse(fetch_verified(store, message["ztoc_digest"], int(message["ztoc_size"]), f"zTOC of {what}"))
        if ztoc.compressed_bytes != size:
            raise FormatError(f"zTOC of {what}", f"is of a layer of {ztoc.compressed_bytes} bytes, not {size}")
        return OpenedLayer(number, ztoc.to_table(), SpanUnits(ztoc), source, size)
    if message["kind"] == "estargz":
        from harness.formats.estargz_reader import EstargzToc, read_toc_member
        from harness.lazyfs.chunk_units import ChunkUnits

        footer, member = read_toc_member(source, size)
        toc = EstargzToc.from_member(member, footer, message["toc_digest"])
        return OpenedLayer(number, toc.table, ChunkUnits(toc.chunks), source, size, toc.prefetch_bytes)
    raise UsageError(f"{what}: unknown kind of lazy layer {message['kind']!r}")
