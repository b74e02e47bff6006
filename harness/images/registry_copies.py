"""This module keeps copies of registries' images in the cache, by digest; every run looks a tag up anew, since it may
have moved.

A tag is a name that its owner can move at any time. A copy kept under a tag would go on being measured after the image
behind it changed, so copies are kept under the digest, and what a tag last meant is remembered beside them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import ImageNotFound, RegistryError
from harness.oci.descriptor import Platform, is_digest
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image
from harness.oci.recipe.recipe import TAG
from harness.oci.reference import Reference
from harness.oci.registry.client import RegistryClient
from harness.oci.store import ImageSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.oci.cache import Cache


@dataclass(frozen=True, slots=True)
class Lookup:
    """Holds what a name at a registry means: the digest it led to, and when that was found out (UTC, ISO 8601).

    ``moved_from`` is the digest that the lookup before had, where it is another one. ``offline``: nobody was asked now.
    """

    name: str
    digest: str
    looked_up_at: str
    moved_from: str = ""
    moved_from_at: str = ""
    offline: bool = False

    @property
    def news(self) -> str:
        """Says what a user should know of it, '' when there is nothing."""
        if self.offline:
            return f"{self.name}: offline, as it was looked up {self.looked_up_at}: {self.digest}"
        if self.moved_from:
            return (
                f"{self.name} has moved: it was {self.moved_from} when looked up {self.moved_from_at}, "
                f"and is {self.digest} now"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Copy:
    """Holds a copy: its layout, whether it was made just now, and the lookup before it."""

    layout: Reference
    made: bool
    lookup: Lookup


def fetch(
    reference: Reference,
    cache: Cache,
    report: Callable[[str, int, int], object],
    *,
    offline: bool = False,
) -> Copy:
    """Returns the image ``reference`` as a layout in the cache, copied for this host's platform unless it is there.

    A tag costs one request; a digest whose copy is there costs none. With ``offline`` nothing is asked.

    Raises:
        ImageNotFound: there is no such image, or none was copied that ``offline`` could use.
        RegistryError: it cannot be reached; the message says so when a copy is there.
    """
    last = _last(reference, cache)
    client = RegistryClient(reference.host, reference.repository)
    try:
        lookup = _look_up(reference, cache, client, last, offline)
        place = _place(reference, lookup.digest, cache)
        made = False
        with cache.lock(f"image-{place.name}", lambda: report("waiting for another copy of this image", 0, 0)):
            if not cache.has(place):
                if offline:
                    raise ImageNotFound(f"{reference}: {lookup.digest} is not in the cache; run once without --offline")
                _copy(reference, lookup.digest, client, cache, report)
                made = True
    finally:
        client.close()
    if not offline:
        _remember(reference, cache, lookup)
    layout = Reference("oci", path=str(place), tag=TAG, called=str(reference))
    return Copy(layout, made, lookup)


def _look_up(reference: Reference, cache: Cache, client: RegistryClient, last: Lookup | None, offline: bool) -> Lookup:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if reference.digest:
        return Lookup(str(reference), reference.digest, now)
    if offline:
        if last is None:
            raise ImageNotFound(f"{reference}: was never looked up here; run once without --offline")
        return Lookup(last.name, last.digest, last.looked_up_at, offline=True)
    try:
        digest = ImageSource(client, reference.tag).head()[0].digest
    except ImageNotFound:
        raise
    except RegistryError as error:
        if last is not None and cache.has(_place(reference, last.digest, cache)):
            raise type(error)(f"{error}; --offline uses the copy of {last.looked_up_at}") from None
        raise
    if last is not None and last.digest != digest:
        return Lookup(str(reference), digest, now, last.digest, last.looked_up_at)
    return Lookup(str(reference), digest, now)


def _copy(
    reference: Reference,
    digest: str,
    client: RegistryClient,
    cache: Cache,
    report: Callable[[str, int, int], object],
) -> None:
    what = f"copying {reference}"
    report(what, 0, 0)
    with cache.scratch("copy") as scratch:
        image = ImageSource(client, digest).resolve()
        made = LayoutStore(scratch / "layout", create=True)
        done = 0

        def progress(_part: object, size: int) -> None:
            nonlocal done
            done += size
            report(what, min(done, image.compressed_bytes), image.compressed_bytes)

        # This host's image alone: the index lists platforms that nobody here can start.
        source = ImageSource(client, image.descriptor.digest)
        copy_image(source, made, TAG, referrers=False, progress=progress)
        cache.commit(made.directory, _place(reference, digest, cache))


def _place(reference: Reference, digest: str, cache: Cache) -> Path:
    stated = f"copy {reference.host}/{reference.repository}@{digest} {Platform.of_host()}"
    return cache.images / hashlib.sha256(stated.encode()).hexdigest()


def _memory(reference: Reference, cache: Cache) -> Path:
    return cache.root / "names" / f"{hashlib.sha256(str(reference).encode()).hexdigest()}.json"


def _last(reference: Reference, cache: Cache) -> Lookup | None:
    """Returns the lookup before this one; None when there was none, or its record cannot be read."""
    try:
        stored = json.loads(_memory(reference, cache).read_bytes())
        found = Lookup(str(reference), str(stored["digest"]), str(stored["looked_up_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_digest(found.digest) else None


def _remember(reference: Reference, cache: Cache, lookup: Lookup) -> None:
    if not reference.digest:
        cache.write(_memory(reference, cache), json.dumps(asdict(lookup)).encode())
