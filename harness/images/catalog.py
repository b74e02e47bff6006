"""This module finds the place behind an image's name; a scenario's ``image`` table is built, copied or found first,
once.

It knows scenarios, so that ``harness.oci`` need not: imports run one way (tests/test_rooms.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ImageNotFound, UsageError
from harness.images.registry_copies import fetch
from harness.model.image import parse_compression
from harness.oci.cache import Cache
from harness.oci.descriptor import Platform
from harness.oci.location import copy_image, open_source
from harness.oci.recipe.recipe import TAG, build_recipe, recipe_place
from harness.oci.reference import Reference, parse_reference
from harness.oci.store import ImageSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.images.registry_copies import Lookup
    from harness.model.image import Compression, ImageSpec
    from harness.oci.image import Image


def _silent(what: str, done: int, total: int) -> None:
    """Does nothing: no progress is wanted."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """Holds a scenario's image on this disk: its layout, whether it was made or copied just now, and what its tag
    meant.
    """

    layout: Reference
    made: bool = False
    lookup: Lookup | None = None


def locate(
    name: str | Reference,
    cache: Cache | None = None,
    report: Callable[[str, int, int], object] = _silent,
    tell: Callable[[str], object] = lambda _: None,
) -> Reference:
    """Returns where the image ``name`` lies: ``scenario:NAME`` becomes its layout, built if need be; other names stay.

    ``tell`` gets what a user should know of it: that a tag has moved since it was looked up last.
    """
    from harness import scenarios

    reference = parse_reference(name) if isinstance(name, str) else name
    if reference.transport != "scenario":
        return reference
    obtained = obtain(scenarios.load(reference.name).image, cache, report, called=str(reference))
    if obtained.lookup is not None and obtained.lookup.news:
        tell(obtained.lookup.news)
    return obtained.layout


def materialise(
    spec: ImageSpec, cache: Cache | None = None, report: Callable[[str, int, int], object] = _silent
) -> Reference:
    """Returns an ``oci:`` reference to the image; nothing is built or copied a second time."""
    return obtain(spec, cache, report).layout


def refuse_foreign(image: Image, called: str) -> None:
    """Raises UsageError for an image that this host cannot run: a name may lead to one platform's manifest alone."""
    here = Platform.of_host()
    if image.platform.os and image.platform.architecture and not here.accepts(image.platform):
        raise UsageError(
            f"{called}: the image is for {image.platform}, and this host runs {here}; name an image for it, or "
            "an index that holds one"
        )


def obtain(
    spec: ImageSpec,
    cache: Cache | None = None,
    report: Callable[[str, int, int], object] = _silent,
    *,
    offline: bool = False,
    pinned: str = "",
    called: str = "",
) -> Obtained:
    """Returns the image of a scenario's ``image`` table, built, copied or found.

    ``offline`` uses what is in the cache and asks nobody. ``pinned`` is the digest that a tag has to mean, for a
    session that goes on; ``called`` is what messages call an image that has no name of its own.
    """
    cache = cache or Cache.default()
    found = _obtain(spec, cache, report, offline=offline, pinned=pinned, called=called)
    if spec.compression is None and not spec.copy_number:
        return found
    return _recompressed(found, parse_compression(spec.compression or "gzip"), spec.copy_number, cache, report)


def _obtain(
    spec: ImageSpec,
    cache: Cache,
    report: Callable[[str, int, int], object],
    *,
    offline: bool,
    pinned: str,
    called: str,
) -> Obtained:
    """Returns the image as its source has it."""
    if spec.recipe is not None:
        there = cache.has(recipe_place(spec.recipe, cache))
        if offline and not there:
            raise ImageNotFound(f"{called or 'the recipe'}: was not built here yet; run once without --offline")
        return Obtained(_layout(build_recipe(spec.recipe, cache, report), called), not there)
    if spec.ref is not None:
        reference = parse_reference(spec.ref if spec.ref.startswith("docker://") else f"docker://{spec.ref}")
        if pinned:
            reference = reference.with_selector(pinned)
        copy = fetch(reference, cache, report, offline=offline)
        return Obtained(copy.layout, copy.made, copy.lookup)
    if spec.layout is not None:
        reference = parse_reference(spec.layout if spec.layout.startswith("oci:") else f"oci:{spec.layout}")
        if not (Path(reference.path) / "index.json").is_file():
            raise ImageNotFound(f"{reference}: not an OCI layout (no index.json there)")
        return Obtained(reference)
    assert spec.archive is not None
    place, made = _unpacked_archive(spec.archive, cache, report)
    return Obtained(_layout(place, spec.archive), made)


def _recompressed(
    found: Obtained,
    compression: Compression,
    number: int,
    cache: Cache,
    report: Callable[[str, int, int], object],
) -> Obtained:
    """Returns the same image, or a numbered copy of it, with its layers compressed so; each is made once."""
    from harness.formats.recompression import RECOMPRESSION_VERSION, convert_layers
    from harness.oci.layout import LayoutStore

    with open_source(found.layout) as source:
        image = source.resolve()
        digest = image.descriptor.digest
        stamp = f"layers {digest} {compression.kind} {compression.level} {number} v{RECOMPRESSION_VERSION}"
        place = cache.images / hashlib.sha256(stamp.encode()).hexdigest()
        called = f"{found.layout.called or found.layout} ({compression.name}{f', copy {number}' if number else ''})"
        if cache.has(place):
            return Obtained(_layout(place, called), found.made, found.lookup)
        with cache.lock(f"image-{place.name}", lambda: report("waiting for another copy of this image", 0, 0)):
            if not cache.has(place):
                done = [0] * len(image.layers)

                def count(number: int, read: int) -> None:
                    done[number] = read
                    report(f"compressing layers ({compression.name})", sum(done), image.compressed_bytes)

                with cache.scratch("recompressed") as scratch:
                    made = LayoutStore(scratch / "layout", TAG, create=True)
                    convert_layers(
                        source, image, made, compression, copy_number=number, scratch=scratch, progress=count
                    )
                    made.close()
                    cache.commit(made.directory, place)
        return Obtained(_layout(place, called), True, found.lookup)


def _layout(directory: Path, called: str) -> Reference:
    return Reference("oci", path=str(directory), tag=TAG, called=called)


def _unpacked_archive(archive: str, cache: Cache, report: Callable[[str, int, int], object]) -> tuple[Path, bool]:
    from harness.oci.archive import open_archive, open_detected
    from harness.oci.layout import LayoutStore

    named = archive.startswith(("oci-archive:", "docker-archive:"))
    reference = parse_reference(archive if named else f"docker-archive:{archive}")
    try:
        status = Path(reference.path).stat()
    except FileNotFoundError:
        raise ImageNotFound(f"{reference.path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{reference.path}: cannot be read ({error.strerror})") from None
    stamp = f"archive {archive} {Path(reference.path).absolute()} {status.st_size} {status.st_mtime_ns}"
    place = cache.images / hashlib.sha256(stamp.encode()).hexdigest()
    if cache.has(place):
        return place, False
    with cache.lock(f"image-{place.name}", lambda: report("waiting for another copy of this image", 0, 0)):
        if cache.has(place):
            return place, False
        report(f"unpacking {archive}", 0, 0)
        store = open_archive(reference) if named else open_detected(reference.path, reference.tag)
        with cache.scratch("copy") as scratch, ImageSource(store) as source:
            made = LayoutStore(scratch / "layout", create=True)
            copy_image(source, made, TAG)
            for remark in store.remarks:
                report(remark, 0, 0)
            cache.commit(made.directory, place)
    return place, True
