"""The machines of trials that run out of band."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.formats.soci import image as soci_image
from harness.lazyfs.plan import plan_layers
from harness.model.modes import tracer
from harness.scenarios import parse
from harness.session import traces
from harness.session.setups import recorded_scenario, roomy_shape
from tests.lazyfs.support import File, convert, noise, tar_of, write_image

if TYPE_CHECKING:
    from pathlib import Path


def test_out_of_band_trials_leave_the_host_memory() -> None:
    """Nothing slows them down, but a workload that eats all memory is stopped long before the host is."""
    shape = roomy_shape()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert shape.memory_bytes == physical // 2
    assert (shape.baseline_cores, shape.network, shape.disk, shape.label) == (None, None, None, "unlimited")


@pytest.mark.files
def test_a_trace_sees_what_is_read_of_small_layers(tmp_path: Path) -> None:
    """The mode that traces serves every layer; soci unpacks those without an index, unseen."""
    least = soci_image.Options().min_layer_bytes
    source = write_image(tmp_path / "image", [tar_of(File("large", noise(least + 1000))), tar_of(File("small", b"x"))])
    unpacked = {}
    for mode in ("soci", tracer().name):
        options = {"min_layer_bytes": least} if mode == "soci" else {}
        converted = convert(source, tmp_path / mode, mode, **options)
        unpacked[mode] = plan_layers(converted, converted.resolve(), mode).unpack
    assert unpacked == {"soci": (1,), tracer().name: ()}


def test_what_is_recorded_in_place_of_the_workload() -> None:
    """The same image, another command that is ready when it has ended; without one the scenario itself."""
    scenario = parse(
        'name = "web"\nimage = { ref = "docker://registry.example/web:1" }\n'
        'workload = { command = ["serve"], readiness = { kind = "tcp", port = 80 } }\n',
        "web.toml",
    )
    assert recorded_scenario(scenario, ()) is scenario
    other = recorded_scenario(scenario, ["true", "x"])
    assert (other.name, other.image) == (scenario.name, scenario.image)
    assert other.workload.command == ("true", "x")
    assert other.workload.readiness.kind == "exit"
    assert traces.key_of("sha256:1", other.workload) != traces.key_of("sha256:1", scenario.workload)
