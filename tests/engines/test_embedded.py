"""The embedded engine with mode overlay2: real registry, real machine, real crun, a tiny image."""

from __future__ import annotations

import dataclasses
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines import make_engine
from harness.engines.container import RunningContainer
from harness.engines.protocol import Process, Unwatched
from harness.errors import (
    ColdbenchError,
    ContentError,
    DigestMismatch,
    DiskFull,
    FormatError,
    ImageNotFound,
    MachineError,
    MissingTool,
    OutOfMemory,
    RegistryError,
    UnsafePath,
    UnsupportedMediaType,
    UsageError,
    WorkloadError,
)
from harness.machine.cgroup import find_mounts
from harness.machine.machine import Machine
from harness.model.engine import EmbeddedChoice
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.probes.workloads import WorkloadProcess
from tests.engines.support import Watching, base_layer, directory, tar_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.engines.protocol import Container, DeployRequest
    from tests.engines.support import Member, TestRegistry

pytestmark = pytest.mark.root

PRESETS = ("sequential", "tuned")


class Deployment:
    """What a test looks at: the container, the timeline, the engine."""

    def __init__(self, engine: Any, container: RunningContainer, timeline: Recorder) -> None:
        self.engine, self.container, self.timeline = engine, container, timeline

    def output(self, timeout_s: float = 10.0) -> str:
        """All of stdout, once the container has ended."""
        assert self.container.exit_code(timeout_s) is not None
        data = b""
        while select.select([self.container.stdout], [], [], 1)[0]:
            piece = os.read(self.container.stdout, 65536)
            if not piece:
                break
            data += piece
        return data.decode()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.timeline.sorted()]


@contextmanager
def deployed(machine: Machine, request: DeployRequest) -> Iterator[Deployment]:
    """Deploy, and take everything away at the end, twice."""
    engine = make_engine(EmbeddedChoice())
    try:
        engine.start(machine, request)
        timeline = Recorder(time.monotonic_ns())
        container = engine.deploy(machine, request, timeline, Unwatched())
        yield Deployment(engine, container, timeline)  # type: ignore[arg-type]
    finally:
        engine.tear_down()
        engine.tear_down()
        assert machine.pids() == []
        mounts = Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text()
        assert f"{machine.scratch}/embedded" not in mounts


def fails(
    machine: Machine, request: DeployRequest, kind: type[ColdbenchError], match: str | None = None
) -> ColdbenchError:
    """The deployment fails with exactly this class and one clear line, and leaves nothing behind."""
    with pytest.raises(kind, match=match) as caught, deployed(machine, request):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("preset", PRESETS)
