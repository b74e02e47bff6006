"""``coldbench index erofs IMAGE [DST]``: metadata and checkpoints that make an unchanged image mountable at once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.cli.groups import index

if TYPE_CHECKING:
    from harness.formats.erofs.image import IndexedImage


@index.command("erofs")
def erofs(
    source: str = typer.Argument(..., metavar="IMAGE", help="Image: docker://…, oci:…, oci-archive:…, scenario:NAME."),
    destination: str = typer.Argument(
        "", metavar="[DST]", help="Where to put image and index: docker://…, oci:…; default: beside the image."
    ),
    span_size: int = typer.Option(1 << 20, metavar="N", help="Unpacked bytes between two places to start from."),
    prefetch: Path | None = typer.Option(
        None, metavar="FILE", help="Names of files needed at start, one a line, the first ones first."
    ),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Index an image for mode erofs: its layers stay byte for byte the same."""
    from harness.cli.bars import blob_progress, open_named
    from harness.errors import UsageError
    from harness.formats.erofs.image import Options, index_image
    from harness.oci.descriptor import Platform
    from harness.oci.location import open_destination

    names: tuple[str, ...] = ()
    if prefetch is not None:
        try:
            names = tuple(line for line in prefetch.read_text("utf-8", "surrogateescape").splitlines() if line)
        except OSError as error:
            raise UsageError(f"--prefetch {prefetch}: {error.strerror}") from None
    options = Options(span_bytes=span_size, prefetch=names, platform=Platform.parse(platform) if platform else None)
    began = time.monotonic()
    with open_named(source, as_json) as opened, blob_progress(as_json) as progress:
        opened.resolve(options.platform)
        with contextlib.closing(open_destination(destination or _beside(source))) as output:
            result = index_image(opened, output, options, progress, copy=bool(destination))
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps({"seconds": round(seconds, 3), **result.to_json()}, indent=2))
    else:
        _print(result, destination or source, seconds)
    for path in result.prefetch_missing:
        print(f"coldbench: --prefetch: the image has no file {path!r}", file=sys.stderr)


def _beside(source: str) -> str:
    """The place of the image itself, for writing."""
    from dataclasses import replace

    from harness.errors import UsageError
    from harness.images.catalog import locate
    from harness.oci.reference import parse_reference

    reference = parse_reference(source)
    if reference.transport == "scenario":
        return f"oci:{locate(reference).path}"
    if reference.transport not in {"docker", "oci"}:
        raise UsageError(f"{source}: an index cannot be added to an archive; name a destination (docker://… or oci:…)")
    return str(replace(reference, digest=""))


def _print(result: IndexedImage, place: str, seconds: float) -> None:
    from rich.table import Table

    from harness.cli.bars import megabytes
    from harness.cli.tables import console as make_console

    table = Table("layer", "stored", "unpacked", "spans", "windows", "entries", "remark")
    for number, layer in enumerate(result.layers):
        table.add_row(
            str(number),
            megabytes(layer["compressed_bytes"]),
            megabytes(layer["bytes"]),
            str(layer["spans"]),
            megabytes(layer["windows_bytes"]),
            str(layer["entries"]),
            layer["remark"],
        )
    console = make_console()
    console.print(table)
    summary = (
        f"EROFS index {result.index.digest} in {seconds:.1f} s: {result.inodes} inodes in "
        f"{megabytes(result.metadata_bytes)} of metadata; a start fetches {megabytes(result.head_bytes)} first"
    )
    console.print(f"{place}: {result.image.digest}\n{summary}", highlight=False, markup=False, soft_wrap=True)
