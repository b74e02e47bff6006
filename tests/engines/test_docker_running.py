"""A Docker that runs already, started here as a user's would be: with its own data, outside of any machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.docker import RunningDocker, docker_engine, programs
from harness.engines.docker.client import FAILURES, connect
from harness.engines.protocol import Process
from harness.errors import HostUnfit, ImageNotFound
from harness.machine.machine import Machine
from harness.model.engine import DockerChoice
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.model.workload import HttpReadiness
from harness.probes.readiness import ReadinessProbe
from harness.probes.selection import Selection
from harness.probes.workloads import FileWorkloads, PlannedWorkload
from harness.session import store
from tests.engines.docker_support import DOCKERS, STORES, needs_docker
from tests.engines.support import Watching, base_layer, tar_bytes
from tests.hostile.images import PROGRAM, hostile_layer, results
from tests.session.support import write_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.engines.protocol import DeployRequest
    from tests.engines.support import TestRegistry

pytestmark = [pytest.mark.root, needs_docker]

_DAEMONS = """
mkdir -p /run/containerd
mount -t tmpfs tmpfs /run/containerd
mount -t tmpfs tmpfs "$1"
mkdir "$1/data" "$1/exec"
setpriv --pdeathsig KILL containerd --root "$1/c-root" --state "$1/c-state" --address "$1/c.sock" &
while [ ! -S "$1/c.sock" ]; do sleep 0.05; done
exec "$2" --config-file "$1/../daemon.json" --containerd "$1/c.sock" --data-root "$1/data" --exec-root "$1/exec" \
    --pidfile "$1/pid" --host "unix://$3" --bridge none --iptables=false --ip6tables=false --ip-forward=false
