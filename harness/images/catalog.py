"""Finds the place behind an image's name; a scenario's ``image`` table is built, copied or found first, once.

It knows scenarios, so that ``harness.oci`` need not: imports run one way (tests/test_rooms.py).
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ImageNotFound, RegistryError, UsageError
from harness.oci.cache import Cache
from harness.oci.recipe.build_root import need_tool
from harness.oci.recipe.recipe import TAG, build_recipe
from harness.oci.reference import Reference, parse_reference
from harness.oci.registry.client import plain_http

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model.image import ImageSpec


def _silent(what: str, done: int, total: int) -> None:
    """No progress wanted."""


def locate(
    name: str | Reference, cache: Cache | None = None, report: Callable[[str, int, int], object] = _silent
) -> Reference:
    """Where the image ``name`` lies: ``scenario:NAME`` becomes its layout, built if need be; other names stay."""
    reference = parse_reference(name) if isinstance(name, str) else name
    return scenario_layout(reference.name, cache, report) if reference.transport == "scenario" else reference


def scenario_layout(
    name: str, cache: Cache | None = None, report: Callable[[str, int, int], object] = _silent
) -> Reference:
    """The layout of a scenario's own image, built if need be; ``name`` as in ``scenarios/NAME.toml`` or a path."""
    from harness import scenarios

    return materialise(scenarios.load(name).image, cache, report)


def materialise(
    spec: ImageSpec, cache: Cache | None = None, report: Callable[[str, int, int], object] = _silent
) -> Reference:
    """An ``oci:`` reference to the image; nothing is built or copied a second time."""
    cache = cache or Cache.default()
    if spec.recipe is not None:
        return _layout(build_recipe(spec.recipe, cache, report))
    if spec.ref is not None:
        return _layout(_copied_ref(spec.ref, cache, report))
    if spec.layout is not None:
        reference = parse_reference(spec.layout if spec.layout.startswith("oci:") else f"oci:{spec.layout}")
        if not (Path(reference.path) / "index.json").is_file():
            raise ImageNotFound(f"{reference}: not an OCI layout (no index.json there)")
        return reference
    assert spec.archive is not None
    return _layout(_unpacked_archive(spec.archive, cache, report))


def _layout(directory: Path) -> Reference:
    return Reference("oci", path=str(directory), tag=TAG)


def _copied_ref(ref: str, cache: Cache, report: Callable[[str, int, int], object]) -> Path:
    reference = parse_reference(ref if ref.startswith("docker://") else f"docker://{ref}")
    place = cache.images / hashlib.sha256(f"ref {reference}".encode()).hexdigest()
    if place.is_dir():
        return place
    with cache.lock(f"image-{place.name}", lambda: report("waiting for another copy of this image", 0, 0)):
        if place.is_dir():
            return place
        tool = need_tool("skopeo", "skopeo")
        report(f"copying {reference}", 0, 0)
        with cache.scratch("copy") as scratch:
            made = scratch / "layout"
            argv = [tool, "copy", "--quiet"]
            if plain_http(reference.host):
                argv.append("--src-tls-verify=false")
            done = subprocess.run([*argv, str(reference), f"oci:{made}:{TAG}"], capture_output=True, check=False)
            if done.returncode != 0:
                raise _skopeo_error(reference, done.stderr.decode(errors="replace"))
            cache.commit(made, place)
    return place


def _skopeo_error(reference: Reference, said: str) -> RegistryError:
    message = said.strip().splitlines()[-1] if said.strip() else "no reason given"
    message = message.partition('msg="')[2].rstrip('"') or message
    if "manifest unknown" in said or "name unknown" in said or "not found" in said:
        return ImageNotFound(f"{reference}: no such image in the registry")
    return RegistryError(f"{reference}: skopeo cannot copy it: {message[:300]}")


def _unpacked_archive(archive: str, cache: Cache, report: Callable[[str, int, int], object]) -> Path:
    from harness.oci.archive import detect_archive
    from harness.oci.layout import LayoutStore
    from harness.oci.location import copy_image, open_source

    name = archive if archive.startswith(("oci-archive:", "docker-archive:")) else detect_archive(archive)
    reference = parse_reference(name)
    try:
        status = Path(reference.path).stat()
    except OSError as error:
        raise UsageError(f"{reference.path}: cannot be read ({error.strerror})") from None
    stamp = f"archive {reference} {Path(reference.path).absolute()} {status.st_size} {status.st_mtime_ns}"
    place = cache.images / hashlib.sha256(stamp.encode()).hexdigest()
    if place.is_dir():
        return place
    with cache.lock(f"image-{place.name}", lambda: report("waiting for another copy of this image", 0, 0)):
        if place.is_dir():
            return place
        report(f"unpacking {reference}", 0, 0)
        with cache.scratch("copy") as scratch:
            made = LayoutStore(scratch / "layout", create=True)
            with open_source(reference) as source:
                copy_image(source, made, TAG)
            cache.commit(made.directory, place)
    return place
