"""``coldbench image build|push|inspect``."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import typer

from harness.cli import groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.oci.descriptor import Descriptor

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


@groups.image.command("build")
def build(name: str = typer.Argument(help="A scenario's name, or a scenario file."), as_json: bool = _JSON) -> None:
    """Build (or copy, or find) a scenario's image, once; print where it is, its digest and sizes."""
    from harness import scenarios
    from harness.oci.catalog import materialise
    from harness.oci.location import open_source

    spec = scenarios.load(name).image
    started = time.monotonic()
    with build_progress(as_json) as report:
        reference = materialise(spec, report=report)
    with open_source(reference) as source:
        image = source.resolve()
    facts: dict[str, Any] = {
        "image": str(reference),
        "digest": image.descriptor.digest,
        "platform": str(image.platform),
        "layers": [layer.to_json() for layer in image.layers],
        "compressed_bytes": image.compressed_bytes,
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(facts["image"])
    print(f"{facts['digest']}  {len(image.layers)} layers, {megabytes(image.compressed_bytes)} compressed")


@groups.image.command("push")
def push(
    source_name: str = typer.Argument(metavar="SRC", help="The image, named as skopeo does, or scenario:NAME."),
    destination_name: str = typer.Argument(
        metavar="DST", help="docker://HOST/NAME:TAG, oci:DIR:TAG or oci-archive:FILE."
    ),
    referrers: bool = typer.Option(True, help="Copy indexes and other artefacts that refer to the image, too."),
    as_json: bool = _JSON,
) -> None:
    """Copy an image with its artefacts; what the destination has already is passed over."""
    from harness.oci.location import copy_image, open_destination

    with open_named(source_name, as_json) as source, contextlib.closing(open_destination(destination_name)) as target:
        started = time.monotonic()
        moved: dict[str, int] = {}
        with copy_progress(as_json) as advance:

            def progress(descriptor: Descriptor, count: int) -> None:
                moved[descriptor.digest] = moved.get(descriptor.digest, 0) + count
                advance(descriptor, count)

            result = copy_image(source, target, referrers=referrers, progress=progress)
    facts = {
        "source": source_name,
        "destination": destination_name,
        "digest": result.digest,
        "media_type": result.media_type,
        "blobs": len(moved),
        "bytes": sum(moved.values()),
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print(f"{result.digest}  {len(moved)} blobs, {megabytes(sum(moved.values()))}")


@groups.image.command("inspect")
def inspect(
    name: str = typer.Argument(metavar="IMAGE", help="The image, named as skopeo does, or scenario:NAME."),
    fast: bool = typer.Option(False, "--fast", help="Manifests and indexes only; do not read the layers."),
    as_json: bool = _JSON,
) -> None:
    """Show layers, sizes, files and ratios, and which lazy forms the image has and what they add."""
    from harness.oci.inspection import inspect_image

    with open_named(name, as_json) as source, count_progress(as_json) as advance:
        facts = inspect_image(source, read_layers=not fast, advance=advance)
    if as_json:
        print(json.dumps({"image": name, **facts}, indent=2))
    else:
        _print_inspection(name, facts)


@contextlib.contextmanager
def open_named(name: str, quiet: bool) -> Iterator[Any]:
    """An image source; a scenario's image is built first, with a progress bar."""
    from harness.oci.catalog import scenario_layout
    from harness.oci.location import open_source
    from harness.oci.reference import parse_reference

    reference = parse_reference(name)
    if reference.transport == "scenario":
        with build_progress(quiet) as report:
            reference = scenario_layout(reference.name, report=report)
    with open_source(reference) as source:
        yield source


def megabytes(count: int) -> str:
    """Bytes in decimal units, three digits that count."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"


@contextlib.contextmanager
def _bar(quiet: bool, *, transfer: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()]
    console = Console(stderr=True)
    # Away from a terminal, only what was built is worth a line.
    hidden = quiet or (transfer and not console.is_terminal)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=transfer, disable=hidden) as progress:
        yield progress


@contextlib.contextmanager
def build_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for `build_recipe`: one line per thing that is done, bytes where they are known."""
    with _bar(quiet, transfer=False) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.stop_task(task)
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done, total=total or None)

        yield report


@contextlib.contextmanager
def copy_progress(quiet: bool) -> Iterator[Callable[[Any, int], None]]:
    """A bar for `copy_image`: one line per blob."""
    with _bar(quiet, transfer=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(descriptor: Descriptor, count: int) -> None:
            if descriptor.digest not in tasks:
                tasks[descriptor.digest] = progress.add_task(descriptor.hex[:12], total=descriptor.size)
            progress.advance(tasks[descriptor.digest], count)

        yield advance


@contextlib.contextmanager
def count_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for reading layers: (what, bytes so far, bytes in all)."""
    with _bar(quiet, transfer=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield advance


def _print_inspection(name: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{name}", markup=False)
    console.print(f"{facts['digest']}  {facts['media_type']}  {facts['platform']}", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "form", "compressed", "unpacked", "ratio", "entries", "lazy form"):
        table.add_column(heading, justify="left" if heading in {"layer", "form", "lazy form"} else "right")
    for layer in facts["layers"]:
        plain = layer.get("uncompressed_bytes")
        table.add_row(
            layer["digest"][:19],
            layer["compression"],
            megabytes(layer["compressed_bytes"]),
            megabytes(plain) if plain is not None else "?",
            f"{layer['ratio']:.2f}" if layer.get("ratio") else "?",
            str(layer.get("entries", "?")),
            layer.get("lazy", "") or "none",
        )
    console.print(table)
    total = facts["total"]
    line = f"total {megabytes(total['compressed_bytes'])} compressed"
    if total.get("uncompressed_bytes") is not None:
        line += f", {megabytes(total['uncompressed_bytes'])} unpacked, {total['entries']} entries"
    console.print(line, markup=False)
    for artefact in facts["artefacts"]:
        console.print(
            f"{artefact['kind']}: {artefact['digest'][:19]}, adds {megabytes(artefact['bytes'])}"
            + (f", {artefact['detail']}" if artefact.get("detail") else ""),
            markup=False,
        )
