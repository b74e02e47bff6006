"""The seam between images and where they lie: a registry, an OCI layout, an archive; and the verified reads on top.

A *store* is raw (manifests, blob ranges, blob streams, referrers); `ImageSource` resolves and verifies. Both are
imported by the processes inside the simulated machine and stay light.
"""

from __future__ import annotations

import hashlib
import tempfile
from typing import TYPE_CHECKING, Protocol

from harness.errors import ContentError, DigestMismatch, FormatError, UnsupportedMediaType
from harness.oci.descriptor import INDEX_TYPES, Descriptor, Platform, digest_bytes, is_digest
from harness.oci.image import Image, build_image, check_manifest, media_type_of, parse_json, select_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

CHUNK_BYTES = 1 << 20
_RANGED_CHUNK_BYTES = 8 << 20
_MAX_INDEX_DEPTH = 4


class RangeIgnored(ContentError):
    """The server sent something else than the range that was asked for."""


class BlobStore(Protocol):
    """Raw reads. Every error is a RegistryError, a ContentError or an ImageNotFound that names the place."""

    @property
    def where(self) -> str:
        """The place's name, for messages."""
        ...

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Bytes and stated media type of the manifest or index with this tag or digest ('' is the only one)."""
        ...

    def blob_size(self, digest: str) -> int | None:
        """Size in bytes, None when the blob is absent."""
        ...

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; RangeIgnored when the server cannot."""
        ...

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        """Hand the whole blob to ``sink`` in pieces, unverified, each byte once; returns the bytes."""
        ...

    def blob_path(self, digest: str) -> Path | None:
        """The file that holds exactly this blob, where there is one."""
        ...

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is ``digest``; empty when there are none."""
        ...

    def close(self) -> None: ...


class ImageDestination(Protocol):
    """Where blobs and manifests are written; complete after each call, or after ``close`` for archives."""

    @property
    def where(self) -> str: ...

    def has_blob(self, digest: str) -> bool: ...

    def put_blob(self, descriptor: Descriptor, data: bytes | Path | Iterable[bytes]) -> None:
        """Store a blob; DigestMismatch when the bytes are not the descriptor's. A Path may be hard-linked."""
        ...

    def mount_blob(self, descriptor: Descriptor, source: BlobStore) -> bool:
        """Take a blob from another repository of the same place without moving bytes, if that is possible."""
        ...

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest or index, under a tag if one is given."""
        ...

    def put_nested_manifest(self, data: bytes, media_type: str) -> Descriptor:
        """Store a manifest that an index stored afterwards points at; it gets no name."""
        ...

    def add_referrer(self, subject: Descriptor, data: bytes, media_type: str) -> Descriptor:
        """Store a manifest that has ``subject``, and make it discoverable (referrers API, else the fallback tag)."""
        ...

    def close(self) -> None: ...


class Blob:
    """One blob of a store, known by its descriptor; a RangeSource, and a verified stream."""

    def __init__(self, store: BlobStore, descriptor: Descriptor) -> None:
        self.store = store
        self.descriptor = descriptor
        self.size = descriptor.size

    @property
    def path(self) -> Path | None:
        """The local file holding it, if there is one."""
        return self.store.blob_path(self.descriptor.digest)

    def read_range(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` stored bytes at ``offset`` (unverified); FormatError past the end."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"blob {self.descriptor.digest}", f"range {offset}+{size} lies outside its {self.size} bytes"
            )
        return self.store.get_range(self.descriptor.digest, offset, size) if size else b""

    def copy_to(self, sink: Callable[[bytes], object]) -> None:
        """Push the whole blob into ``sink``; raises DigestMismatch after the last piece if it was not the blob."""
        verifier = Verifier(self.descriptor, self.store.where)

        def checked(piece: bytes) -> None:
            verifier.update(piece)
            sink(piece)

        self.store.stream_blob(self.descriptor.digest, checked)
        verifier.finish()

    def stream(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The whole blob in pieces of ``chunk_bytes``; raises DigestMismatch after the last if it was not the blob."""
        verifier = Verifier(self.descriptor, self.store.where)
        for piece in self._pieces(chunk_bytes):
            verifier.update(piece)
            yield piece
        verifier.finish()

    def _pieces(self, chunk_bytes: int) -> Iterator[bytes]:
        path = self.path
        if path is not None:
            with open(path, "rb", buffering=0) as file:
                while piece := file.read(chunk_bytes):
                    yield piece
            return
        step = max(chunk_bytes, _RANGED_CHUNK_BYTES) // chunk_bytes * chunk_bytes
        try:
            for offset in range(0, self.size, step):
                block = self.read_range(offset, min(step, self.size - offset))
                for start in range(0, len(block), chunk_bytes):
                    yield block[start : start + chunk_bytes]
        except RangeIgnored:
            if offset:
                raise
            with tempfile.TemporaryFile() as file:
                self.store.stream_blob(self.descriptor.digest, file.write)
                file.seek(0)
                while piece := file.read(chunk_bytes):
                    yield piece

    def read(self) -> bytes:
        """The whole blob, verified."""
        pieces: list[bytes] = []
        self.copy_to(pieces.append)
        return b"".join(pieces)


