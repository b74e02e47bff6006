"""What ``convert`` and ``index`` leave when they are killed, and who removes it. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.machine import records
from harness.machine.leftovers import sweep
from tests.engines.support import tar_bytes
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

_CONVERTS = """
import sys, threading
from pathlib import Path
from harness.formats.estargz.image import convert_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci.image import Options, index_image
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
kind, image, place = sys.argv[1:]

def stop(*_arguments):
    print("inside", flush=True)
    threading.Event().wait()

with open_source(f"oci:{image}") as source:
    target = LayoutStore(Path(place) / "target", "image", create=True)
    if kind == "convert":
        convert_image(source, source.resolve(), target, EstargzOptions(), scratch=place, progress=stop)
    else:
        index_image(source, target, Options(min_layer_bytes=0), stop)
"""


@pytest.mark.parametrize("kind", ["convert", "index"])
def test_what_a_killed_conversion_had_unpacked_goes(tmp_path: Path, kind: str) -> None:
    """One that was killed in the middle leaves its directory to ``clean``, which removes it by its record."""
    image = write_layout(tmp_path / "image", [tar_bytes([("file", {"data": os.urandom(100_000), "mode": 0o644})])])
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _CONVERTS, kind, image, str(work)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(work)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    (made,) = work.glob("coldbench-*")
    record = records.RUN_DIR / f"{made.name.removeprefix('coldbench-')}.json"
    assert record.exists()
    process.kill()
    process.communicate()
    sweep()
    assert not made.exists()
    assert not record.exists()
