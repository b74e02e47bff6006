"""Layers without a way in (zstd, or any without an index): fetched whole and inflated into the disk cache at start."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from harness.errors import DigestMismatch, DiskFull, FormatError
from harness.formats.inflate import Pusher
from harness.lazyfs import igzip
from harness.oci.batches import Batches

if TYPE_CHECKING:
    from harness.lazyfs.disk_cache import SparseFile
    from harness.oci.store import BlobStore

_PIECE_BYTES = 256 << 10


def fetch_whole(store: BlobStore, digest: str, compression: str, size: int, sink: SparseFile) -> int:
    """Fill ``sink`` with a layer's ``size`` decompressed bytes; the stored bytes received. Blocks.

    Raises DigestMismatch when the blob is another, FormatError when it inflates to another size, DiskFull.
    """
    where = f"layer {digest[:19]}"
    position = 0

    def write(data: bytes | memoryview) -> None:
        nonlocal position
        if position < size and data and not sink.write(position, data[: size - position]):
            raise DiskFull("the machine's disk has no room for the decompressed layers; give the shape a larger one")
        position += len(data)

    inflater: igzip.StreamInflater | Pusher
    if compression == "gzip" and igzip.available:
        inflater = igzip.StreamInflater(write, where)  # one buffer, and no CRC: what is fed is hashed
    else:
        inflater = Pusher(compression, write, where)
    hasher = hashlib.sha256()
    received = 0

    def hashed(data: bytes) -> None:
        nonlocal received
        received += len(data)
        hasher.update(data)
        inflater.feed(data)

    batches = Batches(_PIECE_BYTES, hashed)
    store.stream_blob(digest, batches.take)
    batches.flush()
    inflater.finish()
    actual = "sha256:" + hasher.hexdigest()
    if actual != digest:
        raise DigestMismatch(where, digest, actual)
    if position < size:
        raise FormatError(where, f"inflates to {position} bytes, and the index promises {size}")
    return received