class Verifier:
    """Hashes and counts what passes; refuses bytes beyond the descriptor's size at once."""

    def __init__(self, descriptor: Descriptor, where: str) -> None:
        self._descriptor = descriptor
        self._where = where
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self._left = descriptor.size

    def update(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise ContentError(
                f"{self._where}: blob {self._descriptor.digest} is longer than its {self._descriptor.size} bytes"
            )
        self._hash.update(piece)

    def finish(self) -> None:
        if self._left:
            got = self._descriptor.size - self._left
            raise ContentError(
                f"{self._where}: blob {self._descriptor.digest} is cut: {got} of {self._descriptor.size} bytes"
            )
        algorithm = self._descriptor.digest.partition(":")[0]
        actual = f"{algorithm}:{self._hash.hexdigest()}"
        if actual != self._descriptor.digest:
            raise DigestMismatch(f"{self._where}: blob", self._descriptor.digest, actual)


class ImageSource:
    """An image's name bound to its store: resolves to a platform, verifies every manifest and small blob it reads."""

    def __init__(self, store: BlobStore, selector: str = "") -> None:
        self.store = store
        self.selector = selector

    @property
    def where(self) -> str:
        return self.store.where

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

    def manifest(self, reference: str = "") -> tuple[bytes, str]:
        """Exact bytes and media type of a manifest or index by tag or digest, digest checked when asked by one."""
        reference = reference or self.selector
        data, stated = self.store.manifest(reference)
        if is_digest(reference):
            algorithm = reference.partition(":")[0]
            actual = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            if actual != reference:
                raise DigestMismatch(f"{self.where}: manifest", reference, actual)
        return data, media_type_of(parse_json(data, f"{self.where}: manifest"), stated)

    def head(self) -> tuple[Descriptor, bytes]:
        """What the name itself points at: a manifest or an index."""
        data, media_type = self.manifest()
        digest = self.selector if is_digest(self.selector) else digest_bytes(data)
        return Descriptor(media_type, digest, len(data)), data

    def resolve(self, platform: Platform | None = None) -> Image:
        """Walk indexes to the image for ``platform`` (this host's by default); ImageNotFound when there is none."""
        wanted = platform or Platform.of_host()
        descriptor, data = self.head()
        chain: list[tuple[Descriptor, bytes]] = []
        while descriptor.media_type in INDEX_TYPES:
            if len(chain) == _MAX_INDEX_DEPTH:
                raise FormatError(self.where, f"indexes nested deeper than {_MAX_INDEX_DEPTH}")
            chain.append((descriptor, data))
            chosen = select_platform(parse_json(data, self.where), wanted, self.where)
            data, media_type = self.manifest(chosen.digest)
            if chosen.media_type and media_type != chosen.media_type:
                raise UnsupportedMediaType(
                    f"{self.where}: {chosen.digest} is a {media_type}, the index says {chosen.media_type}"
                )
            descriptor = chosen
        config, _ = check_manifest(parse_json(data, self.where), descriptor.media_type, self.where)
        return build_image(descriptor, data, self.open_blob(config).read(), self.where, tuple(chain))

    def open_blob(self, descriptor: Descriptor) -> Blob:
        """Access to one blob's bytes; nothing is fetched yet."""
        return Blob(self.store, descriptor)

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Manifests that have ``digest`` as their subject (referrers API, else the fallback tag)."""
        return self.store.referrers(digest, artifact_type)


def referrers_tag(digest: str) -> str:
    """Tag under which a registry without the referrers API keeps them (distribution spec 1.1, referrers tag schema)."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"
