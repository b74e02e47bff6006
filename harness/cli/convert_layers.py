"""``coldbench convert layers`` makes the same image with its layers compressed otherwise."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import typer

from harness.cli.groups import convert

if TYPE_CHECKING:
    from harness.formats.recompression import ImageRecompression


@convert.command()
def layers(
    source: str = typer.Argument(..., metavar="SRC", help="Image: docker://…, oci:…, oci-archive:…, scenario:NAME."),
    destination: str = typer.Argument(..., metavar="DST", help="Where to write it: docker://…, oci:… or oci-archive:…"),
    compression: str = typer.Option(..., "--compression", metavar="KIND", help="gzip, zstd or none."),
    level: int | None = typer.Option(
        None, "--level", metavar="N", help="gzip 1 to 9 (default 6), zstd 1 to 19 (default 3)."
    ),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Compress an image's layers otherwise; the tars, and so diff IDs and configuration, stay as they are."""
    from harness.cli.converting import converted
    from harness.errors import UsageError
    from harness.formats.recompression import convert_layers
    from harness.model.image import parse_compression

    asked = compression if level is None else f"{compression}:{level}"
    try:
        wanted = parse_compression(asked)
    except ValueError as error:
        raise UsageError(f"--compression {asked}: {error}") from None
    conversion = partial(convert_layers, compression=wanted)
    result, seconds = converted(source, destination, platform, "compressing", conversion, quiet=as_json)
    if as_json:
        print(json.dumps(_document(result, destination, wanted.name, seconds), indent=2))
    else:
        _print(result, destination, seconds)


def _document(result: ImageRecompression, destination: str, compression: str, seconds: float) -> dict[str, object]:
    return {
        "image": destination,
        "manifest": result.manifest.to_json(),
        "compression": compression,
        "seconds": round(seconds, 3),
        "source_bytes": result.source_bytes,
        "target_bytes": result.target_bytes,
        "layers": [
            {
                "source": layer.source.to_json(),
                "target": layer.target.to_json(),
                "diff_id": layer.diff_id,
                "unchanged": layer.unchanged,
                "uncompressed_bytes": layer.uncompressed_bytes,
            }
            for layer in result.layers
        ],
    }


def _print(result: ImageRecompression, destination: str, seconds: float) -> None:
    from rich.table import Table

    from harness.cli.bars import megabytes
    from harness.cli.converting import show

    table = Table("layer", "before", "after", "unpacked", "remark")
    for number, layer in enumerate(result.layers):
        table.add_row(
            str(number),
            megabytes(layer.source.size),
            megabytes(layer.target.size),
            megabytes(layer.uncompressed_bytes) if not layer.unchanged else "",
            layer.unchanged,
        )
    show(table, result, destination, seconds)
