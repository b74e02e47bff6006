"""From an image's name to where it lies: `open_source`, `open_destination`, and the copy between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from harness.oci.image import media_type_of, parse_json
from harness.oci.layout import LayoutStore
from harness.oci.reference import Reference, parse_reference
from harness.oci.store import ImageDestination, ImageSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def open_source(name: str | Reference) -> ImageSource:
    """The image ``name`` for reading (its store is ``.store``); nothing is fetched from a registry yet.

    A scenario's image is built first: ``harness.images.catalog.locate`` turns its name into a place.
    """
    reference = parse_reference(name) if isinstance(name, str) else name
    if reference.transport == "docker":
        from harness.oci.registry.client import RegistryClient

        return ImageSource(RegistryClient(reference.host, reference.repository), reference.selector)
    if reference.transport == "oci":
        return ImageSource(LayoutStore(reference.path, reference.tag), reference.selector)
    if reference.transport in {"oci-archive", "docker-archive"}:
        from harness.oci.archive import open_archive

        # A docker archive's own names choose the image when it is opened.
        selector = reference.selector if reference.transport == "oci-archive" else ""
        return ImageSource(open_archive(reference), selector)
    raise UsageError(f"{reference}: names a scenario's own image, which has no place before it is built")


def open_destination(name: str | Reference) -> ImageDestination:
    """The place ``name`` for writing; its tag is the default of ``put_manifest``."""
    reference = parse_reference(name) if isinstance(name, str) else name
    if reference.digest:
        raise UsageError(f"{reference}: a destination is named by a tag, not by a digest")
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
    """Copy what ``source`` names (an index with all its manifests) and, by default, its referrers; returns its head.

    Blobs already there are passed over, mounted or hard-linked where the destination can, else streamed and verified.
    ``progress(descriptor, bytes)`` is told of every layer and config as it moves.
    """
    head, data = source.head()
    _copy_contents(source, destination, data, head.media_type, progress)
    result = destination.put_manifest(data, head.media_type, tag)
    if referrers:
        _copy_referrers(source, destination, head, data, progress)
    return result


def _copy_contents(
    source: ImageSource,
    destination: ImageDestination,
    data: bytes,
    media_type: str,
    progress: Callable[[Descriptor, int], object] | None,
) -> None:
    document = parse_json(data, source.where)
    if media_type in INDEX_TYPES:
        for nested in Descriptor.list_from_json(document.get("manifests"), source.where):
            nested_data, nested_type = source.manifest(nested.digest)
            _copy_contents(source, destination, nested_data, nested_type, progress)
            destination.put_nested_manifest(nested_data, nested_type)
        return
    if media_type not in MANIFEST_TYPES:
        raise UsageError(f"{source.where}: media type {media_type} cannot be copied")
    parts = Descriptor.list_from_json(document.get("layers"), source.where)
    for part in [Descriptor.from_json(document.get("config"), source.where), *parts]:
        copy_blob(source, destination, part, progress)


def copy_blob(
    source: ImageSource,
    destination: ImageDestination,
    descriptor: Descriptor,
    progress: Callable[[Descriptor, int], object] | None = None,
) -> None:
    """Copy one blob unless the destination has it; verified on the way."""
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


def _copy_referrers(
    source: ImageSource,
    destination: ImageDestination,
    head: Descriptor,
    data: bytes,
    progress: Callable[[Descriptor, int], object] | None,
) -> None:
    subjects = [head]
    if head.media_type in INDEX_TYPES:
        document = parse_json(data, source.where)
        subjects += Descriptor.list_from_json(document.get("manifests"), source.where)
    for subject in subjects:
        for referrer in source.referrers(subject.digest):
            artefact, stated = source.manifest(referrer.digest)
            media_type = media_type_of(parse_json(artefact, source.where), stated)
            _copy_contents(source, destination, artefact, media_type, progress)
            destination.add_referrer(subject, artefact, media_type)
