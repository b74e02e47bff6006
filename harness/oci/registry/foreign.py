"""This module reads foreign layers: blobs that a registry or layout need not hold, because their descriptor names URLs.

Sources: OCI image spec, descriptor.md (``urls``) and layer.md (non-distributable layers); Docker's foreign layers.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, TypeVar

from harness.errors import ImageNotFound, RegistryError
from harness.oci.over import Over
from harness.oci.registry.client import RegistryClient, address_of
from harness.oci.registry.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.oci.descriptor import Descriptor
    from harness.oci.store import BlobStore


T = TypeVar("T")


class ForeignBlobs(Over):
    """This `BlobStore` serves one blob from the first of its URLs that answers; everything else is the store's.

    The image's author wrote the URLs, so nothing is trusted: no login goes there, no place on this machine is asked
    unless the image came from it, and whoever reads the blob checks its digest.
    """

    def __init__(self, store: BlobStore, descriptor: Descriptor) -> None:
        super().__init__(store)
        self._descriptor = descriptor
        home = store.host if isinstance(store, RegistryClient) else ""
        self._places = Places(home=address_of(home))

    def close(self) -> None:
        """Does nothing: every read closes its own connection."""

    def blob_size(self, digest: str) -> int | None:
        return self._descriptor.size if digest == self._descriptor.digest else self._store.blob_size(digest)

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        return self._first(lambda download: download.get_range(digest, offset, size))

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        sent = 0

        def count(piece: bytes) -> None:
            nonlocal sent
            sink(piece)
            sent += len(piece)

        # Once bytes have reached the sink, another URL would send them a second time.
        return self._first(lambda download: download.stream_blob(digest, count), lambda: sent == 0)

    def blob_path(self, digest: str) -> Path | None:
        """Returns None: the blob is fetched."""
        return None

    def _first(self, read: Callable[[_Download], T], may_go_on: Callable[[], bool] = lambda: True) -> T:
        reasons = []
        for url in self._descriptor.urls:
            download = None
            try:
                download = _Download(url, self._places)
                return read(download)
            except RegistryError as error:
                reasons.append(str(error))
                if not may_go_on():
                    raise
            finally:
                if download is not None:
                    download.close()
        raise ImageNotFound(
            f"{self.where}: foreign layer {self._descriptor.digest} is neither there nor at its URLs: "
            + "; ".join(reasons)
        )


class _Download(RegistryClient):
    """Fetches one URL as a client fetches a blob from a registry: ranges, redirects, retries."""

    def __init__(self, url: str, places: Places) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise RegistryError(f"{url[:200]!r} is no URL to fetch a layer from")
        places.visit(url, "a foreign layer")
        super().__init__(parts.netloc, "", plain=parts.scheme == "http", anonymous=True)
        self.places = places
        self._url = url

    @property
    def where(self) -> str:
        return self._url

    def blob_url(self, digest: str) -> str:
        return self._url
