"""What the tests of the real containerd share: images in every form, a deployment, and what must be gone afterwards."""

from __future__ import annotations

import os
import select
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.engines import make_engine
from harness.engines.containerd import ContainerdEngine
from harness.engines.protocol import DeployRequest, Process, Unwatched
from harness.formats.estargz.image import convert_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci.image import Options, index_image
from harness.model.engine import ContainerdChoice
from harness.model.timeline import Recorder
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from tests.engines.support import REPOSITORY, TestRegistry, base_layer, directory, tar_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.engines.container import RunningContainer
    from harness.engines.protocol import Watch
    from harness.machine.machine import Machine

#: What no compressor makes smaller, so that a layer of it is large on the wire, too.
NOISE = os.urandom(1 << 20)


def needs(mode: str, preset: str = "") -> None:
    """Skip, with the reason, where the real programs are not there."""
    if reason := ContainerdEngine(ContainerdChoice()).available(mode, preset).reason:
        pytest.skip(f"engine containerd: {reason}")


def layers(megabytes: int = 12) -> list[bytes]:
    """The test image's program, and a large layer above it that a start does not read."""
    files = [(f"data/{n}", {"data": NOISE[n:] + NOISE[:n], "mode": 0o644}) for n in range(megabytes)]
    return [base_layer(), tar_bytes([("data", directory()), *files])]


def publish(registry: TestRegistry, scratch: Path, megabytes: int = 12) -> None:
    """Push one image as ``plain``, ``esgz`` and ``soci``."""
    registry.push("plain", layers(megabytes))
    for tag in ("esgz", "soci"):
        with open_source(f"docker://{registry.host}/{REPOSITORY}:plain") as source:
            layout = LayoutStore(scratch / tag, tag, create=True)
            if tag == "esgz":
                (scratch / "work").mkdir()
                convert_image(source, source.resolve(), layout, EstargzOptions(), scratch=scratch / "work")
            else:
                index_image(source, layout, Options(min_layer_bytes=0))
            layout.close()
        with open_source(f"oci:{scratch / tag}:{tag}") as source:
            destination = open_destination(f"docker://{registry.host}/{REPOSITORY}:{tag}")
            copy_image(source, destination, tag)
            destination.close()


def request(registry: TestRegistry, machine: Machine, tag: str, mode: str, preset: str, *args: str) -> DeployRequest:
    """What the machine is told at T0."""
    return DeployRequest(
        registry=machine.registry, repository=REPOSITORY, reference=tag, mode=mode, preset=preset,
        process=Process(args=("/bin/probe", *(args or ("exit", "0")))),
    )  # fmt: skip


class Deployment:
    """What a test looks at."""

    def __init__(self, engine: ContainerdEngine, container: RunningContainer, timeline: Recorder) -> None:
        self.engine, self.container, self.timeline = engine, container, timeline

    def output(self, descriptor: int, timeout_s: float = 10.0) -> str:
        """All that came out, once the container has ended."""
        assert self.container.exit_code(timeout_s) is not None
        data = b""
        while select.select([descriptor], [], [], 1)[0]:
            piece = os.read(descriptor, 65536)
            if not piece:
                break
            data += piece
        return data.decode()


def make() -> ContainerdEngine:
    engine = make_engine(ContainerdChoice())
    assert isinstance(engine, ContainerdEngine)
    return engine


@contextmanager
def deployed(
    machine: Machine, request: DeployRequest, engine: ContainerdEngine | None = None, watch: Watch | None = None
) -> Iterator[Deployment]:
    """Deploy, and take everything away at the end, twice; nothing is left in the machine then."""
    engine = engine or make()
    try:
        engine.start(machine, request)
        timeline = Recorder(time.monotonic_ns())
        container = engine.deploy(machine, request, timeline, watch or Unwatched())
        yield Deployment(engine, container, timeline)
    finally:
        engine.tear_down()
        engine.tear_down()
    assert_nothing_left(machine)


def assert_nothing_left(machine: Machine) -> None:
    """No process (daemon, shim, helper) is in the machine, and no mount of theirs: overlays, FUSE, namespaces."""
    deadline = time.monotonic() + 10  # a shim that was told to end is not waited for by anybody
    while machine.pids() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert machine.pids() == []
    mounts = Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text()
    assert f"{machine.scratch}/ctd" not in mounts, [line for line in mounts.splitlines() if "/ctd" in line]
