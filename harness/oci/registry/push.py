"""This module pushes to a registry (OCI distribution spec 1.1): blobs whole or in pieces, cross-repository mounts,
referrers.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from typing import TYPE_CHECKING

from harness.errors import FormatError, RegistryError
from harness.oci.descriptor import OCI_INDEX, Descriptor, go_json
from harness.oci.image import parse_json
from harness.oci.layout import referrer_descriptor
from harness.oci.registry.client import RegistryClient
from harness.oci.store import Verifier, referrers_tag
from harness.oci.verified import read_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from harness.oci.registry.curl_pool import Response
    from harness.oci.store import BlobStore

PIECE_BYTES = 16 << 20


class RegistryDestination:
    """Writes to one repository through a client."""

    takes_partial_indexes = False

    def __init__(self, client: RegistryClient, tag: str = "") -> None:
        self.client = client
        self.tag = tag
        self._root = client.repository_url

    @property
    def where(self) -> str:
        return self.client.where

    def close(self) -> None:
        self.client.close()

    def has_blob(self, digest: str) -> bool:
        return self.client.blob_size(digest) is not None

    def put_blob(self, descriptor: Descriptor, data: bytes | Path | Iterable[bytes]) -> None:
        """Sends one PUT for bytes and files, PATCH requests of 16 MiB for anything that cannot be read twice."""
        if isinstance(data, bytes):
            verifier = Verifier(descriptor, self.where)
            verifier.update(data)
            verifier.finish()
            self._put_whole(descriptor, lambda: (_Reader(data).read, len(data)))
        elif isinstance(data, os.PathLike):
            path = data
            if path.stat().st_size != descriptor.size:
                raise FormatError(str(path), f"has {path.stat().st_size} bytes, not {descriptor.size}")
            # Unbuffered: libcurl asks for half a megabyte at a time. The registry itself checks the digest.
            try:
                self._put_whole(descriptor, lambda: (_FileReader(path).read, descriptor.size))
            except RegistryError:
                _check_file(path, descriptor)
                raise
        else:
            self._put_pieces(descriptor, data)

    def mount_blob(self, descriptor: Descriptor, source: BlobStore) -> bool:
        if not isinstance(source, RegistryClient) or source.host != self.client.host:
            return False
        query = urllib.parse.urlencode({"mount": descriptor.digest, "from": source.repository})
        response = self.client.send("POST", f"{self._root}/blobs/uploads/?{query}")
        if response.status == 202:
            self.client.send("DELETE", self._location(response))
        return response.status == 201

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        self._put_manifest(data, media_type, tag or self.tag)
        return Descriptor.of(data, media_type)

    def put_nested_manifest(self, data: bytes, media_type: str) -> Descriptor:
        """Stores a manifest by its digest only."""
        self._put_manifest(data, media_type, "")
        return Descriptor.of(data, media_type)

    def add_referrer(self, subject: Descriptor, data: bytes, media_type: str) -> Descriptor:
        document = parse_json(data, self.where)
        if (document.get("subject") or {}).get("digest") != subject.digest:
            raise FormatError(self.where, f"the artefact's subject is not {subject.digest}")
        response = self._put_manifest(data, media_type, "")
        descriptor = Descriptor.of(data, media_type)
        if response.header("OCI-Subject") != subject.digest:
            self._update_fallback_tag(subject, referrer_descriptor(descriptor.digest, len(data), document, media_type))
        return descriptor

    def _update_fallback_tag(self, subject: Descriptor, entry: Descriptor) -> None:
        tag = referrers_tag(subject.digest)
        entries = [e for e in self.client.tagged_referrers(subject.digest) if e.digest != entry.digest]
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [e.to_json() for e in [*entries, entry]],
        }
        self._put_manifest(go_json(index), OCI_INDEX, tag)

    def _put_manifest(self, data: bytes, media_type: str, tag: str) -> Response:
        reference = tag or Descriptor.of(data, media_type).digest
        response = self.client.send(
            "PUT",
            f"{self._root}/manifests/{reference}",
            [f"Content-Type: {media_type}"],
            lambda: (_Reader(data).read, len(data)),
        )
        if response.status not in {200, 201, 202}:
            raise self.client.failure(response, f"{self.where}: push of {reference}")
        return response

    def _start(self) -> str:
        response = self.client.send("POST", f"{self._root}/blobs/uploads/")
        if response.status != 202:
            raise self.client.failure(response, f"{self.where}: start of an upload")
        return self._location(response)

    def _put_whole(self, descriptor: Descriptor, body: Callable[[], tuple[Callable[[int], bytes], int]]) -> None:
        response = self.client.send(
            "PUT",
            _with_digest(self._start(), descriptor.digest),
            ["Content-Type: application/octet-stream"],
            body,
        )
        if response.status != 201:
            raise self.client.failure(response, f"{self.where}: push of {descriptor.digest}")

    def _put_pieces(self, descriptor: Descriptor, pieces: Iterable[bytes]) -> None:
        location = self._start()
        verifier = Verifier(descriptor, self.where)
        pending = bytearray()
        sent = 0

        def flush() -> None:
            nonlocal location, sent
            block = bytes(pending)
            response = self.client.send(
                "PATCH",
                location,
                ["Content-Type: application/octet-stream", f"Content-Range: {sent}-{sent + len(block) - 1}"],
                lambda: (_Reader(block).read, len(block)),
            )
            if response.status not in {202, 204}:
                raise self.client.failure(response, f"{self.where}: push of {descriptor.digest} at byte {sent}")
            location = self._location(response)
            sent += len(block)
            pending.clear()

        try:
            for piece in pieces:
                verifier.update(piece)
                pending += piece
                if len(pending) >= PIECE_BYTES:
                    flush()
            if pending:
                flush()
            verifier.finish()
        except BaseException:
            with contextlib.suppress(RegistryError):
                self.client.send("DELETE", location)
            raise
        response = self.client.send("PUT", _with_digest(location, descriptor.digest))
        if response.status != 201:
            raise self.client.failure(response, f"{self.where}: push of {descriptor.digest}")

    def _location(self, response: Response) -> str:
        location = response.header("Location")
        if not location:
            raise RegistryError(f"{self.where}: the registry accepts an upload but does not say where to")
        target = urllib.parse.urljoin(self._root, location)
        if self._root.startswith("https:") and not target.startswith("https:"):
            raise RegistryError(
                f"{self.where}: the registry wants uploads at {target.split('?')[0]!r}, without TLS; refused. A proxy "
                "before it must say that it is reached by https (X-Forwarded-Proto)"
            )
        if not self.client.is_ours(target):
            self.client.places.visit(target, f"{self.where}: where uploads go")
        return target


def _check_file(path: Path, descriptor: Descriptor) -> None:
    """Raises DigestMismatch when a file is not what it is kept as: a registry only says that it got something else."""
    verifier = Verifier(descriptor, str(path))
    for piece in read_pieces(path):
        verifier.update(piece)
    verifier.finish()


class _Reader:
    """Gives the body's bytes in the pieces libcurl asks for."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def read(self, size: int) -> bytes:
        piece = bytes(self._data[self._offset : self._offset + size])
        self._offset += len(piece)
        return piece


class _FileReader:
    """Gives a file's bytes, unbuffered; the file is closed with the reader."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def read(self, size: int) -> bytes:
        return self._file.read(size) or b""


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={urllib.parse.quote(digest, safe='')}"
