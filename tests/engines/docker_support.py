"""Docker as tests run it: every dockerd of this host, and a container of one."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.docker import DockerEngine, programs
from harness.model.engine import DockerChoice
from harness.model.modes import ENGINES
from harness.model.timeline import Recorder
from tests.engines.support import Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.engines.container import RunningContainer
    from harness.engines.protocol import DeployRequest
    from harness.machine.machine import Machine
    from tests.engines.support import TestRegistry

STORES = [preset.name for mode in ENGINES["docker"] for preset in mode.presets]


def dockers() -> list[str]:
    """Every dockerd of this host that can be measured: the system's, and the one COLDBENCH_DOCKERD names."""
    found = {
        programs.find(DockerChoice(dockerd=path)).dockerd.path for path in ("/usr/sbin/dockerd", "/usr/bin/dockerd")
    }
    return sorted({*found, programs.find(DockerChoice()).dockerd.path} - {""})


DOCKERS = dockers()
needs_docker = pytest.mark.skipif(not DOCKERS, reason="no dockerd here (apt-get install docker.io)")
each_docker = pytest.mark.parametrize("dockerd", DOCKERS or [""])


def engine_of(dockerd: str = "") -> DockerEngine:
    return DockerEngine(DockerChoice(dockerd=dockerd or DOCKERS[-1]))


class Deployed:
    """A container that Docker runs, and what was seen of its deployment."""

    def __init__(self, engine: DockerEngine, container: Any, timeline: Recorder, phases: list[str]) -> None:
        self.engine = engine
        self.container: RunningContainer = container
        self.timeline = timeline
        self.phases = phases

    def output(self, wanted: bytes, timeout_s: float = 20.0) -> bytes:
        """What the container has written to stdout, as soon as ``wanted`` is in it."""
        data, deadline = b"", time.monotonic() + timeout_s
        while wanted not in data and time.monotonic() < deadline:
            try:
                data += os.read(self.container.stdout, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        return data


@contextmanager
def deployed(
    machine: Machine, request: DeployRequest, dockerd: str = "", created: Callable[[Any], object] = lambda _made: None
) -> Iterator[Deployed]:
    """Deploy and tear down."""
    engine = engine_of(dockerd)
    watching = Watching(created)
    try:
        engine.start(machine, request)
        timeline = Recorder(time.monotonic_ns())
        container = engine.deploy(machine, request, timeline, watching)
        yield Deployed(engine, container, timeline, watching.phases)
    finally:
        engine.tear_down()


def asked(registry: TestRegistry, tag: str, *args: str, preset: str = "", **fields: Any) -> DeployRequest:
    return registry.request(tag, *args, preset=preset or STORES[0], **fields)
