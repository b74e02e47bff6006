"""What goes wrong with real daemons: one clear line, an invalid trial or a failure of its kind, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.engines.containerd import ContainerdEngine, daemons
from harness.engines.protocol import Unwatched
from harness.errors import (
    ColdbenchError,
    DigestMismatch,
    DiskFull,
    ImageNotFound,
    MachineError,
    OutOfMemory,
    RegistryError,
    UsageError,
    WorkloadError,
)
from harness.machine import leftovers
from harness.machine.cgroup import find_mounts
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.engine import ContainerdChoice
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.probes.workloads import WorkloadProcess
from tests.engines.containerd.support import assert_nothing_left, deployed, layers, make, needs, publish, request
from tests.engines.support import base_layer, run_registry, tar_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engines.protocol import DeployRequest
    from tests.engines.support import TestRegistry

pytestmark = pytest.mark.root

MODES = [("overlay2", "plain"), ("estargz", "esgz"), ("soci", "soci")]


def fails(
    machine: Machine,
    asked: DeployRequest,
    kind: type[ColdbenchError],
    match: str = "",
    engine: ContainerdEngine | None = None,
) -> None:
    """The deployment fails with exactly this class and one line, and leaves nothing behind."""
    with pytest.raises(kind, match=match or None) as caught, deployed(machine, asked, engine):
        pass
    assert type(caught.value) is kind, caught.value
    assert "\n" not in str(caught.value)
    assert_nothing_left(machine)


def program(path: Path, says: str, does: str) -> str:
    """A program that tells a version and then does something else than serving."""
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{says}'; exit 0; fi\n{does}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("which", ["containerd", "stargz", "soci"])
def test_a_daemon_that_does_not_start(forms: TestRegistry, machine: Machine, tmp_path: Path, which: str) -> None:
    """It ends at once: its name, its exit code and its last line are the reason."""
    mode, tag = {"containerd": MODES[0], "stargz": MODES[1], "soci": MODES[2]}[which]
    needs(mode)
    broken = program(tmp_path / which, "2.4.2", "echo cannot open database >&2; exit 3")
    beside = ContainerdEngine(ContainerdChoice()).available(mode).programs[0].path
    (tmp_path / "containerd-shim-runc-v2").symlink_to(Path(beside).with_name("containerd-shim-runc-v2"))
    engine = ContainerdEngine(ContainerdChoice.model_validate({which: broken}))
    asked = request(forms, machine, tag, mode, "default")
    fails(machine, asked, MachineError, rf"{which} ended while it started \(exit 3\): cannot open database", engine)


def test_a_daemon_that_never_listens(
    forms: TestRegistry, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for its socket has an end, and the process that sleeps is ended."""
    needs("estargz")
    monkeypatch.setattr(daemons.await_socket, "__defaults__", (0.5,))
    lazy = program(tmp_path / "stargz", "0.19.1", "exec sleep 1000")
    engine = ContainerdEngine(ContainerdChoice(stargz=lazy))
    fails(machine, request(forms, machine, "esgz", "estargz", "default"), MachineError, "did not listen", engine)


class Killing(Unwatched):
    """Sends a signal to one of the engine's daemons when it is told to."""

    def __init__(self, engine: ContainerdEngine, name: str, number: signal.Signals) -> None:
        self._engine, self._name, self._number = engine, name, number

    def strike(self) -> None:
        """What is named takes the signal now."""
        for daemon in self._engine._daemons:
            if self._name in daemon.name:
                os.kill(daemon.pid, self._number)
                if self._number == signal.SIGKILL:
                    daemon.process.wait()


@pytest.mark.parametrize(
    ("mode", "tag", "name"),
    [("overlay2", "plain", "containerd"), ("estargz", "esgz", "stargz"), ("soci", "soci", "soci")],
)
def test_a_daemon_that_dies(forms: TestRegistry, machine: Machine, mode: str, tag: str, name: str) -> None:
    """It is gone when the deployment asks it: the failure names it and the signal."""
    needs(mode)
    engine = make()
    asked = request(forms, machine, tag, mode, "default")
    try:
        engine.start(machine, asked)
        Killing(engine, name, signal.SIGKILL).strike()
        with pytest.raises(MachineError, match=rf"{name}\S* ended in the deployment \(killed by signal 9\)"):
            engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
    finally:
        engine.tear_down()
    assert_nothing_left(machine)


