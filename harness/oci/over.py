"""This module makes what a store that stands over another one passes on to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.oci.descriptor import Descriptor
    from harness.oci.store import BlobStore


class Over:
    """This ``harness.oci.store.BlobStore`` passes everything on; subclasses replace what they do otherwise."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    @property
    def where(self) -> str:
        return self._store.where

    @property
    def remarks(self) -> list[str]:
        return self._store.remarks

    def manifest(self, reference: str) -> tuple[bytes, str]:
        return self._store.manifest(reference)

    def blob_size(self, digest: str) -> int | None:
        return self._store.blob_size(digest)

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        return self._store.get_range(digest, offset, size)

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        return self._store.stream_blob(digest, sink)

    def blob_path(self, digest: str) -> Path | None:
        return self._store.blob_path(digest)

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        return self._store.referrers(digest, artifact_type)

    def close(self) -> None:
        self._store.close()
