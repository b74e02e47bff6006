"""This program runs our conversions beside those they imitate: the same image in turn, wall and CPU time, the bytes.

    python -m harness.engines.build.conversions [SCENARIO [PAIRS]]

``soci convert --standalone`` is asked for what ``coldbench index soci`` writes. What ``ctr-remote image convert
--estargz`` does is done by its libraries: the command's own module replaces them by directories beside it, so that no
pinned ``go build`` makes it, and it needs a containerd that runs (``harness/engines/build/stargz``).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.engines.build.programs import KITS, built
from harness.errors import ColdbenchError, MissingTool, WorkloadError
from harness.formats.estargz.footer import LONGEST_FOOTER_BYTES, parse_footer
from harness.formats.estargz.toc import decode_toc, inflate_toc
from harness.images.catalog import locate
from harness.oci.reference import parse_reference
from harness.stats.paired import PairedRatio, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = 6


@dataclass(frozen=True, slots=True)
class Run:
    """Holds one conversion: what it took, and what tells its result from another."""

    wall_s: float
    cpu_s: float
    digest: str


def timed(argv: list[str]) -> tuple[float, float]:
    """Runs a converter; returns seconds of wall time and of CPU. Raises WorkloadError with its last line."""
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _pid, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            words = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise WorkloadError(f"{argv[0]} ended with {process.returncode}: {' '.join(words) or 'no output'}")
    return wall_s, used.ru_utime + used.ru_stime


@dataclass(frozen=True, slots=True)
class Conversion:
    """Says how an image is converted by ours and by theirs, and what has to come out the same."""

    ours: str
    """Names the command of ours, as a user types it before source and target."""
    theirs: str
    program: str
    """Names the program that ``nox -s engines`` builds."""
    of_theirs: Callable[[str, Path, str, Path], list[str]]
    """Returns the command line for a program, a layout, its tag, and the layout to write."""
    same: Callable[[Path], str]
    """Returns what tells the results apart, of a layout."""
    alike: str
    """Names what that is."""


def compare(conversion: Conversion, layout: Path, tag: str, pairs: int) -> list[tuple[Run, Run]]:
    """Runs so many pairs of ours and theirs, each side first in turn. Raises MissingTool or WorkloadError."""
    program = built(conversion.program)
    if not program:
        raise MissingTool(f"{conversion.program} is not built; run `./dev engines`")
    found = []
    for number in range(pairs):
        with tempfile.TemporaryDirectory(prefix="coldbench-conversions-", dir="/var/tmp") as name:
            ours, theirs = Path(name, "ours"), Path(name, "theirs")
            argv = {
                ours: [sys.executable, "-m", "harness", *conversion.ours.split()[1:],
                       f"oci:{layout}:{tag}", f"oci:{ours}:{tag}"],
                theirs: conversion.of_theirs(program, layout, tag, theirs),
            }  # fmt: skip
            runs = {}
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                wall_s, cpu_s = timed(argv[side])
                runs[side] = Run(wall_s, cpu_s, conversion.same(side))
            found.append((runs[ours], runs[theirs]))
    return found


def _head(layout: Path) -> str:
    (head,) = {entry["digest"] for entry in json.loads((layout / "index.json").read_text("utf-8"))["manifests"]}
    return str(head)


def _tables(layout: Path) -> str:
    """Returns a digest of the layers' tables of contents, without the places in the blob.

    Compressed bytes, and with them all places, differ from one deflate to another. Files, their order, attributes,
    chunks and the chunks' digests do not.
    """

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    manifest = json.loads(blob(_head(layout)))
    if "manifests" in manifest:
        manifest = json.loads(blob(manifest["manifests"][0]["digest"]))
    state = hashlib.sha256()
    for layer in manifest["layers"]:
        data = blob(layer["digest"])
        footer = parse_footer(data[-LONGEST_FOOTER_BYTES:], len(data))
        for entry in decode_toc(inflate_toc(data[footer.toc_offset : footer.toc_end])):
            entry.offset = 0
            state.update(msgspec.json.encode(entry))
    return state.hexdigest()


CONVERSIONS = (
    Conversion(
        "coldbench index soci",
        "soci convert --standalone",
        "soci",
        lambda program, layout, _, out: [
            program, "--root", str(out.with_name("root")), "convert", "--standalone", "--format", "oci-dir",
            str(layout), str(out),
        ],
        _head,
        "bytes",
    ),
    Conversion(
        "coldbench convert estargz",
        "the libraries of ctr-remote image convert --estargz",
        "coldbench-estargz-convert",
        lambda program, layout, tag, out: [program, str(layout), tag, str(out)],
        _tables,
        "files, chunks and digests",
    ),
)  # fmt: skip


def sentence(conversion: Conversion, scenario: str, found: list[tuple[Run, Run]], version: str) -> str:
    """Writes the pairs of one conversion as a sentence in Markdown."""
    same = all(ours.digest == theirs.digest for ours, theirs in found)
    result = f"the same {conversion.alike} each time" if same else f"NOT the same {conversion.alike}"
    wall = paired_ratio([a.wall_s for a, _ in found], [b.wall_s for _, b in found])
    cpu = paired_ratio([a.cpu_s for a, _ in found], [b.cpu_s for _, b in found])
    return (
        f"`{conversion.ours}` beside `{conversion.theirs}` {version} on the image of scenario {scenario}, "
        f"{len(found)} pairs in turn: {result}; wall time "
        f"{_said(wall)}, CPU {_said(cpu)}, ours over theirs.\n"
    )


def _said(ratio: PairedRatio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2f} (no interval)"
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def main() -> int:
    scenario = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    try:
        place = locate(parse_reference(f"scenario:{scenario}"))
        versions = {program: kit.version for kit in KITS for program in kit.packages}
        lines = ["## Conversions\n"]
        for conversion in CONVERSIONS:
            found = compare(conversion, Path(place.path).absolute(), place.tag, pairs)
            lines.append(sentence(conversion, scenario, found, versions[conversion.program]))
        sys.stdout.write("\n".join(lines))
    except ColdbenchError as error:
        sys.stderr.write(f"conversions: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
