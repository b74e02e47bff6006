"""The docker engine with every Docker of this host: both image stores, readiness, run-time workloads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.protocol import Process
from harness.errors import HostUnfit
from harness.model.modes import containerd_store
from harness.model.workload import ExitReadiness, HttpReadiness
from harness.probes.readiness import ReadinessProbe
from harness.probes.selection import Selection
from harness.probes.workloads import FileWorkloads, PlannedWorkload
from tests.engines.docker_support import STORES, asked, deployed, each_docker, engine_of, needs_docker
from tests.engines.support import base_layer, tar_bytes

if TYPE_CHECKING:
    from harness.machine.machine import Machine
    from tests.engines.support import TestRegistry

pytestmark = [pytest.mark.root, needs_docker]


@each_docker
@pytest.mark.parametrize("preset", STORES)
def test_a_container_runs(machine: Machine, registry: TestRegistry, dockerd: str, preset: str) -> None:
    """Pulled, created and started by Docker, charged to the machine, its output on descriptors, its spans in order."""
    if containerd_store(preset) and engine_of(dockerd).available("overlay2", preset).reason:
        with (
            pytest.raises(HostUnfit, match="containerd's store"),
            deployed(machine, asked(registry, "base", preset=preset), dockerd),
        ):
            pass
        return
    request = asked(registry, "base", "say", "hello", preset=preset)
    with deployed(machine, request, dockerd) as it:
        assert b"hello" in it.output(b"hello")
        assert it.phases == ["create", "start"]
        assert it.container.pid in machine.pids()
        assert it.container.exited_at_ns() is None
        ours = os.readlink(f"/proc/{it.container.pid}/ns/net")
        assert ours == os.readlink(f"/proc/{machine.namespace_pid}/ns/net")
        ends = {(s.name, s.layer): s.end_s for s in it.timeline.sorted()}
        assert ends["fetch", 0] <= ends["create", None] <= ends["start", None]
        report = it.engine.report()
        assert report.requests is None
        assert report.details.docker_version
        assert report.details.layers_existing is None
        assert machine.wire().received_bytes > 10_000
    assert set(machine.pids()) == set()
    left = Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text()
    assert "/docker/" not in left
    assert " /run/containerd " not in left


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_is_seen_from_outside(machine: Machine, registry: TestRegistry, code: int) -> None:
    """A process that ends at once is timed by its pidfd, and its code is Docker's; its root outlives it."""
    with deployed(machine, asked(registry, "base", "exit", str(code))) as it:
        assert it.container.exit_code(20.0) == code
        ended_ns = it.container.exited_at_ns()
        assert ended_ns is not None
        started_s = next(s.start_s for s in it.timeline.sorted() if s.name == "start")
        assert ended_ns > it.timeline.t0_ns + started_s * 1e9
        assert machine.outside(it.container.root).joinpath("bin/probe").is_file()


def test_who_watches_is_told_before_the_process_runs(machine: Machine, registry: TestRegistry) -> None:
    """The container is handed over while nothing of it runs; its pid comes later."""
    told: list[tuple[int, list[int]]] = []
    with deployed(
        machine, asked(registry, "base", "exit", "0"), created=lambda made: told.append((made.pid, machine.pids()))
    ) as it:
        assert [pid for pid, _pids in told] == [0]
        assert it.container.pid not in told[0][1]


def test_the_request_overrides_the_image(machine: Machine, registry: TestRegistry) -> None:
    """Command, environment, user and working directory of the scenario."""
    process = Process(args=("/bin/probe", "who"), env={"MARK": "hi there"}, cwd="/tmp", user="app")
    with deployed(machine, asked(registry, "base", process=process)) as it:
        assert it.output(b"\n") == b"uid=1000 gid=100 cwd=/tmp home=/home/app mark=hi there group=100 group=200\n"


def test_what_a_scenario_asks_for_it_gets(machine: Machine, registry: TestRegistry) -> None:
    """A capability beyond Docker's default is the container's; no set-user-ID bit gives it more."""
    process = Process(args=("/bin/probe", "wait"), capabilities=("CAP_SYS_NICE",))
    with deployed(machine, asked(registry, "base", process=process)) as it:
        status = Path(f"/proc/{it.container.pid}/status").read_text()
        said = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert int(said["CapBnd"], 16) & 1 << 23
        assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")


def test_the_user_s_docker_settings_stay_out(
    machine: Machine, registry: TestRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither DOCKER_HOST nor a context nor proxies reach the daemon, the client or the container."""
    (tmp_path / "config.json").write_text('{"proxies": {"default": {"httpProxy": "http://proxy.invalid:1"}}}')
    for name, value in {
        "DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "tcp://192.0.2.1:1", "DOCKER_CONTEXT": "nowhere",
        "DOCKER_TLS_VERIFY": "1", "HTTP_PROXY": "http://proxy.invalid:1", "HTTPS_PROXY": "http://proxy.invalid:1",
        "ALL_PROXY": "http://proxy.invalid:1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    process = Process(args=("/bin/probe", "wait"), env={"MARK": "one"})
    with deployed(machine, asked(registry, "base", process=process)) as it:
        container = Path(f"/proc/{it.container.pid}/environ").read_bytes()
        assert b"MARK=one" in container
        assert b"proxy" not in container.lower()
        dockerd = Path(f"/proc/{it.engine.daemon_pids()[0]}/environ").read_bytes()
        assert b"proxy" not in dockerd.lower()
        assert b"DOCKER_" not in dockerd


@pytest.mark.parametrize(
    ("readiness", "args"),
    [
        (ExitReadiness(kind="exit"), ("exit", "0")),
        (HttpReadiness(kind="http", port=8080, path="/health"), ("http", "8080", "200")),
    ],
)
def test_readiness(machine: Machine, registry: TestRegistry, readiness: Any, args: tuple[str, ...]) -> None:
    """Probes see a container of Docker's as any other: it has the machine's network, and its exit is a process's."""
    probes: list[ReadinessProbe] = []
    with deployed(
        machine,
        asked(registry, "base", *args),
        created=lambda made: probes.append(ReadinessProbe(readiness, made, machine)),
    ):
        (probe,) = probes
        try:
            assert probe.wait() > 0
        finally:
            probe.close()


@pytest.mark.parametrize("args", [("wait",), ("exit", "0")])
def test_run_time_workloads(machine: Machine, registry: TestRegistry, args: tuple[str, ...]) -> None:
    """All temperatures run on the root file system of a container that lives, and of one that has ended."""
    registry.push(
        "files", [base_layer(), tar_bytes([(f"f{i}", {"data": b"x" * 5000, "mode": 0o644}) for i in range(40)])]
    )
    selection = Selection(paths={"read-small": [f"/f{i}" for i in range(40)]})
    workloads = FileWorkloads([PlannedWorkload("read-small")], selection)
    with deployed(machine, asked(registry, "files", *args)) as it:
        if args[0] == "exit":
            assert it.container.exit_code(20.0) == 0
        results = workloads.run(machine, it.engine, it.container, evicted=False)
        results += workloads.run(machine, it.engine, it.container, evicted=True)
    assert [r.temperature for r in results] == ["cold", "warm", "stale", "evicted"]
    assert [(r.failure, r.operations, r.bytes) for r in results] == [(None, 40, 200_000)] * 4
    assert {r.fuse_requests for r in results} == {0}
