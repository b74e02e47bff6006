"""Scenarios with axes, whole: the points of a small real image in the same blocks, and their report."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.gate.schemas import schema
from harness.session.store import load
from tests.engines.support import base_layer, directory, tar_bytes
from tests.session.support import write_layout
from tests.session.test_run import Command, undisturbed

if TYPE_CHECKING:
    from harness.model.observation import Observation

pytestmark = pytest.mark.root

DENSITY = """\
name = "share"
image = {{ layout = "{layout}" }}
shapes = ["cpu=1,memory=256M"]
modes = ["overlay2:tuned", "erofs"]
blocks = 1
lazy = {{ background = false }}

[workload]
reads = {{ percent = 10 }}
readiness = {{ kind = "exit" }}

[axes]
read_percent = [10, 100]
"""


COMPRESSION = """\
name = "packed"
image = {{ layout = "{layout}" }}
shapes = ["cpu=1,memory=256M"]
modes = ["overlay2:tuned", "soci", "erofs"]
blocks = 1

[workload]
command = ["/usr/bin/perl", "-e", "print 'ready'"]
readiness = {{ kind = "exit" }}

[axes]
compression = ["gzip", "zstd", "none"]
"""


def read_of(o: Observation) -> dict[str, int]:
    """What a start read, in numbers."""
    assert o.details.reads is not None
    return {name: number for name, number in o.details.reads.items() if isinstance(number, int)}


STORM = """\
name = "storm"
image = {{ layout = "{layout}" }}
shapes = ["cpu=0.5,memory=128M"]
modes = ["overlay2:tuned", "erofs"]
blocks = 1

[workload]
command = ["/bin/probe", "exit"]
readiness = {{ kind = "exit" }}

[storm]
machines = 1
images = "distinct"
uplink = "400Mbit"

[axes]
machines = [1, 3]
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    made = tmp_path_factory.mktemp("axes")
    return Command(made / "cache", made)


def reader_layer() -> bytes:
    """The system's perl with its libraries, and some files to read."""
    linked = subprocess.run(["ldd", "/usr/bin/perl"], capture_output=True, text=True, check=True).stdout
    files = {"/usr/bin/perl", *re.findall(r"(/\S+) \(0x", linked)}
    places = {parent for path in files for parent in _parents(path)}
    entries = [(place.lstrip("/"), directory()) for place in sorted(places)]
    for path in sorted(files):
        with open(path, "rb") as file:
            entries.append((path.lstrip("/"), {"data": file.read(), "mode": 0o755}))
    entries.append(("data", directory()))
    entries += [(f"data/f{n}", {"data": os.urandom(40_000), "mode": 0o600}) for n in range(100)]
    return tar_bytes(entries)


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]


def test_a_start_that_reads_a_share(command: Command) -> None:
    """Both shares under both modes in one block: each reads what it says, and the report has the curve."""
    layout = write_layout(command.directory / "layout", [base_layer(), reader_layer()])
    path = command.directory / "share.toml"
    path.write_text(DENSITY.format(layout=layout))
    code, out, err = command.run("bench", str(path), "--out", "s", "--json", "--seed", "2")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema("comparison"))
    (density,) = document["densities"]
    assert (density["against"], density["curves"][0]["label"]) == ("overlay2:tuned", "erofs:tuned")
    assert [point["percent"] for point in density["curves"][0]["points"]] == [10, 100]
    _header, seen = load(command.directory / "s")
    assert len(seen) == 4
    for o in seen:
        assert undisturbed(o), o.invalid
        reads = read_of(o)
        assert o.output_tail == f"read {reads['bytes']} bytes in {reads['pieces']} pieces\n"
        assert reads["bytes"] >= reads["of_bytes"] * (o.case.read_percent or 0) / 100
    read = {o.case.read_percent: read_of(o)["bytes"] for o in seen}
    assert read[10] < read[100] == read_of(seen[0])["of_bytes"]


def test_one_image_compressed_three_ways(command: Command) -> None:
    """Full pulls of all three and lazy starts of the two that can be read in part; plain layers move the most bytes."""
    layout = write_layout(command.directory / "packed", [base_layer(), reader_layer()])
    path = command.directory / "packed.toml"
    path.write_text(COMPRESSION.format(layout=layout))
    code, out, err = command.run("bench", str(path), "--out", "p", "--json", "--seed", "2")
    assert code == 0, err
    assert "left out: packed.zstd, mode soci:tuned: a zTOC leads into gzip and plain tar" in err
    document = json.loads(out)
    jsonschema.validate(document, schema("comparison"))
    (packing,) = document["packings"]
    assert {case["label"]: len(case["points"]) for case in packing["cases"]} == {
        "overlay2:tuned": 3, "soci:tuned": 2, "erofs:tuned": 2
    }  # fmt: skip
    _header, seen = load(command.directory / "p")
    assert all(undisturbed(o) for o in seen), [o.invalid for o in seen]
    received = {o.case.compression: o.wire_before_ready.received_bytes or 0 for o in seen if o.case.mode == "overlay2"}
    assert received["zstd"] < received["none"] > received["gzip"]


def test_machines_that_start_together(command: Command) -> None:
    """Three machines with images of their own behind one line: each is ready, and each fetched its own bytes."""
    layout = write_layout(command.directory / "storm", [base_layer()])
    path = command.directory / "storm.toml"
    path.write_text(STORM.format(layout=layout))
    code, out, err = command.run("bench", str(path), "--out", "t", "--json", "--seed", "2")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema("comparison"))
    (storm,) = document["storms"]
    assert (storm["images"], storm["uplink_bytes_s"]) == ("distinct", 50_000_000)
    assert {case["label"]: [p["machines"] for p in case["points"]] for case in storm["cases"]} == {
        "overlay2:tuned": [1, 3], "erofs:tuned": [1, 3]
    }  # fmt: skip
    _header, seen = load(command.directory / "t")
    for o in seen:
        assert undisturbed(o), o.invalid
        assert len(o.storm) == o.case.machines
        assert o.time_to_ready_s == max(machine.ready_s or 0.0 for machine in o.storm)
    received = {o.case.machines: o.wire_before_ready.received_bytes or 0 for o in seen if o.case.mode == "overlay2"}
    assert 2.5 * received[1] < received[3] < 3.5 * received[1]