@pytest.mark.parametrize(
    ("mode", "tag", "name"),
    [("overlay2", "plain", "containerd"), ("estargz", "esgz", "stargz"), ("soci", "soci", "soci")],
)
def test_a_daemon_that_hangs(forms: TestRegistry, machine: Machine, mode: str, tag: str, name: str) -> None:
    """Nobody answers: at the deadline every process of the machine is killed, which ends the wait; nothing is left."""
    needs(mode)
    engine = make()
    asked = request(forms, machine, tag, mode, "default")

    def deadline() -> None:
        for pid in machine.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    try:
        engine.start(machine, asked)
        Killing(engine, name, signal.SIGSTOP).strike()
        timer = threading.Timer(1.0, deadline)
        timer.start()
        with pytest.raises(MachineError):
            engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
        timer.join()
    finally:
        engine.tear_down()
    assert_nothing_left(machine)


@pytest.mark.parametrize("mode", ["estargz", "soci"])
def test_an_image_without_the_form_is_no_lazy_start(forms: TestRegistry, machine: Machine, mode: str) -> None:
    """The snapshotter unpacks it without a word; the trial says so, in the snapshotter's words, and does not count."""
    needs(mode)
    with deployed(machine, request(forms, machine, "plain", mode, "default", "exit", "0")) as it:
        assert it.container.exit_code(10) == 0
        usage = it.engine.lazy_usage()
        assert usage is not None
        assert (usage.layers_lazy, usage.layers_unpacked) == (0, 2)
        (found,) = it.engine.report().invalid
        assert found.rule == "not-lazy"
        assert "unpacked every layer" in found.reason
        assert "no reason" not in found.reason, it.engine.report().log_tail


