"""This module is the seam between images and where they lie (a registry, an OCI layout, an archive), with verified
reads on top.

A *store* is raw (manifests, blob ranges, blob streams, referrers); `ImageSource` resolves and verifies. Both are
imported by the processes inside the simulated machine and stay light.
"""

from __future__ import annotations

import hashlib
import tempfile
from typing import IO, TYPE_CHECKING, Protocol

from harness.errors import ContentError, DigestMismatch, FormatError, ImageNotFound, UnsupportedMediaType
from harness.oci.descriptor import INDEX_TYPES, Descriptor, Platform, digest_bytes, is_digest
from harness.oci.image import (
    MAX_CONFIG_BYTES,
    MAX_INDEX_DEPTH,
    Image,
    build_image,
    check_manifest,
    media_type_of,
    parse_json,
    platform_candidates,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

CHUNK_BYTES = 1 << 20
MAX_READ_BYTES = 512 << 20
"""Blobs that are read whole into memory (zTOCs, heads of EROFS indexes) have at most this many bytes."""
_RANGED_CHUNK_BYTES = 8 << 20


class RangeIgnored(ContentError):
    """Tells that the server sent something else than the range that was asked for."""


class BlobStore(Protocol):
    """Reads raw. Every error is a RegistryError, a ContentError or an ImageNotFound that names the place."""

    @property
    def where(self) -> str:
        """Returns the place's name, for messages."""
        ...

    @property
    def remarks(self) -> list[str]:
        """Lists what its user should be told once, though it is no error; whoever reads it may empty it."""
        ...

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Returns bytes and stated media type of the manifest or index with this tag or digest ('' is the only one)."""
        ...

    def blob_size(self, digest: str) -> int | None:
        """Returns the size in bytes, None when the blob is absent."""
        ...

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``; RangeIgnored when the server cannot."""
        ...

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        """Hands the whole blob to ``sink`` in pieces, unverified, each byte once; returns the bytes."""
        ...

    def blob_path(self, digest: str) -> Path | None:
        """Returns the file that holds exactly this blob, where there is one."""
        ...

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Returns descriptors of the manifests whose subject is ``digest``; empty when there are none."""
        ...

    def close(self) -> None: ...


class ImageDestination(Protocol):
    """Takes blobs and manifests; it is complete after each call, or after ``close`` for archives."""

    @property
    def where(self) -> str: ...

    @property
    def takes_partial_indexes(self) -> bool:
        """Says whether an index may list manifests that are not there; registries refuse that."""
        ...

    def has_blob(self, digest: str) -> bool: ...

    def put_blob(self, descriptor: Descriptor, data: bytes | Path | Iterable[bytes]) -> None:
        """Stores a blob; DigestMismatch when the bytes are not the descriptor's. A Path may be hard-linked."""
        ...

    def mount_blob(self, descriptor: Descriptor, source: BlobStore) -> bool:
        """Takes a blob from another repository of the same place without moving bytes, if that is possible."""
        ...

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Stores a manifest or index, under a tag if one is given."""
        ...

    def put_nested_manifest(self, data: bytes, media_type: str) -> Descriptor:
        """Stores a manifest that an index stored afterwards points at; it gets no name."""
        ...

    def add_referrer(self, subject: Descriptor, data: bytes, media_type: str) -> Descriptor:
        """Stores a manifest that has ``subject``, and makes it discoverable (referrers API, else the fallback tag)."""
        ...

    def close(self) -> None: ...


class Blob:
    """Stands for one blob of a store, known by its descriptor; it is a RangeSource, and a verified stream."""

    def __init__(self, store: BlobStore, descriptor: Descriptor) -> None:
        self.store = store
        self.descriptor = descriptor
        self.size = descriptor.size

    @property
    def path(self) -> Path | None:
        """Returns the local file holding it, if there is one."""
        return self.store.blob_path(self.descriptor.digest)

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` stored bytes at ``offset`` (unverified); FormatError past the end."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"blob {self.descriptor.digest}", f"range {offset}+{size} lies outside its {self.size} bytes"
            )
        return self.store.get_range(self.descriptor.digest, offset, size) if size else b""

    def copy_to(self, sink: Callable[[bytes], object]) -> None:
        """Pushes the whole blob into ``sink``; raises DigestMismatch after the last piece if it was not the blob."""
        verifier = Verifier(self.descriptor, self.store.where)

        def checked(piece: bytes) -> None:
            verifier.update(piece)
            sink(piece)

        self.store.stream_blob(self.descriptor.digest, checked)
        verifier.finish()

    def stream(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yields the whole blob in pieces of ``chunk_bytes``; raises DigestMismatch after the last if it was not the
        blob.
        """
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
                self._spool(file)
                while piece := file.read(chunk_bytes):
                    yield piece

    def _spool(self, file: IO[bytes]) -> None:
        """Fetches the whole blob into a file: no more of it than it has, whatever the server sends."""
        left = self.size

        def take(piece: bytes) -> None:
            nonlocal left
            left -= len(piece)
            if left < 0:
                raise ContentError(
                    f"{self.store.where}: blob {self.descriptor.digest} is longer than its {self.size} bytes"
                )
            file.write(piece)

        self.store.stream_blob(self.descriptor.digest, take)
        file.seek(0)

    def read(self, limit_bytes: int = MAX_READ_BYTES) -> bytes:
        """Returns the whole blob, verified; FormatError when it has more than ``limit_bytes``, of which none is
        fetched.
        """
        if self.size > limit_bytes:
            raise FormatError(
                f"{self.store.where}: blob {self.descriptor.digest}",
                f"has {self.size} bytes, more than the {limit_bytes} that are read into memory",
            )
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
    """Binds an image's name to its store: it resolves to a platform, verifies every manifest and
    small blob it reads.
    """

    def __init__(
        self, store: BlobStore, selector: str = "", seen: Callable[[Descriptor, bytes], object] | None = None
    ) -> None:
        """Takes ``seen``, which is told of each manifest and index on the way to an image, before anything else is
        asked for.
        """
        self.store = store
        self.selector = selector
        self._seen = seen

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
        """Returns exact bytes and media type of a manifest or index by tag or digest, digest
        checked when asked by one.
        """
        reference = reference or self.selector
        data, stated = self.store.manifest(reference)
        if is_digest(reference):
            algorithm = reference.partition(":")[0]
            actual = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            if actual != reference:
                raise DigestMismatch(f"{self.where}: manifest", reference, actual)
        return data, media_type_of(parse_json(data, f"{self.where}: manifest"), stated)

    def head(self) -> tuple[Descriptor, bytes]:
        """Returns what the name itself points at: a manifest or an index."""
        data, media_type = self.manifest()
        digest = self.selector if is_digest(self.selector) else digest_bytes(data)
        return Descriptor(media_type, digest, len(data)), data

    def resolve(self, platform: Platform | None = None) -> Image:
        """Walks indexes to the image for ``platform`` (this host's by default); ImageNotFound when there is none.

        An entry whose content is not there is passed over: ``docker save`` and containerd write the whole index beside
        the one platform that was pulled. An entry without a platform is judged by its configuration, which may say
        that it is no image.
        """
        descriptor, data = self.head()
        return self._resolve(descriptor, data, platform or Platform.of_host(), ())

    def _resolve(
        self, descriptor: Descriptor, data: bytes, wanted: Platform, chain: tuple[tuple[Descriptor, bytes], ...]
    ) -> Image:
        if self._seen is not None:
            self._seen(descriptor, data)
        if descriptor.media_type not in INDEX_TYPES:
            config, _ = check_manifest(parse_json(data, self.where), descriptor.media_type, self.where)
            config_bytes = self.open_blob(config).read(MAX_CONFIG_BYTES)
            return build_image(descriptor, data, config_bytes, self.where, chain)
        if len(chain) == MAX_INDEX_DEPTH:
            raise FormatError(self.where, f"indexes nested deeper than {MAX_INDEX_DEPTH}")
        chain = (*chain, (descriptor, data))
        candidates = platform_candidates(parse_json(data, self.where), wanted, self.where)
        absent, no_image = "", None
        for entry in (*candidates.fitting, *candidates.nameless):
            try:
                nested, media_type = self.manifest(entry.digest)
                if entry.media_type and media_type != entry.media_type:
                    raise UnsupportedMediaType(
                        f"{self.where}: {entry.digest} is a {media_type}, the index says {entry.media_type}"
                    )
                image = self._resolve(entry, nested, wanted, chain)
            except ImageNotFound:
                if entry in candidates.fitting:
                    absent = absent or entry.digest
                continue
            except UnsupportedMediaType as error:
                if entry in candidates.fitting:
                    raise
                no_image = no_image or error  # an artefact beside the image, whose entry does not say what it is
                continue
            if entry in candidates.fitting or not str(image.platform) or wanted.accepts(image.platform):
                return image
        if absent:
            raise ImageNotFound(
                f"{self.where}: the index lists {wanted}, but the content of {absent} is not there; it lists "
                f"{candidates.offered} (docker save and containerd export write only what was pulled)"
            )
        if no_image is not None and candidates.offered == "none":
            raise no_image
        raise ImageNotFound(
            f"{self.where}: no image for platform {wanted}; the index offers {candidates.offered}; choose by --platform"
        )

    def open_blob(self, descriptor: Descriptor) -> Blob:
        """Gives access to one blob's bytes; nothing is fetched yet.

        A foreign layer that is not in the store is read from the URLs that its descriptor names (OCI image spec,
        descriptor.md: ``urls``).
        """
        if descriptor.urls and self.store.blob_size(descriptor.digest) is None:
            from harness.oci.registry.foreign import ForeignBlobs

            return Blob(ForeignBlobs(self.store, descriptor), descriptor)
        return Blob(self.store, descriptor)

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Returns manifests that have ``digest`` as their subject (referrers API, else the fallback tag)."""
        return self.store.referrers(digest, artifact_type)


def referring(
    store: BlobStore | ImageSource, subject: str, artifact_type: str | None = None, *, last_first: bool = False
) -> Iterator[tuple[Descriptor, bytes]]:
    """Yields the referrers of ``subject`` with their manifests, whose digests are checked; each is fetched in its turn.

    A list of referrers is only a claim: registries and fallback tags list manifests that are gone, or that have another
    subject. Those are passed over.
    """
    entries = store.referrers(subject, artifact_type)
    for entry in reversed(entries) if last_first else entries:
        try:
            data, _ = store.manifest(entry.digest)
        except ImageNotFound:
            continue
        algorithm = entry.digest.partition(":")[0]
        actual = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if actual != entry.digest:
            raise DigestMismatch(f"{store.where}: referrer", entry.digest, actual)
        stated = parse_json(data, f"{store.where}: referrer {entry.digest}").get("subject")
        if isinstance(stated, dict) and stated.get("digest") == subject:
            yield entry, data


def referrers_tag(digest: str) -> str:
    """Returns the tag under which a registry without the referrers API keeps them (distribution spec 1.1, referrers tag
    schema).
    """
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"
