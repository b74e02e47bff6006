"""``coldbench index soci SRC DST`` puts a SOCI index beside an image whose layers stay as they are."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING

import typer

from harness.cli.groups import index

if TYPE_CHECKING:
    from harness.formats.soci.image import IndexedImage


@index.command("soci")
def soci(
    source: str = typer.Argument(..., metavar="SRC", help="Image: docker://…, oci:…, oci-archive:…, scenario:NAME."),
    destination: str = typer.Argument(..., metavar="DST", help="Where to write it: docker://…, oci:… or oci-archive:…"),
    v1: bool = typer.Option(False, "--v1", help="Write a version 1 index (a referrer of the unchanged image)."),
    v2: bool = typer.Option(False, "--v2", help="Write a version 2 index (image and index in an OCI index; default)."),
    span_size: int = typer.Option(4 << 20, metavar="N", help="Unpacked bytes between two places to start from."),
    min_layer_size: int = typer.Option(10 << 20, metavar="N", help="Layers with fewer bytes are pulled whole."),
    build_tool: str = typer.Option("", metavar="NAME", help="Tool name to write (default: the reference tool's)."),
    prefetch_file: list[str] = typer.Option([], metavar="PATH", help="File whose spans to fetch ahead; repeatable."),
    optimize_xattrs: bool = typer.Option(False, help="Mark layers without extended attributes and opaque directories."),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Index an image for SOCI: its layers stay byte for byte the same and become readable in spans."""
    from harness.cli.bars import blob_progress, open_named
    from harness.errors import UsageError
    from harness.formats.soci import index as soci_index
    from harness.formats.soci.image import Options, index_image
    from harness.oci.descriptor import Platform
    from harness.oci.location import open_destination

    if v1 and v2:
        raise UsageError("--v1 and --v2 exclude each other; run the command twice to have both")
    options = Options(
        version=soci_index.V1 if v1 else soci_index.V2,
        span_size=span_size,
        min_layer_bytes=min_layer_size,
        tool=build_tool or soci_index.REFERENCE_TOOL,
        prefetch_files=tuple(prefetch_file),
        optimise_xattrs=optimize_xattrs,
        platform=Platform.parse(platform) if platform else None,
    )
    began = time.monotonic()
    with open_named(source, as_json) as opened, blob_progress(as_json) as progress:
        opened.resolve(options.platform)
        with contextlib.closing(open_destination(destination)) as output:
            result = index_image(opened, output, options, progress)
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps({"destination": destination, "seconds": round(seconds, 3), **result.to_json()}, indent=2))
    else:
        _print(result, destination, seconds)
    for path in result.prefetch_missing:
        print(f"coldbench: --prefetch-file: no indexed layer has {path!r}", file=sys.stderr)


def _print(result: IndexedImage, destination: str, seconds: float) -> None:
    from rich.table import Table

    from harness.cli.bars import megabytes
    from harness.cli.tables import console as make_console

    table = Table("layer", "stored", "zTOC", "spans", "entries", "remark")
    added = 0
    for number, layer in enumerate(result.layers):
        size = megabytes(layer.layer.size)
        if layer.ztoc is None:
            table.add_row(str(number), size, "", "", "", f"no zTOC: {layer.skipped}")
            continue
        added += layer.ztoc.size
        table.add_row(
            str(number), size, megabytes(layer.ztoc.size), str(layer.spans), str(layer.entries), layer.ztoc.digest[:19]
        )
    console = make_console()
    console.print(table)
    lines = (
        f"{destination}: {result.head.digest}",
        f"SOCI index {result.index.digest}: {megabytes(added)} in {seconds:.1f} s",
    )
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