@pytest.mark.parametrize(("mode", "tag"), MODES[1:])
def test_without_labels_nothing_is_lazy(
    forms: TestRegistry, machine: Machine, mode: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that hands the snapshotter no labels gets a full pull; that is caught as well."""
    needs(mode)
    monkeypatch.setattr(ContainerdEngine, "_labels", False)
    with deployed(machine, request(forms, machine, tag, mode, "default", "exit", "0")) as it:
        assert it.container.exit_code(10) == 0
        assert [found.rule for found in it.engine.report().invalid] == ["not-lazy"]


@pytest.mark.parametrize(
    ("mode", "tag", "name"),
    [("overlay2", "plain", "containerd"), ("estargz", "esgz", "stargz"), ("soci", "soci", "soci")],
)
def test_a_daemon_out_of_memory(
    forms: TestRegistry, small_machine: Callable[..., Machine], mode: str, tag: str, name: str
) -> None:
    """The kernel kills a daemon for want of memory: that is the failure, whatever the others make of it."""
    needs(mode)
    machine = small_machine("memory=256M")
    engine = make()
    asked = request(forms, machine, tag, mode, "default")
    hog = f"import time; held = bytearray({300 << 20}); time.sleep(100)"
    try:
        engine.start(machine, asked)
        (victim,) = [daemon for daemon in engine._daemons if name in daemon.name]
        Path(f"/proc/{victim.pid}/oom_score_adj").write_text("1000")  # not the kernel's choice
        other = machine.spawn([sys.executable, "-S", "-c", hog])
        deadline = time.monotonic() + 30  # a small image can be there before the memory is gone
        while not machine.counters().oom_kills and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OutOfMemory, match="the machine ran out of memory"):
            engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
        other.kill()
        other.wait()
    finally:
        engine.tear_down()
    assert_nothing_left(machine)


@pytest.mark.parametrize(("mode", "tag"), MODES[1:])
def test_the_registry_goes_after_the_mount(tmp_path: Path, mode: str, tag: str) -> None:
    """A lazy container that reads what nobody serves any more gets an I/O error, and tear-down takes everything away
    all the same."""
    needs(mode)
    with ExitStack() as stack:
        network = stack.enter_context(SimulatedNetwork("gone"))
        serving = ExitStack()
        registry = serving.enter_context(run_registry(network.address, tmp_path))
        publish(registry, tmp_path)
        upstream = (registry.address, registry.port)
        machine = stack.enter_context(Machine(parse_shape("unlimited"), name="gone", registry_upstream=upstream))
        engine = make()
        try:
            asked = request(registry, machine, tag, mode, "default", "wait")
            engine.start(machine, asked)
            container = engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
            serving.close()
            process = WorkloadProcess(machine, container, 120.0)
            try:
                answer = process.request({"workload": "read-sequential", "paths": ["/data/0"]}, "reading")
            finally:
                process.close()
            assert "Input/output error" in answer["error"], answer
            assert engine.report().log_tail
        finally:
            engine.tear_down()
            serving.close()
        assert_nothing_left(machine)


def test_the_disk_runs_full(forms: TestRegistry, small_machine: Callable[..., Machine]) -> None:
    """A disk that does not hold the image is named as such, whoever met the end of it."""
    needs("overlay2")
    machine = small_machine("unlimited", scratch_bytes=24 << 20)
    fails(machine, request(forms, machine, "plain", "overlay2", "default"), DiskFull, "disk is full")


@pytest.mark.parametrize(("mode", "tag"), MODES)
def test_the_registry_is_gone(forms: TestRegistry, machine_without_registry: Machine, mode: str, tag: str) -> None:
    """Nobody listens there any more: a registry's error, not a machine's."""
    needs(mode)
    asked = replace(request(forms, machine_without_registry, tag, mode, "default"), registry=f"{forms.address}:1")
    fails(machine_without_registry, asked, RegistryError)


def test_the_image_is_not_there(forms: TestRegistry, machine: Machine) -> None:
    """An image of another name is not found, in containerd's words."""
    needs("overlay2")
    fails(machine, request(forms, machine, "other", "overlay2", "default"), ImageNotFound, "other")


def test_a_changed_blob_is_not_run(registry: TestRegistry, machine: Machine) -> None:
    """Bytes that are not what the manifest promises end the pull."""
    needs("overlay2")
    pushed = registry.push("changed", [base_layer(), tar_bytes([("f", {"data": os.urandom(100_000)})])])
    blob = registry.blob_file(pushed[1].digest)
    data = bytearray(blob.read_bytes())
    data[50_000] ^= 1
    blob.write_bytes(bytes(data))
    fails(machine, request(registry, machine, "changed", "overlay2", "default"), DigestMismatch)


def test_a_command_that_is_not_there(forms: TestRegistry, machine: Machine) -> None:
    """What the scenario wants to run is missing in the image: the workload's fault."""
    needs("overlay2")
    asked = request(forms, machine, "plain", "overlay2", "default")
    fails(machine, replace(asked, process=replace(asked.process, args=("/bin/nothing",))), WorkloadError, "nothing")


def test_registries_of_others_are_refused(forms: TestRegistry, machine: Machine) -> None:
    """What is not built is refused with words, before a daemon is up."""
    needs("overlay2")
    asked = replace(request(forms, machine, "plain", "overlay2", "default"), credentials={"user": "u", "secret": "s"})
    fails(machine, asked, UsageError, "the session's own registry only")


def test_nothing_of_the_users_environment_leaks_in(
    forms: TestRegistry, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that clients and daemons would follow do not reach them."""
    needs("estargz")
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock")
    monkeypatch.setenv("DOCKER_CONFIG", "/root/.docker")
    with deployed(machine, request(forms, machine, "esgz", "estargz", "default", "wait")) as it:
        for daemon in it.engine._processes():
            variables = Path(f"/proc/{daemon.pid}/environ").read_bytes()
            assert b"CONTAINERD_ADDRESS=" not in variables
            assert b"DOCKER_CONFIG=" not in variables
            assert f"HOME={machine.scratch}".encode() in variables


def test_an_interrupted_pull_ends_at_once(forms: TestRegistry, small_machine: Callable[..., Machine]) -> None:
    """Tearing down in the middle of a slow pull leaves no process and no mount."""
    needs("overlay2")
    machine = small_machine("cpu=1,memory=1G,bandwidth=1Mbit")
    forms.push("slow", layers(4))
    asked = request(forms, machine, "slow", "overlay2", "default")
    engine = make()
    engine.start(machine, asked)
    ended = threading.Event()

    def deploy() -> None:
        with suppress(ColdbenchError):
            engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
        ended.set()

    thread = threading.Thread(target=deploy)
    thread.start()
    before = machine.wire().received_bytes
    while machine.wire().received_bytes - before < 50_000:
        time.sleep(0.01)
    engine.tear_down()
    assert ended.wait(20)
    thread.join()
    assert_nothing_left(machine)


_VICTIM = """
import sys, time
from harness.machine.machine import Machine
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.engines.protocol import DeployRequest, Process, Unwatched
from harness.engines.containerd import ContainerdEngine
address, port, repository = sys.argv[1:]
machine = Machine(parse_shape("unlimited"), name="victim", registry_upstream=(address, int(port)))
machine.__enter__()
asked = DeployRequest(registry=machine.registry, repository=repository, reference="soci", mode="soci",
                      preset="default", process=Process(args=("/bin/probe", "wait")))
engine = ContainerdEngine()
engine.start(machine, asked)
engine.deploy(machine, asked, Recorder(time.monotonic_ns()), Unwatched())
print(machine.id, *machine.pids(), flush=True)
time.sleep(1000)
"""


def test_a_killed_harness_leaves_nothing(forms: TestRegistry) -> None:
    """After SIGKILL of the harness, shims, snapshotters and mounts go by themselves or by the next run's sweep."""
    needs("soci")
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, forms.address, str(forms.port), "test/image"], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    name, *pids = victim.stdout.readline().split()
    assert len(pids) >= 5, "containerd, snapshotter, helper, shim and container"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    leftovers.sweep()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert [root for root in find_mounts().roots if (root / f"coldbench-{name}").exists()] == []
    assert not Path(f"/run/coldbench/{name}.json").exists()
