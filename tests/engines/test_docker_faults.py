"""What goes wrong with Docker: each is told in one line, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.engines.protocol import Process
from harness.errors import (
    ColdbenchError,
    DiskFull,
    HostUnfit,
    ImageNotFound,
    MachineError,
    OutOfMemory,
    RegistryError,
    UsageError,
    WorkloadError,
)
from harness.machine.cgroup import find_mounts
from harness.machine.leftovers import find_leftovers, sweep
from harness.model.observation import BEFORE_READY
from harness.model.timeline import Recorder
from tests.engines.docker_support import DOCKERS, STORES, asked, deployed, engine_of, needs_docker
from tests.engines.support import Watching, base_layer, tar_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.engines.docker import DockerEngine
    from harness.engines.protocol import DeployRequest
    from harness.machine.machine import Machine
    from tests.engines.support import TestRegistry

pytestmark = [pytest.mark.root, needs_docker]


def bring_up(engine: DockerEngine, machine: Machine, request: DeployRequest) -> None:
    engine.start(machine, request)
    engine.deploy(machine, request, Recorder(time.monotonic_ns()), Watching(lambda _made: None))


def fails(
    machine: Machine, request: DeployRequest, kind: type[ColdbenchError], match: str, engine: DockerEngine | None = None
) -> DockerEngine:
    """The deployment fails so, and nothing of it is left in the machine."""
    engine = engine or engine_of()
    try:
        with pytest.raises(kind, match=match) as caught:
            bring_up(engine, machine, request)
        assert "\n" not in str(caught.value)
    finally:
        engine.tear_down()
        engine.tear_down()
    assert machine.pids() == []
    assert "/docker/" not in Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text()
    return engine


def stand_in(path: Path, body: str) -> str:
    """A program that says it is dockerd 28.0 and then does something else."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "Docker version 28.0.0, build x"; exit; }}\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_daemon_that_does_not_start(machine: Machine, registry: TestRegistry, tmp_path: Path) -> None:
    """Its exit code and its last words are told."""
    engine = engine_of(stand_in(tmp_path / "dockerd", "echo no such cgroup >&2; exit 7"))
    fails(
        machine,
        asked(registry, "base"),
        MachineError,
        r"dockerd ended while it started \(exit 7\).*no such cgroup",
        engine,
    )
    assert "no such cgroup" not in engine.report().log_tail, "the log is closed by then"


def test_daemon_that_never_answers(
    machine: Machine, registry: TestRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after a while, and killed."""
    monkeypatch.setattr("harness.engines.docker.daemon.START_TIMEOUT_S", 1.5)
    engine = engine_of(stand_in(tmp_path / "dockerd", "sleep 100"))
    fails(machine, asked(registry, "base"), MachineError, "did not come up within", engine)


@pytest.mark.parametrize(
    ("body", "reason"),
    [("", "does not tell its version"), ('echo "Docker version 19.03.5, build x"', "19.03.5 is too old")],
)
def test_wrong_version(machine: Machine, registry: TestRegistry, tmp_path: Path, body: str, reason: str) -> None:
    """What is no dockerd, or too old a one, is refused before it is started."""
    path = tmp_path / "dockerd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    fails(machine, asked(registry, "base"), HostUnfit, reason, engine_of(str(path)))


def big_layer(megabytes: int) -> bytes:
    """A layer that takes a while: bytes that do not compress, in files of one megabyte."""
    import random

    source = random.Random(1)
    return tar_bytes([(f"big{i}", {"data": source.randbytes(1 << 20), "mode": 0o644}) for i in range(megabytes)])


@pytest.fixture(scope="module")
def big(registry: TestRegistry) -> str:
    """The tag of an image that a slow machine pulls for many seconds."""
    registry.push("big", [base_layer(), big_layer(48)])
    return "big"


@contextmanager
def meanwhile(action: Callable[[], object], after_s: float) -> Iterator[None]:
    timer = threading.Timer(after_s, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@pytest.mark.parametrize("victim", [0, 1], ids=["dockerd", "containerd"])
def test_daemon_that_dies_in_the_pull(
    small_machine: Callable[..., Machine], registry: TestRegistry, big: str, victim: int
) -> None:
    """Whichever daemon it is, the failure names it or what Docker said of it, and nothing is left running."""
    machine = small_machine("cpu=0.05,memory=1G")
    engine = engine_of()
    request = asked(registry, big, preset=STORES[0])
    kill = engine.daemon_pids

    def act() -> None:
        os.kill(kill()[victim], signal.SIGKILL)

    try:
        engine.start(machine, request)
        machine.throttle(True)
        with meanwhile(act, 1.0), pytest.raises((MachineError, RegistryError)) as caught:
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Watching(lambda _made: None))
        assert ("dockerd ended in the pull" in str(caught.value)) == (victim == 0) or victim == 1
        assert engine.report().phase in BEFORE_READY
    finally:
        machine.throttle(False)
        engine.tear_down()
    assert machine.pids() == []


def test_daemon_that_hangs_is_killed_at_the_deadline(machine: Machine, registry: TestRegistry, big: str) -> None:
    """A stopped dockerd answers nothing: whoever kills the machine's processes gets the engine back."""
    engine = engine_of()
    request = asked(registry, big)
    try:
        engine.start(machine, request)
        os.kill(engine.daemon_pids()[0], signal.SIGSTOP)

        def expire() -> None:
            for pid in machine.pids():
                os.kill(pid, signal.SIGKILL)

        with meanwhile(expire, 1.0), pytest.raises(MachineError, match=r"(dockerd|containerd) ended in the pull"):
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Watching(lambda _made: None))
    finally:
        engine.tear_down()
    assert machine.pids() == []