def test_a_container_starts(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """The image's program runs as its configuration says; every phase is a span; the exit code comes through."""
    request = registry.request("base", "exit", "7", preset=preset)
    with deployed(machine, request) as it:
        assert it.container.exit_code(10) == 7
        assert it.container.exited_at_ns() is not None
        assert it.names[0] == "resolve"
        assert it.names[-3:] == ["mount", "create", "start"]
        assert set(it.names) == {"resolve", "fetch", "unpack", "mount", "create", "start"}
        assert it.engine.image_digest.startswith("sha256:")
        assert it.engine.lazy_usage() is None
        assert it.engine.finish_background(0, it.timeline)


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("preset", PRESETS)
def test_layers_stack_through_an_index(machine: Machine, registry: TestRegistry, preset: str, docker: bool) -> None:
    """Index and manifest of both vendors' media types; whiteouts and opaque directories hide what lies below."""
    upper = tar_bytes(
        [
            ("etc/.wh.group", {"data": b""}),
            ("srv/.wh..wh..opq", {"data": b""}),
            ("srv/new", {"data": b"new"}),
            ("copy", {"type": tarfile.LNKTYPE, "linkname": "etc/passwd"}),
        ]
    )
    lower = tar_bytes([("srv/", directory()), ("srv/old", {"data": b"old"}), ("keep", {"data": b"kept"})])
    tag = f"stacked-{preset}-{docker}".lower()
    registry.push(tag, [base_layer(), lower, upper], docker=docker, index=True)
    with deployed(machine, registry.request(tag, "wait", preset=preset)) as it:
        root = machine.outside(it.container.root)
        assert (root / "etc/passwd").exists()
        assert not (root / "etc/group").exists()
        assert os.listdir(root / "srv") == ["new"]
        assert (root / "keep").read_bytes() == b"kept"
        assert (root / "copy").read_bytes() == (root / "etc/passwd").read_bytes()
        assert it.container.exit_code(0) is None


@pytest.mark.parametrize("preset", ["local", "warm"])
def test_an_image_that_is_already_there_is_not_asked_for(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """The floor's image is unpacked before T0: after it neither a request nor a span of a pull is seen, and it runs."""
    request = registry.request("base", "exit", "7", preset=preset)
    with deployed(machine, request) as it:
        assert it.container.exit_code(10) == 7
        assert it.engine.report().requests == 0
        assert it.names == ["mount", "create", "start"]


def test_an_image_that_cannot_be_had_before_t0(machine: Machine, registry: TestRegistry) -> None:
    """The floor's preparation fails as a pull does: with the error's class and one line."""
    request = dataclasses.replace(registry.request("base", "exit", "0", preset="local"), reference="sha256:" + "0" * 64)
    fails(machine, request, ImageNotFound, "sha256:0000")


def test_user_environment_and_directory(machine: Machine, registry: TestRegistry) -> None:
    """User and group by name with its further groups, the image's environment, the working directory made if absent."""
    config = {
        "Entrypoint": ["/bin/probe"],
        "Cmd": ["who"],
        "User": "app",
        "WorkingDir": "/made/up",
        "Env": ["MARK=image"],
    }
    registry.push("configured", [base_layer()], config)
    with deployed(machine, registry.request("configured")) as it:
        assert it.output() == "uid=1000 gid=100 cwd=/made/up home=/home/app mark=image group=200\n"


def test_overrides(machine: Machine, registry: TestRegistry) -> None:
    """A scenario's command, user, directory and environment replace the image's."""
    process = Process(args=("/bin/probe", "who"), env={"MARK": "mine"}, cwd="/tmp", user="5:6")
    with deployed(machine, registry.request("base", process=process)) as it:
        assert it.output() == "uid=5 gid=6 cwd=/tmp home=/ mark=mine\n"


def test_many_layers(machine: Machine, registry: TestRegistry) -> None:
    """127 layers, Docker's maximum, stack: their names do not outgrow what mount(2) takes."""
    layers = [tar_bytes([(f"layer{n}", {"data": b"x"})]) for n in range(126)]
    registry.push("many", [base_layer(), *layers])
    with deployed(machine, registry.request("many", "wait")) as it:
        assert len([n for n in os.listdir(machine.outside(it.container.root)) if n.startswith("layer")]) == 126


def test_everything_is_charged_to_the_machine(machine: Machine, registry: TestRegistry) -> None:
    """The container runs in the machine's control group and network namespace."""
    with deployed(machine, registry.request("base", "wait")) as it:
        assert it.container.pid in machine.pids()
        ours = os.readlink(f"/proc/{it.container.pid}/ns/net")
        assert ours == os.readlink(f"/proc/{machine.namespace_pid}/ns/net")


def test_who_watches_is_told_before_the_process_runs(machine: Machine, registry: TestRegistry) -> None:
    """``created`` comes once, with the container, before anything of it can be seen."""
    told: list[tuple[object, list[str], int | None]] = []
    engine = make_engine(EmbeddedChoice())
    request = registry.request("base", "exit", "0")
    timeline = Recorder(time.monotonic_ns())

    def created(container: Container) -> None:
        names = [span.name for span in timeline.sorted()]
        told.append((container, names, container.exited_at_ns()))

    try:
        engine.start(machine, request)
        container = engine.deploy(machine, request, timeline, Watching(created))
        assert [what for what, _names, _ended in told] == [container]
        assert told[0][1][-1] == "create"
        assert "start" not in told[0][1]
        assert told[0][2] is None
    finally:
        engine.tear_down()


def test_a_container_that_ended_before_anybody_looked(
    machine: Machine, registry: TestRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host its process may be over when the harness hears of it: it is seen all the same, with its code, and
    run-time workloads still have its namespaces, which the agent held before it ran."""
    engine = make_engine(EmbeddedChoice())

    def late(*arguments: Any) -> RunningContainer:
        assert engine._exited.wait(30)  # type: ignore[attr-defined]
        return RunningContainer(*arguments)

    monkeypatch.setattr("harness.engines.embedded.engine.RunningContainer", late)
    request = registry.request("base", "exit", "7")
    try:
        engine.start(machine, request)
        container = engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
        assert container.exit_code(10) == 7
        assert container.exited_at_ns() is not None
        assert container.namespaces is not None
        process = WorkloadProcess(machine, container, 20.0)
        try:
            answer = process.request({"workload": "command", "argv": ["/bin/probe", "exit", "0"]}, "late")
            assert "error" not in answer
        finally:
            process.close()
    finally:
        engine.tear_down()
        assert machine.pids() == []


def test_killed_container_reports_its_signal(machine: Machine, registry: TestRegistry) -> None:
    """A container that a signal ended has that signal, negative, as its exit code."""
    with deployed(machine, registry.request("base", "wait")) as it:
        os.kill(it.container.pid, 9)
        assert it.container.exit_code(10) == -9


def test_unknown_image(machine: Machine, registry: TestRegistry) -> None:
    fails(machine, registry.request("nothing-of-this-name"), ImageNotFound, "no such image")


def test_unreachable_registry(machine_without_registry: Machine, registry: TestRegistry) -> None:
    """Nobody listens: said after a few tries."""
    request = registry.request("base", registry=f"{registry.address}:1")
    fails(machine_without_registry, request, RegistryError, "check that the registry is up")


def test_platform_that_the_index_lacks(machine: Machine, registry: TestRegistry) -> None:
    registry.push("indexed", [base_layer()], index=True)
    fails(machine, registry.request("indexed", platform="linux/s390x"), ImageNotFound, "s390x")


@pytest.mark.parametrize("preset", PRESETS)
def test_wrong_digest(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """A layer whose bytes were changed in the registry is refused for its digest, not for what it unpacks to."""
    layers = registry.push(f"changed-{preset}", [tar_bytes([("f", {"data": os.urandom(400_000)})])])
    path = registry.blob_file(layers[0].digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fails(machine, registry.request(f"changed-{preset}", preset=preset), DigestMismatch, "digest is sha256:")


@pytest.mark.parametrize("preset", PRESETS)
def test_truncated_layer(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """A layer that ends early is refused."""
    layers = registry.push(f"cut-{preset}", [tar_bytes([("f", {"data": os.urandom(400_000)})])])
    path = registry.blob_file(layers[0].digest)
    path.write_bytes(path.read_bytes()[:-1000])
    fails(machine, registry.request(f"cut-{preset}", preset=preset), ContentError, "layer 0")


def test_wrong_diff_id(machine: Machine, registry: TestRegistry) -> None:
    """sequential checks the decompressed bytes against the configuration, as Docker does."""
    registry.push("other-diff-id", [base_layer()], diff_ids=["sha256:" + "0" * 64])
    fails(machine, registry.request("other-diff-id", preset="sequential"), ContentError, "decompressed")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_media_type_that_lies_about_the_compression(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """The layer's first bytes say how to read it, and it runs."""
    registry.push(f"plain-{preset}", [base_layer()], compress=False)
    with deployed(machine, registry.request(f"plain-{preset}", "exit", "7", preset=preset)) as it:
        assert it.container.exit_code(10) == 7


def test_unsupported_media_type(machine: Machine, registry: TestRegistry) -> None:
    registry.push("strange", [base_layer()], layer_type="application/vnd.example.layer.v1+lzip")
    fails(machine, registry.request("strange"), UnsupportedMediaType, "lzip")


@pytest.mark.parametrize("preset", PRESETS)
def test_path_traversal(machine: Machine, registry: TestRegistry, preset: str) -> None:
    """A layer that would climb out of its root is refused, with its name."""
    registry.push(f"climbing-{preset}", [base_layer(), tar_bytes([("../../../../../../escaped", {"data": b"x"})])])
    fails(machine, registry.request(f"climbing-{preset}", preset=preset), UnsafePath, "layer 1")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "members",
    [
        [("/escaped", {"data": b"x"})],
        [("l", {"type": tarfile.SYMTYPE, "linkname": "/coldbench-outside"}), ("l/escaped", {"data": b"x"})],
    ],
    ids=["absolute", "symlink"],
)
def test_names_are_read_inside_the_root(
    machine: Machine, registry: TestRegistry, preset: str, members: list[Member]
) -> None:
    """An absolute name, and one through a symbolic link, mean the image's own root: the host gets no file of it."""
    registry.push(f"inside-{preset}", [base_layer(), tar_bytes(members)])
    with deployed(machine, registry.request(f"inside-{preset}", "exit", "7", preset=preset)) as it:
        assert it.container.exit_code(10) == 7
    assert not any(Path(path).exists() for path in ("/escaped", "/coldbench-outside"))


def test_dangling_hard_link(machine: Machine, registry: TestRegistry) -> None:
    registry.push("dangling", [tar_bytes([("h", {"type": tarfile.LNKTYPE, "linkname": "no/where"})])])
    fails(machine, registry.request("dangling"), FormatError, "no/where")


def test_program_that_is_not_there(machine: Machine, registry: TestRegistry) -> None:
    """crun's own words reach the user."""
    request = registry.request("base", process=Process(args=("/no/such/program",)))
    fails(machine, request, WorkloadError, "/no/such/program")


def test_nothing_to_run(machine: Machine, registry: TestRegistry) -> None:
    registry.push("silent", [base_layer()], {"Env": []})
    fails(machine, registry.request("silent"), FormatError, "Entrypoint")


def test_unknown_user(machine: Machine, registry: TestRegistry) -> None:
    request = registry.request("base", process=Process(args=("/bin/probe",), user="nobody-here"))
    fails(machine, request, FormatError, "nobody-here")


@pytest.mark.parametrize("preset", PRESETS)
def test_full_disk(small_machine: Callable[..., Machine], registry: TestRegistry, preset: str) -> None:
    """An image that does not fit the machine's disk."""
    registry.push("large", [tar_bytes([(f"zeros{n}", {"data": bytes(8 << 20)}) for n in range(8)])])
    machine = small_machine("unlimited", scratch_bytes=32 << 20)
    fails(machine, registry.request("large", preset=preset), DiskFull, "disk is full")


def test_out_of_memory(small_machine: Callable[..., Machine], registry: TestRegistry) -> None:
    """A machine whose memory does not suffice: the kernel kills the agent, and that is said."""
    machine = small_machine("cpu=1,memory=32M")
    engine = make_engine(EmbeddedChoice())
    request = registry.request("base")
    hog = f"import time; held = bytearray({30 << 20}); print(flush=True); time.sleep(100)"
    try:
        engine.start(machine, request)
        for pid in machine.pids():  # the agent goes first, so that the test does not hang on the kernel's choice
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        other = machine.spawn([sys.executable, "-S", "-c", hog], stdout=subprocess.PIPE)
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OutOfMemory, match="out of memory"):
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
        other.kill()
        other.communicate()
    finally:
        engine.tear_down()


def test_missing_runtime(machine: Machine, registry: TestRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without crun the line that installs it is said, before T0."""
    spawn = machine.spawn
    monkeypatch.setattr(machine, "spawn", lambda argv, **options: spawn(argv, env={"PATH": "/nonexistent"}, **options))
    fails(machine, registry.request("base"), MissingTool, re.escape("apt-get install crun"))


def test_runc_is_accepted(
    machine: Machine, registry: TestRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where only runc is installed it runs the container, charged to the machine all the same."""
    found = shutil.which("runc", path="/usr/sbin:/sbin:/usr/bin")
    assert found, "runc is not installed; apt-get install runc"
    (tmp_path / "runc").symlink_to(found)
    spawn = machine.spawn
    monkeypatch.setattr(machine, "spawn", lambda argv, **options: spawn(argv, env={"PATH": str(tmp_path)}, **options))
    with deployed(machine, registry.request("base", "wait")) as it:
        assert it.container.pid in machine.pids()
        assert it.container.exit_code(0) is None
    left = {path.name for path in Path("/sys/fs/cgroup").glob(f"*{machine.cgroup_parent}/*") if path.is_dir()}
    assert "container" not in left
    assert not Path(f"/sys/fs/cgroup/freezer{machine.cgroup_parent}").exists()


def test_groups_of_a_killed_runc_go_with_the_machine(
    registry: TestRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """runc's groups stay behind when the agent is killed; the machine takes them along in every hierarchy."""
    found = shutil.which("runc", path="/usr/sbin:/sbin:/usr/bin")
    assert found, "runc is not installed; apt-get install runc"
    (tmp_path / "runc").symlink_to(found)
    upstream = (registry.address, registry.port)
    engine = make_engine(EmbeddedChoice())
    with Machine(parse_shape("unlimited"), name="test", registry_upstream=upstream) as machine:
        name = machine.cgroup_parent.lstrip("/")
        spawn = machine.spawn
        monkeypatch.setattr(
            machine, "spawn", lambda argv, **options: spawn(argv, env={"PATH": str(tmp_path)}, **options)
        )
        try:
            request = registry.request("base", "wait")
            engine.start(machine, request)
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
            for pid in machine.pids():
                os.kill(pid, signal.SIGKILL)
        finally:
            engine.tear_down()
    assert [root for root in find_mounts().roots if (root / name).exists()] == []


def test_killed_agent(machine: Machine, registry: TestRegistry) -> None:
    """An agent that dies takes nothing down with it but the trial."""
    engine = make_engine(EmbeddedChoice())
    request = registry.request("base", "wait")
    try:
        engine.start(machine, request)
        for pid in machine.pids():
            os.kill(pid, 9)
        with pytest.raises(MachineError, match="agent"):
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
    finally:
        engine.tear_down()


def test_unknown_mode_and_preset(machine: Machine, registry: TestRegistry) -> None:
    """Names that do not exist are told with those that do."""
    with pytest.raises(UsageError, match="sequential, tuned"):
        make_engine(EmbeddedChoice()).start(machine, registry.request("base", preset="fast"))


def test_interrupted_deployment(small_machine: Callable[..., Machine], registry: TestRegistry) -> None:
    """Tearing down in the middle of a pull ends it at once and leaves no process."""
    registry.push("slow", [tar_bytes([("f", {"data": os.urandom(4 << 20)})])])
    machine = small_machine("cpu=1,memory=256M,bandwidth=1Mbit")
    request = registry.request("slow")
    engine = make_engine(EmbeddedChoice())
    engine.start(machine, request)
    caught: list[BaseException] = []

    def deploy() -> None:
        try:
            engine.deploy(machine, request, Recorder(time.monotonic_ns()), Unwatched())
        except ColdbenchError as error:
            caught.append(error)

    thread = threading.Thread(target=deploy)
    thread.start()
    while machine.wire().received_bytes < 100_000:
        assert thread.is_alive()
        time.sleep(0.01)
    engine.tear_down()
    thread.join(20)
    assert caught
    assert machine.pids() == []
