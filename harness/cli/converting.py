"""Holds what the commands share that write an image anew, layer by layer: the way from name to name, and the result."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from harness.oci.descriptor import Descriptor
    from harness.oci.image import Image
    from harness.oci.reference import Reference
    from harness.oci.store import ImageDestination, ImageSource

R_co = TypeVar("R_co", covariant=True)


class Conversion(Protocol[R_co]):
    """Writes the image that a source holds to a destination; ``progress`` is as ``harness.cli.bars`` makes it."""

    def __call__(
        self,
        source: ImageSource,
        image: Image,
        destination: ImageDestination,
        /,
        *,
        scratch: str,
        progress: Callable[[int, int], None],
    ) -> R_co: ...


class Converted(Protocol):
    """Says what every conversion has as its result."""

    @property
    def manifest(self) -> Descriptor: ...

    @property
    def source_bytes(self) -> int: ...

    @property
    def target_bytes(self) -> int: ...


def converted(
    source: str, destination: str, platform: str, doing: str, conversion: Conversion[R_co], *, quiet: bool
) -> tuple[R_co, float]:
    """Converts one image, and returns the result with the seconds it took; ``doing`` stands before the bar."""
    from harness.cli.bars import bar, layer_progress, open_named
    from harness.oci.descriptor import Platform
    from harness.oci.location import open_destination
    from harness.oci.reference import parse_reference

    chosen = Platform.parse(platform) if platform else None
    target = parse_reference(destination)
    began = time.monotonic()
    with open_named(source, quiet) as opened, bar(quiet) as shown:
        image = opened.resolve(chosen)
        with contextlib.closing(open_destination(target)) as output:
            progress = layer_progress(shown, doing, image.compressed_bytes)
            result = conversion(opened, image, output, scratch=_scratch_of(target), progress=progress)
    return result, time.monotonic() - began


def _scratch_of(target: Reference) -> str:
    """Chooses where layers are unpacked meanwhile: beside an OCI layout, so that blobs can be linked into it, else
    /var/tmp.
    """
    if target.transport == "oci":
        return target.path
    return os.environ.get("TMPDIR") or "/var/tmp"


def show(table: Table, result: Converted, destination: str, seconds: float) -> None:
    """Prints the layers, then the digest of what was written, its size and how long it took."""
    from harness.cli.bars import megabytes
    from harness.cli.tables import console as make_console

    console = make_console()
    console.print(table)
    console.print(
        f"{destination}: {result.manifest.digest}\n"
        f"{megabytes(result.target_bytes)} in {seconds:.1f} s ({megabytes(result.source_bytes)} before)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
