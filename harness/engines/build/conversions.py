"""This program runs our conversion beside the one it imitates: the same image in turn, wall and CPU time, the same
bytes.

    python -m harness.engines.build.conversions [SCENARIO [PAIRS]]

``soci convert --standalone`` is asked for what ``coldbench index soci`` writes. ``ctr-remote`` is not compared: its
module replaces its own libraries by directories beside it, so that no pinned ``go build`` makes it, and it needs a
containerd that runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.engines.build.programs import built
from harness.errors import ColdbenchError, MissingTool, WorkloadError
from harness.images.catalog import locate
from harness.oci.reference import parse_reference
from harness.stats.paired import PairedRatio, paired_ratio

PAIRS = 6


@dataclass(frozen=True, slots=True)
class Run:
    """Holds one conversion: what it took, and the digest of what it wrote."""

    wall_s: float
    cpu_s: float
    digest: str


def timed(argv: list[str], out: Path) -> Run:
    """Runs a converter that writes the layout ``out``. Raises WorkloadError with its last line."""
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
    (head,) = {entry["digest"] for entry in json.loads((out / "index.json").read_text("utf-8"))["manifests"]}
    return Run(wall_s, used.ru_utime + used.ru_stime, head)


def compare(layout: Path, tag: str, soci: str, pairs: int) -> list[tuple[Run, Run]]:
    """Runs so many pairs of ours and theirs, each side first in turn. Raises WorkloadError."""
    found = []
    for number in range(pairs):
        with tempfile.TemporaryDirectory(prefix="coldbench-conversions-", dir="/var/tmp") as name:
            place = Path(name)
            ours = [
                sys.executable,
                "-m",
                "harness",
                "index",
                "soci",
                f"oci:{layout}:{tag}",
                f"oci:{place / 'ours'}:{tag}",
            ]
            theirs = [soci, "--root", str(place / "root"), "convert", "--standalone", "--format", "oci-dir",
                      str(layout), str(place / "theirs")]  # fmt: skip
            runs = {}
            for side, argv in (
                (("ours", ours), ("theirs", theirs)) if number % 2 else (("theirs", theirs), ("ours", ours))
            ):
                runs[side] = timed(argv, place / side)
            found.append((runs["ours"], runs["theirs"]))
    return found


def section(scenario: str, found: list[tuple[Run, Run]], version: str) -> str:
    """Writes the pairs as Markdown."""
    same = all(ours.digest == theirs.digest for ours, theirs in found)
    wall = paired_ratio([a.wall_s for a, _ in found], [b.wall_s for _, b in found])
    cpu = paired_ratio([a.cpu_s for a, _ in found], [b.cpu_s for _, b in found])
    return (
        "## Conversions\n\n"
        f"`coldbench index soci` beside `soci convert --standalone` {version} on the image of scenario {scenario}, "
        f"{len(found)} pairs in turn: {'the same bytes each time' if same else 'NOT the same bytes'}; wall time "
        f"{_said(wall)}, CPU {_said(cpu)}, ours over theirs.\n\n"
        "`ctr-remote` is not compared: no pinned build makes it (docs/performance.md has one run of it).\n"
    )


def _said(ratio: PairedRatio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2f} (no interval)"
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def main() -> int:
    scenario = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    try:
        soci = built("soci")
        if not soci:
            raise MissingTool("soci is not built; run `./dev engines -- soci`")
        place = locate(parse_reference(f"scenario:{scenario}"))
        said = subprocess.run([soci, "--version"], capture_output=True, text=True, check=False).stdout.split()
        found = compare(Path(place.path), place.tag, soci, pairs)
        sys.stdout.write(section(scenario, found, said[2] if len(said) > 2 else ""))
    except ColdbenchError as error:
        sys.stderr.write(f"conversions: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
