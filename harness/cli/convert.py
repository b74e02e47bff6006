"""``coldbench convert estargz`` turns an image into its eStargz form, which can be pulled lazily."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import typer

from harness.cli.groups import convert

if TYPE_CHECKING:
    from harness.formats.estargz.image import ImageConversion


@convert.command()
def estargz(
    source: str = typer.Argument(..., metavar="SRC", help="Image: docker://…, oci:…, oci-archive:…, scenario:NAME."),
    destination: str = typer.Argument(..., metavar="DST", help="Where to write it: docker://…, oci:… or oci-archive:…"),
    prioritize: str = typer.Option(
        "", metavar="FILE", help="Names of files needed at start, one a line; they go first and are prefetched."
    ),
    chunk_size: int = typer.Option(4 << 20, metavar="N", help="Bytes of a file that are fetched and verified at once."),
    min_chunk_size: int = typer.Option(
        0, metavar="N", help="Let small files share a gzip member until it holds this many bytes unpacked."
    ),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Convert an image to eStargz: same files, but any of them can be read without downloading the layer."""
    from harness.cli.converting import converted
    from harness.formats.estargz.image import convert_image
    from harness.formats.estargz.writer import EstargzOptions

    options = EstargzOptions(chunk_size, min_chunk_size, _names(prioritize))
    conversion = partial(convert_image, options=options)
    result, seconds = converted(source, destination, platform, "converting", conversion, quiet=as_json)
    if as_json:
        print(json.dumps(_document(result, destination, seconds), indent=2))
    else:
        _print(result, destination, seconds)
    _warn(result)


def _names(path: str) -> tuple[str, ...]:
    """Returns the names in a priority file (``-`` is standard input), blank lines and comments left out."""
    from harness.errors import UsageError

    if not path:
        return ()
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prioritize {path}: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    names = tuple(line for line in lines if line and not line.startswith("#"))
    for name in names:
        if ".." in name.split("/") or "\0" in name:
            raise UsageError(f"--prioritize {path}: {name!r} is not a name inside an image")
    return names


def _document(result: ImageConversion, destination: str, seconds: float) -> dict[str, object]:
    return {
        "image": destination,
        "manifest": result.manifest.to_json(),
        "seconds": round(seconds, 3),
        "source_bytes": result.source_bytes,
        "target_bytes": result.target_bytes,
        "missing": list(result.missing),
        "layers": [
            {
                "source": layer.source.to_json(),
                "target": layer.target.to_json(),
                "diff_id": layer.diff_id,
                "unchanged": layer.unchanged,
                "entries": layer.entries,
                "uncompressed_bytes": layer.uncompressed_bytes,
                "unencodable_names": layer.unencodable_names,
            }
            for layer in result.layers
        ],
    }


def _print(result: ImageConversion, destination: str, seconds: float) -> None:
    from rich.table import Table

    from harness.cli.bars import megabytes
    from harness.cli.converting import show

    table = Table("layer", "before", "after", "change", "entries", "remark")
    for number, layer in enumerate(result.layers):
        before, after = layer.source.size, layer.target.size
        table.add_row(
            str(number),
            megabytes(before),
            megabytes(after),
            f"{(after / before - 1) * 100:+.1f} %" if before else "",
            str(layer.entries or ""),
            layer.unchanged,
        )
    show(table, result, destination, seconds)


def _warn(result: ImageConversion) -> None:
    for name in result.missing:
        print(f"coldbench: --prioritize: no layer has {name!r}", file=sys.stderr)
    odd = sum(layer.unencodable_names for layer in result.layers)
    if odd:
        print(
            f"coldbench: {odd} names are not UTF-8; eStargz cannot hold them and shows U+FFFD instead", file=sys.stderr
        )