"""


class UsersDocker:
    """A dockerd in a mount namespace of its own, which takes all it mounts along when it is ended."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self._log = directory / "log"
        (directory / "daemon.json").write_text('{"exec-opts": ["native.cgroupdriver=cgroupfs"]}')
        (directory / "place").mkdir()
        found = programs.find(DockerChoice(dockerd=DOCKERS[0]))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-ec",
                 _DAEMONS, "sh", str(directory / "place"), found.dockerd.path, str(self.socket)],
                env={"PATH": found.search_path, "HOME": str(directory)}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def client(self) -> Any:
        return connect(str(self.socket), 20.0)

    def await_up(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with suppress(*FAILURES):
                self.client().close()
                return
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of dockerd, in which unshare and the shell have ended up."""
        return self._process.pid

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # containerd is in its group; what both mounted goes with them
        self._process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsersDocker]:
    """The user's Docker, with its classic image store."""
    made = UsersDocker(tmp_path_factory.mktemp("docker"))
    try:
        made.await_up()
        yield made
    finally:
        made.stop()


@contextmanager
def deployed(machine: Machine, request: DeployRequest, host: str, watching: Watching | None = None) -> Iterator[Any]:
    """Deploy with the running Docker and tear down: container, engine, timeline."""
    engine = docker_engine(DockerChoice(host=host))
    try:
        engine.start(machine, request)
        timeline = Recorder(time.monotonic_ns())
        yield engine.deploy(machine, request, timeline, watching or Watching(lambda _made: None)), engine, timeline
    finally:
        engine.tear_down()
        engine.tear_down()


def digest_of(registry: TestRegistry, tag: str) -> str:
    from harness.oci.store import ImageSource

    return ImageSource(registry.client(), tag).resolve().descriptor.digest


def asked(registry: TestRegistry, tag: str, *args: str, **fields: Any) -> DeployRequest:
    made = registry.request(tag, *args, preset=STORES[0], **fields)
    return replace(made, reference=digest_of(registry, tag))


def nothing_left(running: UsersDocker) -> None:
    client = running.client()
    assert client.containers(all=True) == []
    assert client.images() == []
    client.close()


def test_a_container_runs_under_the_shapes_limits(registry: TestRegistry, running: UsersDocker) -> None:
    """The container is in the machine's group, so the shape's memory, CPU and process limits are its own; image and
    container are gone afterwards."""
    with Machine(parse_shape("cpu=0.5,memory=256M"), registry_upstream=(registry.address, registry.port)) as machine:
        machine.throttle(True)
        watching = Watching(lambda _made: None)
        with deployed(machine, asked(registry, "base", "say", "hello"), running.host, watching) as (made, engine, seen):
            assert watching.phases == ["create", "start"]
            assert made.pid in machine.pids()
            deadline, said = time.monotonic() + 20, b""
            while b"hello" not in said and time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    said += os.read(made.stdout, 4096)
            assert b"hello" in said
            names = {span.name for span in seen.sorted()}
            assert {"resolve", "fetch", "create", "start"} <= names
            report = engine.report()
            assert report.details.docker_version
            assert "not the daemon" in (report.details.limits or "")
            assert report.invalid == ()
            ours = os.readlink(f"/proc/{made.pid}/ns/net")
            assert ours not in (os.readlink("/proc/self/ns/net"), os.readlink(f"/proc/{machine.namespace_pid}/ns/net"))
        assert machine.pids() == []
    nothing_left(running)


def test_readiness_and_workloads(machine: Machine, registry: TestRegistry, running: UsersDocker) -> None:
    """A port of the container's own loopback is knocked at, and run-time workloads run in it."""
    registry.push(
        "files", [base_layer(), tar_bytes([(f"f{i}", {"data": b"x" * 900, "mode": 0o644}) for i in range(9)])]
    )
    probes: list[ReadinessProbe] = []
    readiness = HttpReadiness(kind="http", port=8080, path="/health")
    watching = Watching(lambda made: probes.append(ReadinessProbe(readiness, made, machine)))
    workloads = FileWorkloads(
        [PlannedWorkload("read-small", ("cold",))], Selection(paths={"read-small": [f"/f{i}" for i in range(9)]})
    )
    with deployed(machine, asked(registry, "files", "http", "8080", "200"), running.host, watching) as (
        made,
        engine,
        _,
    ):
        try:
            assert probes[0].wait() > 0
        finally:
            probes[0].close()
        (result,) = workloads.run(machine, engine, made, evicted=False)
        assert (result.failure, result.operations) == (None, 9)
    nothing_left(running)


def test_a_program_that_ends_at_once(machine: Machine, registry: TestRegistry, running: UsersDocker) -> None:
    """Its exit code is told, although Docker removes the container by itself."""
    with deployed(machine, asked(registry, "base", "exit", "3"), running.host) as (made, _engine, _seen):
        assert made.exit_code(20) == 3
        assert made.exited_at_ns() is not None
    nothing_left(running)


def test_hostile_image(machine: Machine, registry: TestRegistry, running: UsersDocker) -> None:
    """Docker's own confinement holds, and nothing of the host's network is there."""
    registry.push("hostile-users", [hostile_layer()], {"Entrypoint": [PROGRAM]})
    words = ("namespaces", "devices", "ask", "CONNECT", registry.address, str(registry.port), "/")
    request = asked(registry, "hostile-users", process=Process(args=(PROGRAM, *words, "sleep")))
    with deployed(machine, request, running.host) as (made, _engine, _seen):
        deadline, said = time.monotonic() + 20, b""
        while b"CONNECT" not in said and time.monotonic() < deadline:
            with suppress(BlockingIOError):
                said += os.read(made.stdout, 65536)
        told = results(said.decode())
        assert told["unshare-user"] == "EPERM"
        assert told[f"CONNECT:{registry.address}:{registry.port}"] == "ENETUNREACH"


def test_an_image_that_is_there_already(machine: Machine, registry: TestRegistry, running: UsersDocker) -> None:
    """The user's own copy is neither removed nor taken for a cold start; what a killed trial left is removed; a shared
    layer makes the trial invalid."""
    client = running.client()
    request = asked(registry, "base", "exit", "0")
    with deployed(machine, request, running.host) as (_made, engine, _seen):
        # As a killed harness leaves it, and beside it the user's own name for the same image.
        client.tag(engine._name, "mine/image", "kept")
        left = asked(registry, "base", "exit", "0")
        other = registry.push("shares", [base_layer(), tar_bytes([("more", {"data": b"1", "mode": 0o644})])])
        assert other
        with deployed(machine, asked(registry, "shares", "exit", "0"), running.host) as (second, sharing, _):
            assert second.exit_code(20) == 0
            (found,) = sharing.report().invalid
            assert found.rule == "cache-not-cold"
            assert "1 layer(s)" in found.reason
    assert [tag for image in client.images() for tag in image["RepoTags"]] == ["mine/image:kept"]
    client.remove_image("mine/image:kept", force=True)
    # A trial that was killed: its image is there under the relay's name of then.
    engine = docker_engine(DockerChoice(host=running.host))
    engine.start(machine, left)
    engine.deploy(machine, left, Recorder(time.monotonic_ns()), Watching(lambda _made: None))
    assert client.images()
    with deployed(machine, left, running.host) as (made, again, _seen):
        assert made.exit_code(20) == 0
        assert again.report().invalid == ()
    engine.tear_down()
    client.close()
    nothing_left(running)


def test_failures(machine: Machine, registry: TestRegistry, running: UsersDocker, tmp_path: Path) -> None:
    """Nobody at the socket, another image store, an image that is not there: one line each, at plan time or later."""
    nobody = docker_engine(DockerChoice(host=f"unix://{tmp_path}/none.sock")).available("overlay2", STORES[0])
    assert "no Docker answers at unix://" in nobody.reason
    other = RunningDocker(DockerChoice(host=running.host)).available("overlay2", STORES[1])
    assert "keeps images with overlay2; take preset overlay2" in other.reason
    with (
        pytest.raises(HostUnfit, match="take preset overlay2"),
        deployed(machine, replace(asked(registry, "base"), preset=STORES[1]), running.host),
    ):
        pass
    missing = replace(asked(registry, "base"), reference=f"sha256:{'0' * 64}")
    with pytest.raises(ImageNotFound), deployed(machine, missing, running.host):
        pass
    nothing_left(running)


def test_control_groups_of_systemd_are_refused(running: UsersDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that would not hold is said before the session."""
    engine = RunningDocker(DockerChoice(host=running.host))
    client = running.client()
    told = {**client.info(), "CgroupDriver": "systemd"}
    client.close()
    monkeypatch.setattr("harness.engines.docker.client.IsolatedClient.info", lambda _self: told)
    assert "native.cgroupdriver=cgroupfs" in engine.available("overlay2", STORES[0]).reason


def test_a_daemon_that_hangs(
    machine: Machine, registry: TestRegistry, running: UsersDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped daemon is given up after its time, and nothing waits for it for ever."""
    monkeypatch.setattr("harness.engines.docker.running._HANG_S", 1.0)
    monkeypatch.setattr("harness.engines.docker.running._ANSWER_S", 1.0)
    engine = docker_engine(DockerChoice(host=running.host))
    request = asked(registry, "base", "wait")
    try:
        engine.start(machine, request)
        os.kill(running.pid, signal.SIGSTOP)
        with pytest.raises(Exception, match=r"(?i)timed out|does not answer"):
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Watching(lambda _made: None))
    finally:
        engine.tear_down()
        os.kill(running.pid, signal.SIGCONT)
    running.await_up()
    client = running.client()
    for image in client.images():
        client.remove_image(image["Id"], force=True)
    client.close()


def test_a_session_says_what_its_limits_held_for(running: UsersDocker, tmp_path: Path) -> None:
    """A run with the user's Docker records ``container``; what it cannot know is null; no table and no compare sets it
    beside a machine's."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit", "0"])
    text = scenario.read_text()
    head, _, rest = text.partition("[workload]")
    lines = [line for line in head.splitlines() if not line.startswith(("engines", "modes"))]
    modes = 'modes = ["overlay2:tuned", "overlay2:overlay2"]\n'
    engines = f'[engines.embedded]\n[engines.docker]\nhost = "{running.host}"\n'
    scenario.write_text("\n".join(lines) + f"\n{modes}\n[workload]{rest}\n{engines}")
    environment = {**os.environ, "COLDBENCH_CACHE": str(tmp_path / "cache")}

    def coldbench(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "harness", *words], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, check=False)  # fmt: skip

    done = coldbench("run", str(scenario), "--blocks", "1", "--out", str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr[-3000:]
    _header, seen = store.load(tmp_path / "s")
    assert {(o.case.engine, o.case.limits) for o in seen} == {("embedded", "machine"), ("docker", "container")}
    (one,) = [o for o in seen if o.case.engine == "docker"]
    assert one.valid, (one.failure, one.invalid)
    assert (one.cpu_to_ready_s, one.wire.received_bytes, one.memory_peak_bytes, one.phases) == (None, None, None, ())
    assert one.wire.requests
    groups = json.loads(coldbench("report", str(tmp_path / "s"), "--json").stdout)["groups"]
    assert len(groups) == 2
    pair = [f"{tmp_path / 's'}#engine=docker", f"{tmp_path / 's'}#engine=embedded"]
    for more in ([], ["--anyway"]):
        refused = coldbench("compare", *[f"{side},mode=overlay2" for side in pair], *more)
        assert refused.returncode == 2
        assert "the shape's limits held for the container only" in refused.stderr
    nothing_left(running)


def test_a_host_elsewhere_is_refused() -> None:
    """What cannot be watched from here, and two Dockers at once, are errors of the scenario."""
    with pytest.raises(ValueError, match="expected a socket of this machine"):
        DockerChoice(host="tcp://192.0.2.1:2375")
    with pytest.raises(ValueError, match="leave out dockerd"):
        DockerChoice(host="unix:///run/docker.sock", dockerd="/usr/sbin/dockerd")
