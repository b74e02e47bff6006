"""``coldbench image build|push|inspect`` builds a scenario's image, copies an image, and says what one is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from harness.cli import groups
from harness.cli.bars import megabytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.oci.descriptor import Descriptor

PACKAGES_SHOWN = 8
"""So many package directories of a start pack are listed one by one."""
_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


@groups.image.command("build")
def build(
    name: str = typer.Argument(help="A scenario's name, or a scenario file."),
    offline: bool = typer.Option(
        False, "--offline", help="Use images as they are in the cache; ask no registry what their tags mean now."
    ),
    as_json: bool = _JSON,
) -> None:
    """Build (or copy, or find) a scenario's image, once; print where it is, its digest and sizes."""
    from harness import scenarios
    from harness.cli.bars import build_progress
    from harness.images.catalog import obtain
    from harness.oci.location import open_source

    spec = scenarios.load(name).image
    started = time.monotonic()
    with build_progress(as_json) as report:
        obtained = obtain(spec, report=report, offline=offline, called=f"scenario:{name}")
    reference, lookup = obtained.layout, obtained.lookup
    if lookup is not None and lookup.news:
        print(f"coldbench: {lookup.news}", file=sys.stderr)
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
    if lookup is not None:
        facts["lookup"] = dataclasses.asdict(lookup)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(facts["image"])
    print(f"{facts['digest']}  {len(image.layers)} layers, {megabytes(image.compressed_bytes)} stored")


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
    from harness.cli.bars import blob_progress, open_named
    from harness.oci.location import copy_image, open_destination

    with open_named(source_name, as_json) as source, contextlib.closing(open_destination(destination_name)) as target:
        started = time.monotonic()
        moved: dict[str, int] = {}
        with blob_progress(as_json) as advance:

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
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = _JSON,
) -> None:
    """Show layers, sizes, files and ratios, and which lazy forms the image has and what they add."""
    from harness.cli.bars import count_progress, open_named
    from harness.images.inspection import inspect_image
    from harness.oci.descriptor import Platform

    chosen = Platform.parse(platform) if platform else None
    with open_named(name, as_json) as source, count_progress(as_json) as advance:
        facts = inspect_image(source, chosen, read_layers=not fast, advance=advance)
    if as_json:
        print(json.dumps({"image": name, **facts}, indent=2))
    else:
        _print_inspection(name, facts)


def _table(headings: tuple[str, ...], left: set[str]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    return table


def _print_inspection(name: str, facts: dict[str, Any]) -> None:
    from harness.cli.tables import console as make_console

    console = make_console()

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(name)
    line(facts["digest"])
    line(f"{facts['media_type']}, {facts['platform']}\n")
    for remark in facts["remarks"]:
        line(f"note: {remark}\n")
    table = _table(("layer", "digest", "form", "stored", "unpacked", "ratio", "entries", "files"), {"digest", "form"})
    for number, layer in enumerate([*facts["layers"], facts["total"]]):
        plain, stored = layer.get("uncompressed_bytes"), layer["compressed_bytes"]
        table.add_row(
            str(number) if "digest" in layer else "all",
            layer.get("digest", "")[:19],
            layer.get("compression", ""),
            megabytes(stored),
            megabytes(plain) if plain is not None else "?",
            f"{plain / stored:.2f}" if plain is not None and stored else "?",
            str(layer.get("entries", "?")),
            str(layer.get("files", "?")),
        )
    console.print(table)
    rows = list(_lazy_rows(facts))
    if not rows:
        line("\nno lazy form")
        return
    table = _table(("lazy form", "layer", "entries", "pieces", "adds"), {"lazy form", "pieces"})
    for row in rows:
        table.add_row(*row)
    table.add_row("all", "", "", "", megabytes(facts["total"]["added_bytes"]))
    console.print()
    console.print(table)


def _lazy_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields what each lazy form has: (form, layer, entries, pieces, bytes that it adds)."""
    for number, layer in enumerate(facts["layers"]):
        toc = layer.get("estargz")
        if toc is not None and "error" in toc:
            yield toc["form"], str(number), "", toc["error"], "?"
        elif toc is not None:
            first = f", {megabytes(toc['prefetch_bytes'])} prefetched" if toc["prefetch_bytes"] else ""
            entries, adds = str(toc["entries"]), megabytes(toc["toc_bytes"])
            yield f"{toc['form']} TOC", str(number), entries, f"{toc['chunks']} chunks{first}", adds
    for artefact in facts["artefacts"]:
        yield f"{artefact['kind']} {artefact['digest'][:19]}", "", "", artefact["detail"], megabytes(artefact["bytes"])
        yield from _pack_rows(artefact.get("pack"))
        for number, layer in enumerate(facts["layers"]):
            part = layer.get("ztoc" if artefact["kind"].startswith("SOCI") else "erofs")
            if part is None or part["index"] != artefact["digest"]:
                continue
            if "error" in part:
                yield "  zTOC", str(number), "", part["error"], "?"
            elif "entries" in part:
                pieces = f"{part['spans']} spans of {part['span_size']}"
                yield "  zTOC", str(number), str(part["entries"]), pieces, f"({megabytes(part['bytes'])})"
            else:
                pieces = f"{part['spans']} spans, {part['windows']} windows"
                yield "  spans", str(number), "", pieces, f"({megabytes(part['bytes'])})"


def _pack_rows(pack: dict[str, Any] | None) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields what a start pack holds: in all, and of the package directories that it holds most of."""
    from harness.session.reads import package_of

    if pack is None:
        return
    if "error" in pack:
        yield "  start pack", "", "", pack["error"], f"({megabytes(pack['bytes'])})"
        return
    packages: dict[str, list[int]] = {}
    for file in pack["files"]:
        packages.setdefault(package_of(file["path"]), []).append(file["bytes"])
    pieces = f"{megabytes(pack['raw_bytes'])} in {pack['ranges']} ranges, {pack['frames']} frames"
    yield "  start pack", "", str(len(pack["files"])), pieces, f"({megabytes(pack['bytes'])})"
    most = sorted(packages.items(), key=lambda item: (-sum(item[1]), item[0]))
    for name, sizes in most[:PACKAGES_SHOWN]:
        yield "    of it", "", str(len(sizes)), f"{name}: {megabytes(sum(sizes))}", ""
    if rest := most[PACKAGES_SHOWN:]:
        sizes = [size for _, of in rest for size in of]
        yield "    of it", "", str(len(sizes)), f"{len(rest)} more directories: {megabytes(sum(sizes))}", ""
