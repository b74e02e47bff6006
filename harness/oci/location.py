"""This module leads from an image's name to where it lies (`open_source`, `open_destination`), and copies between two
places.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from harness.errors import FormatError, ImageNotFound, UsageError
from harness.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, go_json
from harness.oci.image import MAX_INDEX_DEPTH, media_type_of, parse_json
from harness.oci.layout import LayoutStore
from harness.oci.reference import Reference, parse_reference
from harness.oci.store import ImageDestination, ImageSource, referring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def open_source(name: str | Reference) -> ImageSource:
    """Opens the image ``name`` for reading (its store is ``.store``); nothing is fetched from a registry yet.

    A scenario's image is built first: ``harness.images.catalog.locate`` turns its name into a place.
    """
    reference = parse_reference(name) if isinstance(name, str) else name
    if reference.transport == "docker":
        from harness.oci.registry.client import RegistryClient

        return ImageSource(RegistryClient(reference.host, reference.repository), reference.selector)
    if reference.transport == "oci":
        return ImageSource(LayoutStore(reference.path, reference.tag, called=reference.called), reference.selector)
    if reference.transport in {"oci-archive", "docker-archive"}:
        from harness.oci.archive import open_archive

        # A docker archive's own names choose the image when it is opened.
        selector = reference.selector if reference.transport == "oci-archive" else ""
        return ImageSource(open_archive(reference), selector)
    raise UsageError(f"{reference}: names a scenario's own image, which has no place before it is built")


def open_destination(name: str | Reference) -> ImageDestination:
    """Opens the place ``name`` for writing; its tag is the default of ``put_manifest``."""
    reference = parse_reference(name) if isinstance(name, str) else name
    if reference.digest or reference.tag.startswith("@"):
        raise UsageError(f"{reference}: a destination is named by a tag, not by a digest or number")
    if reference.transport == "docker":
        from harness.oci.registry.client import RegistryClient
        from harness.oci.registry.push import RegistryDestination

        return RegistryDestination(RegistryClient(reference.host, reference.repository), reference.tag)
    if reference.transport == "oci":
        return LayoutStore(reference.path, reference.tag, create=True)
    if reference.transport == "oci-archive":
        from harness.oci.archive import ArchiveDestination

        return ArchiveDestination(reference.path, reference.tag)
    raise UsageError(f"{reference}: cannot write there; destinations are docker://, oci: and oci-archive:")


def copy_image(
    source: ImageSource,
    destination: ImageDestination,
    tag: str = "",
    *,
    referrers: bool = True,
    progress: Callable[[Descriptor, int], object] | None = None,
) -> Descriptor:
    """Copies what ``source`` names (an index with all its manifests) and, by default, its referrers; returns its head.

    Blobs already there are passed over, mounted or hard-linked where the destination can, else streamed and verified.
    ``progress(descriptor, bytes)`` is told of every layer and config as it moves.

    Of an index whose other platforms are absent, as ``docker save`` and containerd write it, what is there is copied,
    and the source's remarks name the rest. A registry takes no index with gaps: it gets one of the entries that are
    there, which has another digest.
    """
    head, data = source.head()
    copying = _Copying(source, destination, progress)
    kept = copying.contents(data, head.media_type)
    result = destination.put_manifest(kept, head.media_type, tag)
    copying.tell()
    if referrers:
        copying.referrers([head] if kept == data else [], head, data)
    return result


class _Copying:
    """Holds one copy: what was done already, and what was not there."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        progress: Callable[[Descriptor, int], object] | None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._done: dict[str, bytes] = {}
        self._absent: dict[str, Descriptor] = {}

    def contents(self, data: bytes, media_type: str, depth: int = 0) -> bytes:
        """Copies what a manifest or index points at; returns the manifest to put, changed where entries were left out.

        Raises ImageNotFound when a blob, or all that an index lists, is not there.
        """
        where = self._source.where
        document = parse_json(data, where)
        if media_type in INDEX_TYPES:
            if depth == MAX_INDEX_DEPTH:
                raise FormatError(where, f"indexes nested deeper than {MAX_INDEX_DEPTH}")
            return self._index(document, data, depth)
        if media_type not in MANIFEST_TYPES:
            raise UsageError(f"{where}: media type {media_type} cannot be copied")
        parts = Descriptor.list_from_json(document.get("layers"), where)
        for part in [Descriptor.from_json(document.get("config"), where), *parts]:
            copy_blob(self._source, self._destination, part, self._progress)
        return data

    def _index(self, document: dict[str, Any], data: bytes, depth: int) -> bytes:
        entries = Descriptor.list_from_json(document.get("manifests"), self._source.where)
        kept: list[dict[str, Any]] = []
        for entry, stated in zip(entries, document.get("manifests") or [], strict=True):
            try:
                put = self._entry(entry, depth)
            except ImageNotFound:
                self._absent[entry.digest] = entry
                continue
            changed = {"digest": put, "size": len(self._done[entry.digest])} if put != entry.digest else {}
            kept.append({**stated, **changed})
        if entries and not kept:
            raise ImageNotFound(f"{self._source.where}: nothing of what its index lists is there")
        if kept == (document.get("manifests") or []) or self._destination.takes_partial_indexes:
            return data
        return go_json({**document, "manifests": kept})

    def _entry(self, entry: Descriptor, depth: int) -> str:
        """Copies one entry of an index, once however often it is listed; returns the digest under which it was put."""
        if entry.digest not in self._done:
            nested, media_type = self._source.manifest(entry.digest)
            put = self.contents(nested, media_type, depth + 1)
            self._destination.put_nested_manifest(put, media_type)
            self._done[entry.digest] = put
        put = self._done[entry.digest]
        algorithm = entry.digest.partition(":")[0]
        return f"{algorithm}:{hashlib.new(algorithm, put).hexdigest()}"

    def tell(self) -> None:
        """Says what was left out."""
        if self._absent:
            names = ", ".join(
                f"{entry.platform or entry.artifact_type or 'no platform'} ({entry.digest[:19]})"
                for entry in self._absent.values()
            )
            self._source.store.remarks.append(
                f"{self._source.where}: left out of the copy, since their content is not there: {names}"
            )

    def referrers(self, subjects: list[Descriptor], head: Descriptor, data: bytes) -> None:
        """Copies the artefacts about these subjects, and about what an index lists."""
        source = self._source
        if head.media_type in INDEX_TYPES:
            listed = Descriptor.list_from_json(parse_json(data, source.where).get("manifests"), source.where)
            subjects = [*subjects, *(entry for entry in listed if entry.digest not in self._absent)]
        for subject in subjects:
            for referrer, artefact in referring(source, subject.digest):
                media_type = media_type_of(parse_json(artefact, source.where), referrer.media_type)
                self.contents(artefact, media_type)
                self._destination.add_referrer(subject, artefact, media_type)


def copy_blob(
    source: ImageSource,
    destination: ImageDestination,
    descriptor: Descriptor,
    progress: Callable[[Descriptor, int], object] | None = None,
) -> None:
    """Copies one blob unless the destination has it; it is verified on the way."""
    if destination.has_blob(descriptor.digest) or destination.mount_blob(descriptor, source.store):
        if progress is not None:
            progress(descriptor, descriptor.size)
        return
    blob = source.open_blob(descriptor)
    if progress is None:
        destination.put_blob(descriptor, blob.path or blob.stream())
        return
    report = progress

    def counted() -> Iterator[bytes]:
        for piece in blob.stream():
            yield piece
            report(descriptor, len(piece))

    destination.put_blob(descriptor, counted())
