"""``coldbench index erofs IMAGE [DST]`` makes the metadata and checkpoints with which an unchanged image mounts at
once.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from harness.cli.groups import index

if TYPE_CHECKING:
    from harness.formats.erofs.image import IndexedImage
    from harness.formats.erofs.recording import Recording
    from harness.oci.descriptor import Platform

_COMMAND = "harness.command"


class _WithCommand(TyperCommand):
    """Takes what follows ``--`` as a command to run, whatever it looks like."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND], args = tuple(args[at + 1 :]), args[:at]
        return super().parse_args(ctx, args)


@index.command("erofs", cls=_WithCommand)
def erofs(
    context: typer.Context,
    source: str = typer.Argument(..., metavar="IMAGE", help="Image: docker://…, oci:…, oci-archive:…, scenario:NAME."),
    destination: str = typer.Argument(
        "", metavar="[DST]", help="Where to put image and index: docker://…, oci:…; default: beside the image."
    ),
    span_size: int = typer.Option(1 << 20, metavar="N", help="Unpacked bytes between two places to start from."),
    prefetch: Path | None = typer.Option(
        None, metavar="FILE", help="Names of files needed at start, one a line, the first ones first."
    ),
    record: list[str] = typer.Option(
        None, "--record", metavar="SCENARIO", help="Record a start of this scenario, and pack what it asks for."
    ),
    pack: list[Path] = typer.Option(
        None, "--pack", metavar="FILE", help="Pack what this recording asks for (of `coldbench trace --pack FILE`)."
    ),
    pack_max: int = typer.Option(
        64, "--pack-max", metavar="MB", min=1, max=1024, help="Pack no more than this, unpacked; the first of it."
    ),
    no_pack: bool = typer.Option(
        False, "--no-pack", help="Make no pack, also where the image's index had one (which is kept otherwise)."
    ),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Index an image for mode erofs: its layers stay byte for byte the same.

    A start pack lets a start stream what a recorded one asked for. `-- COMMAND…` at the end records a start of this
    command in the image; several recordings are united.
    """
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
    chosen = Platform.parse(platform) if platform else None
    command = context.meta.get(_COMMAND, ())
    if no_pack and (record or pack or command):
        raise UsageError("--no-pack: expected no recording beside it (--record, --pack, -- COMMAND)")
    if command == () and _COMMAND in context.meta:
        raise UsageError("--: expected the command to record after it")
    recordings = (*_read(pack or []), *_record(source, record or [], command))
    if not recordings and not no_pack:
        recordings = _kept(source, chosen)
    options = Options(
        span_bytes=span_size, prefetch=names, platform=chosen, recordings=recordings, pack_bytes=pack_max * 1_000_000
    )
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


def _read(files: list[Path]) -> list[Recording]:
    """Returns the recordings of these files. Raises UsageError."""
    from harness.errors import FormatError, UsageError
    from harness.formats.erofs.recording import Recording

    found = []
    for file in files:
        try:
            found.append(Recording.decode(file.read_bytes()))
        except OSError as error:
            raise UsageError(f"--pack {file}: {error.strerror}") from None
        except FormatError as error:
            raise UsageError(f"--pack {file}: {error}; coldbench trace SCENARIO --pack FILE makes one") from None
    return found


def _record(source: str, scenarios: list[str], command: tuple[str, ...]) -> list[Recording]:
    """Records a start of each scenario, and of the command in the image itself. Raises ColdbenchError."""
    from harness import scenarios as files
    from harness.cli.progress import make_progress
    from harness.drafting import Wish
    from harness.drafting import draft as drafted
    from harness.session.launching import Launcher

    wanted = [files.load(files.find(name)) for name in scenarios]
    if command:
        image = _beside(source) if source.startswith("scenario:") else source
        made = drafted(Wish(image, command, shape="unlimited", quick=True, blocks=1), {}, ())
        wanted.append(files.parse(made.text, f"the command recorded of {source}"))
    if not wanted:
        return []
    found = []
    with make_progress(sys.stderr) as progress, Launcher(progress) as launcher:
        for scenario in wanted:
            setups = launcher.side_setups(scenario)
            found.append(setups.side.record(scenario))
    return found


def _kept(source: str, platform: Platform | None) -> tuple[Recording, ...]:
    """Returns what the pack of the image's present index holds; nothing where it has none, or none that can be read."""
    from harness.cli.bars import open_named
    from harness.errors import ContentError, ImageNotFound
    from harness.formats.erofs.image import find_erofs_index
    from harness.formats.erofs.index import index_parts, load_erofs_index
    from harness.formats.erofs.packing import load_pack, recording_of

    with open_named(source, True) as opened:
        image = opened.resolve(platform)
        try:
            _, manifest = find_erofs_index(opened, image.descriptor)
            head, _ = index_parts(manifest, image.descriptor.digest)
            present = load_erofs_index(manifest, opened.open_blob(head).read(), image.descriptor, image.layers)
            made = load_pack(opened, image, manifest, present)
        except ImageNotFound:
            return ()
        except ContentError as error:
            print(f"coldbench: the image's index is made anew, without its pack: {error}", file=sys.stderr)
            return ()
    return () if made is None else (recording_of(made.pack, present),)


def _beside(source: str) -> str:
    """Returns the place of the image itself, for writing."""
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
    packed = result.pack
    said = "" if packed is None else (
        f"; its start pack of {megabytes(packed.size)} holds {megabytes(result.pack_raw_bytes)} of the image"
    )  # fmt: skip
    summary = (
        f"EROFS index {result.index.digest} in {seconds:.1f} s: {result.inodes} inodes in "
        f"{megabytes(result.metadata_bytes)} of metadata; a start fetches {megabytes(result.head_bytes)} first{said}"
    )
    console.print(f"{place}: {result.image.digest}\n{summary}", highlight=False, markup=False, soft_wrap=True)