def test_disk_full_in_the_pull(small_machine: Callable[..., Machine], registry: TestRegistry, big: str) -> None:
    """The machine's own disk is what is full, and that is what is said."""
    fails(small_machine("unlimited", scratch_bytes=96 << 20), asked(registry, big), DiskFull, "no space left on device")


def test_out_of_memory_in_dockerd(small_machine: Callable[..., Machine], registry: TestRegistry, big: str) -> None:
    """A machine too small for Docker fails as one, not as whatever Docker made of it."""
    machine = small_machine("memory=160M")
    engine = engine_of()
    request = asked(registry, big)
    hog = f"import time; held = bytearray({200 << 20}); time.sleep(100)"
    try:
        engine.start(machine, request)
        Path(f"/proc/{engine.daemon_pids()[0]}/oom_score_adj").write_text("1000")  # not the kernel's choice
        other = machine.spawn([sys.executable, "-S", "-c", hog])
        with pytest.raises(OutOfMemory, match="dockerd was killed"):
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Watching(lambda _made: None))
        other.kill()
        other.wait()
    finally:
        engine.tear_down()


def test_registry_gone(machine_without_registry: Machine, registry: TestRegistry) -> None:
    """Docker's own words about a registry where nobody listens."""
    request = replace(asked(registry, "base"), registry=f"{registry.address}:1")
    fails(machine_without_registry, request, RegistryError, rf"Docker's pull failed: .*{re.escape(registry.address)}:1")


def test_image_that_is_not_there(machine: Machine, registry: TestRegistry) -> None:
    """An unknown tag is the image's absence, not the registry's."""
    fails(machine, asked(registry, "nowhere"), ImageNotFound, "Docker's pull failed")


def test_program_that_is_not_in_the_image(machine: Machine, registry: TestRegistry) -> None:
    """A container that cannot start is the workload's failure."""
    fails(machine, asked(registry, "base", process=Process(args=("/no/such",))), WorkloadError, "could not start")


def test_registry_behind_relays_is_refused(machine: Machine, registry: TestRegistry) -> None:
    """What dockerd cannot be led through is said before it is started."""
    fails(machine, asked(registry, "base", routes=("a:443:198.18.0.1:9",)), UsageError, "leave --registry out")


def test_two_at_once(small_machine: Callable[..., Machine], registry: TestRegistry) -> None:
    """Two machines with a Docker each do not see each other."""
    first, second = small_machine("unlimited"), small_machine("unlimited")
    with (
        deployed(first, asked(registry, "base", "say", "one")) as one,
        deployed(second, asked(registry, "base", "say", "two")) as two,
    ):
        assert b"one" in one.output(b"one")
        assert b"two" in two.output(b"two")
        assert set(first.pids()).isdisjoint(second.pids())
    assert first.pids() == second.pids() == []


KILLED = """
import sys, time
from harness.engines.docker import DockerEngine
from harness.engines.protocol import DeployRequest, Process, Unwatched
from harness.machine.machine import Machine
from harness.model.engine import DockerChoice
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder

host, port, dockerd, preset = sys.argv[1:]
with Machine(parse_shape("unlimited"), name="killed", registry_upstream=(host, int(port))) as machine:
    engine = DockerEngine(DockerChoice(dockerd=dockerd))
    request = DeployRequest(
        registry=f"{host}:{port}", repository="test/image", reference="base", mode="overlay2", preset=preset,
        process=Process(args=("/bin/probe", "wait")),
    )
    engine.start(machine, request)
    engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
    print(machine.id, *machine.pids(), flush=True)
    time.sleep(1000)
"""


def test_killed_harness(registry: TestRegistry) -> None:
    """After kill -9 of the harness, daemons, shim, container, groups and mounts go, by themselves or by ``clean``."""
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, registry.address, str(registry.port), DOCKERS[-1], STORES[0]],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killed.stdout is not None
    name, *pids = killed.stdout.readline().split()
    assert len(pids) >= 4, "dockerd, containerd, shim, container"
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 30.0
    while [pid for pid in pids if Path(f"/proc/{pid}").exists()] and time.monotonic() < deadline:
        time.sleep(0.05)
        sweep()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    sweep()
    assert not [left for left in find_leftovers() if left.id == name]
    assert [root for root in find_mounts().roots if (root / f"coldbench-{name}").exists()] == []
