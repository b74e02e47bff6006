"""This module reads and writes OCI image layouts on disk (image spec 1.1, image-layout.md); every write is atomic.

Referrers have no form of their own in a layout: they are entries of index.json without a name, found by their
subject, which is what ORAS does as well; the registry's fallback tag is honoured where another tool wrote one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import ContentError, FormatError, ImageNotFound, UsageError
from harness.oci.cache import writing
from harness.oci.descriptor import OCI_INDEX, REF_NAME, Descriptor, digest_bytes, go_json, is_digest, text_map
from harness.oci.image import MAX_MANIFEST_BYTES, media_type_of, parse_json
from harness.oci.reference import canonical_name
from harness.oci.store import CHUNK_BYTES, Verifier, referrers_tag
from harness.oci.verified import note_verified, read_pieces, verify_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from harness.oci.store import BlobStore


def select_entry(entries: list[Descriptor], selector: str, where: str) -> Descriptor:
    """Returns the entry of an index.json that a digest, a name or ``@NUMBER`` chooses; without one, the only image.

    A name is the entry's own (``org.opencontainers.image.ref.name``) or the image's whole name, which containerd and
    Docker write beside it; ``b:2`` means ``docker.io/library/b:2``, as in containers-transports(5).
    """
    if is_digest(selector):
        return next((e for e in entries if e.digest == selector), Descriptor("", selector, 0))
    if selector.startswith("@") and selector[1:].isdigit():
        return numbered(entries, selector, where)
    if selector:
        wanted = canonical_name(selector)
        found = [e for e in entries if e.annotations.get(REF_NAME) == selector]
        found = found or [
            e for e in entries if wanted in {canonical_name(e.annotations[key]) for key in _NAMES & set(e.annotations)}
        ]
        if len({e.digest for e in found}) > 1:
            names = ", ".join(_name_of(e) for e in found)
            raise UsageError(f"{where}: several images are named {selector!r}; say which: {names}")
        if found:
            return found[0]
        raise ImageNotFound(f"{where}: no image is named {selector!r}; names there: {_names_of(entries)}")
    images = [e for e in entries if not e.artifact_type and (e.is_index or e.is_manifest)]
    named = [e for e in images if REF_NAME in e.annotations and not e.annotations[REF_NAME].startswith("sha256-")]
    candidates = images if len(images) == 1 else named
    if not candidates:
        raise ImageNotFound(f"{where}: the layout holds no image")
    if len({e.digest for e in candidates}) > 1:
        tags = ", ".join(sorted(map(_name_of, candidates)))
        raise UsageError(f"{where}: several images; append :TAG with one of {tags}")
    return candidates[0]


_IMAGE_NAME = "io.containerd.image.name"
_NAMES = frozenset({REF_NAME, _IMAGE_NAME})
T = TypeVar("T")


def numbered(things: Sequence[T], selector: str, where: str) -> T:
    """Returns the image that ``@NUMBER`` chooses, counted from 0 (containers-transports(5): source-index)."""
    number = int(selector[1:])
    if number >= len(things):
        raise ImageNotFound(f"{where}: there is no image {selector}; it holds {len(things)}, counted from @0")
    return things[number]


def _name_of(entry: Descriptor) -> str:
    notes = entry.annotations
    return notes.get(_IMAGE_NAME) or notes.get(REF_NAME) or entry.digest


def _names_of(entries: list[Descriptor]) -> str:
    return ", ".join(sorted({_name_of(e) for e in entries if _NAMES & set(e.annotations)})) or "none"


def manifest_referrers(
    entries: list[Descriptor], store: BlobStore, digest: str, artifact_type: str | None
) -> list[Descriptor]:
    """Finds referrers of ``digest`` among an index's entries, with artifact type and annotations taken from the
    manifests.

    Entries whose manifests were not copied along are passed over. A damaged one is a ContentError: nobody knows what
    it referred to.
    """
    found: dict[str, Descriptor] = {}
    for entry in entries:
        if not (entry.is_manifest or entry.is_index) or store.blob_size(entry.digest) is None:
            continue
        data, _ = store.manifest(entry.digest)
        if entry.digest.startswith("sha256:") and digest_bytes(data) != entry.digest:
            raise ContentError(f"{store.where}: manifest {entry.digest} is damaged")
        document = parse_json(data, entry.digest)
        if entry.annotations.get(REF_NAME) == referrers_tag(digest):
            for descriptor in Descriptor.list_from_json(document.get("manifests"), entry.digest):
                found.setdefault(descriptor.digest, descriptor)
            continue
        subject = document.get("subject")
        if isinstance(subject, dict) and subject.get("digest") == digest:
            found[entry.digest] = referrer_descriptor(entry.digest, entry.size, document, entry.media_type)
    return [d for d in found.values() if artifact_type in {None, d.artifact_type}]


def referrer_descriptor(digest: str, size: int, document: dict[str, Any], media_type: str) -> Descriptor:
    """Says how a manifest with a subject is listed: its artifact type (else its config's media
    type) and annotations.
    """
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "")
    return Descriptor(
        media_type_of(document, media_type),
        digest,
        size,
        annotations=text_map(document.get("annotations"), digest),
        artifact_type=str(kind or ""),
    )


class LayoutStore:
    """Reads and writes one layout directory. Blobs appear complete by rename; index.json changes under a lock."""

    takes_partial_indexes = True

    def __init__(
        self, directory: str | os.PathLike[str], tag: str = "", *, create: bool = False, called: str = ""
    ) -> None:
        """Takes as ``called`` what the user calls the image, where the directory is a copy that only we know of."""
        self.directory = Path(directory)
        self.tag = tag
        self.remarks: list[str] = []
        self._called = called
        if create and tag.startswith("@"):
            raise UsageError(f"{self.where}:{tag}: a new image is named by a tag")
        if create:
            with writing(self.directory):
                (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
                if not (self.directory / "oci-layout").exists():
                    self._replace(self.directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
                if not (self.directory / "index.json").exists():
                    self._write_index([])
        elif not (self.directory / "index.json").is_file():
            raise ImageNotFound(f"{self.where}: not an OCI layout (no index.json there)")

    @property
    def where(self) -> str:
        return self._called or f"oci:{self.directory}"

    def close(self) -> None:
        """Does nothing: nothing is held open."""

    # reads

    def entries(self) -> list[Descriptor]:
        """Returns the entries of index.json, in order."""
        document = parse_json((self.directory / "index.json").read_bytes(), f"{self.where}: index.json")
        return Descriptor.list_from_json(document.get("manifests"), f"{self.where}: index.json")

    def manifest(self, reference: str) -> tuple[bytes, str]:
        entry = select_entry(self.entries(), reference or self.tag, self.where)
        if self.blob_path(entry.digest) is None:
            raise ImageNotFound(f"{self.where}: manifest {entry.digest} is not there")
        size = self.blob_size(entry.digest) or 0
        if size > MAX_MANIFEST_BYTES:
            raise FormatError(f"{self.where}: {entry.digest}", f"manifest of {size} bytes is too large")
        data = self._file(entry.digest).read_bytes()
        if digest_bytes(data) != entry.digest and entry.digest.startswith("sha256:"):
            raise ContentError(f"{self.where}: manifest {entry.digest} is damaged on disk")
        return data, entry.media_type

    def blob_size(self, digest: str) -> int | None:
        try:
            return os.stat(self._file(digest)).st_size
        except FileNotFoundError:
            return None

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        with self._open(digest) as file:
            data = os.pread(file.fileno(), size, offset)
            while len(data) < size:
                more = os.pread(file.fileno(), size - len(data), offset + len(data))
                if not more:
                    raise FormatError(f"{self.where}: blob {digest}", f"ends before byte {offset + size}")
                data += more
        return data

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        total = 0
        with self._open(digest) as file:
            while piece := file.read(CHUNK_BYTES):
                sink(piece)
                total += len(piece)
        return total

    def blob_path(self, digest: str) -> Path | None:
        path = self._file(digest)
        return path if path.is_file() else None

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        return manifest_referrers(self.entries(), self, digest, artifact_type)

    # writes

    def has_blob(self, digest: str) -> bool:
        return self.blob_size(digest) is not None

    def put_blob(self, descriptor: Descriptor, data: bytes | Path | Iterable[bytes]) -> None:
        if self.blob_size(descriptor.digest) == descriptor.size:
            return
        target = self._file(descriptor.digest)
        if isinstance(data, Path) and self._link(data, target, descriptor):
            return
        pieces: Iterable[bytes] = [data] if isinstance(data, bytes) else data if not isinstance(data, Path) else []
        verifier = Verifier(descriptor, self.where)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            writing(self.directory),
            tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-", delete=False) as file,
        ):
            try:
                for piece in read_pieces(data) if isinstance(data, Path) else pieces:
                    verifier.update(piece)
                    file.write(piece)
                verifier.finish()
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                note_verified(file.fileno(), descriptor)
                os.rename(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise

    def mount_blob(self, descriptor: Descriptor, source: BlobStore) -> bool:
        path = source.blob_path(descriptor.digest)
        return path is not None and self._link(path, self._file(descriptor.digest), descriptor)

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        descriptor = Descriptor.of(data, media_type)
        self.put_blob(descriptor, data)
        name = tag or self.tag
        if name:
            document = parse_json(data, self.where)
            entry = Descriptor(
                media_type,
                descriptor.digest,
                descriptor.size,
                annotations={REF_NAME: name},
                artifact_type=str(document.get("artifactType") or ""),
            )
        else:
            entry = descriptor
        with self._index_lock():
            kept = [
                e for e in self.entries() if (e.annotations.get(REF_NAME) != name if name else e.digest != entry.digest)
            ]
            self._write_index([*kept, entry])
        return descriptor

    def put_nested_manifest(self, data: bytes, media_type: str) -> Descriptor:
        """Stores a manifest that an index stored later will point at (no entry of its own in index.json)."""
        descriptor = Descriptor.of(data, media_type)
        self.put_blob(descriptor, data)
        return descriptor

    def add_referrer(self, subject: Descriptor, data: bytes, media_type: str) -> Descriptor:
        document = parse_json(data, self.where)
        if (document.get("subject") or {}).get("digest") != subject.digest:
            raise FormatError(self.where, f"the artefact's subject is not {subject.digest}")
        descriptor = Descriptor.of(data, media_type)
        self.put_blob(descriptor, data)
        entry = referrer_descriptor(descriptor.digest, descriptor.size, document, media_type)
        with self._index_lock():
            self._write_index([*(e for e in self.entries() if e.digest != entry.digest), entry])
        return descriptor

    # files

    def _file(self, digest: str) -> Path:
        if not is_digest(digest):
            raise FormatError(self.where, f"{digest!r} is not a digest")
        algorithm, _, value = digest.partition(":")
        return self.directory / "blobs" / algorithm / value

    def _open(self, digest: str) -> Any:
        try:
            return open(self._file(digest), "rb", buffering=0)
        except FileNotFoundError:
            raise ImageNotFound(f"{self.where}: blob {digest} is not there") from None

    def _link(self, path: Path, target: Path, descriptor: Descriptor) -> bool:
        """Hard-links a verified file into place; False when it lies on another file system."""
        if target.exists():
            return True
        verify_file(path, descriptor)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileExistsError:
            return True
        except OSError:
            return False
        return True

    def _replace(self, path: Path, data: bytes) -> None:
        with (
            writing(self.directory),
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file,
        ):
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.rename(file.name, path)

    def _write_index(self, entries: list[Descriptor]) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [e.to_json() for e in entries]}
        self._replace(self.directory / "index.json", go_json(index))

    @contextlib.contextmanager
    def _index_lock(self) -> Iterator[None]:
        # The directory itself is locked, so that no lock file stays behind in somebody's layout.
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
