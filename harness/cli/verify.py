"""``coldbench verify IMAGE`` checks whether every byte of an image is what it claims to be, in full and lazily."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.images.verification import Verification


def verify(
    image: str = typer.Argument(..., metavar="IMAGE", help="docker://…, oci:…, oci-archive:…, scenario:NAME."),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    as_json: bool = typer.Option(False, "--json", help="Print every check as JSON."),
) -> None:
    """Check every digest of an image, and that its lazy forms give byte for byte what a full unpack gives.

    Manifest, config, layers, diff IDs; eStargz TOCs and chunks, SOCI zTOCs and spans; all files and all metadata.
    Ends in exit code 5 when anything does not hold.
    """
    from harness.cli.bars import bar, open_named
    from harness.errors import ContentError
    from harness.images.verification import verify_image
    from harness.oci.descriptor import Platform

    with open_named(image, as_json) as source, bar(as_json) as shown:
        resolved = source.resolve(Platform.parse(platform) if platform else None)
        task = shown.add_task("verifying", total=resolved.compressed_bytes)
        result = verify_image(
            source,
            resolved,
            scratch=os.environ.get("TMPDIR") or "/var/tmp",
            progress=lambda _layer, count: shown.advance(task, count),
        )
    if as_json:
        print(json.dumps(_document(image, resolved.descriptor.digest, result), indent=2))
    else:
        for check in result.checks:
            print(f"{'ok    ' if check.holds else 'FAILED'}  {check.subject}: {check.what}")
    problems = result.problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ContentError(f"{image}: {problems[0]}{more}")


def _document(image: str, digest: str, result: Verification) -> dict[str, object]:
    return {
        "image": image,
        "manifest": digest,
        "ok": not result.problems,
        "checks": [
            {"subject": check.subject, "what": check.what, "ok": check.holds, "problems": list(check.problems)}
            for check in result.checks
        ],
    }


def register(app: typer.Typer) -> None:
    app.command()(verify)
