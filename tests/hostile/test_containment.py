"""What a hostile image's programs can do: as the container's process and as run-time workloads. Needs root."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from harness.engines.confinement import Confinement
from harness.engines.protocol import Process
from harness.errors import MissingTool
from harness.kernel.seccomp import compile_profile
from harness.probes.workloads import WorkloadProcess
from tests.engines.test_embedded import deployed
from tests.hostile.images import CONTAINER_CAPABILITIES, PROGRAM, results

if TYPE_CHECKING:
    from harness.machine.machine import Machine
    from harness.probes.workload_process import Request
    from tests.engines.support import TestRegistry

pytestmark = pytest.mark.root

EVERYTHING = ("status", "namespaces", "calls", "devices", "paths")


def run(machine: Machine, registry: TestRegistry, *words: str, **fields: Any) -> dict[str, str]:
    """What the program says as the container's own process."""
    request = registry.request("hostile", process=Process(args=(PROGRAM, *words), **fields))
    with deployed(machine, request) as made:
        return results(made.output())


def run_as_workload(machine: Machine, registry: TestRegistry, ended: bool, *words: str) -> dict[str, str]:
    """What it says as a run-time workload, while the container's process lives or after it has ended."""
    request = registry.request("hostile", process=Process(args=(PROGRAM, *([] if ended else ["sleep"]))))
    with deployed(machine, request) as made:
        if ended:
            assert made.container.exit_code(10.0) == 0
        process = WorkloadProcess(machine, made.container, 20.0)
        try:
            told: Request = {"workload": "command", "argv": [PROGRAM, "report", "/tmp/said", *words]}
            answer = process.request(told, "attack")
            assert "error" not in answer
        finally:
            process.close()
        return results(machine.outside(f"{made.container.root}/tmp/said").read_text())


def check_everything(said: dict[str, str], *, own_filter: bool = True) -> None:
    """Nothing beyond what Docker's containers can do. A Docker has a filter of its own (not ``own_filter``), which let
    VSOCK and io_uring through until version 25."""
    assert said["CapEff"] == said["CapBnd"] == CONTAINER_CAPABILITIES
    assert said["NoNewPrivs"] == "1"
    assert said["Seccomp"] == "2"
    refused = {name: said[name] for name in ("unshare-user", "unshare-mount", "clone-user", "clone3-user")}
    assert refused == {
        "unshare-user": "EPERM",
        "unshare-mount": "EPERM",
        "clone-user": "EPERM",
        "clone3-user": "ENOSYS",
    }
    newer = ("vsock", "io_uring") if own_filter else ()
    calls = {name: said[name] for name in ("mount", "bpf", "keyctl", *newer)}
    assert calls == dict.fromkeys(calls, "EPERM")
    opened = {name for name, result in said.items() if name.startswith(("layer-", "made-", "dev-")) and result == "ok"}
    assert opened == {"dev-null", "dev-urandom", "layer-null"}, "a node of a standard device is what it says"
    assert said["core-pattern"] == said["sys"] == "EROFS"
    assert said["sysrq"] in ("EROFS", "ENOENT"), "ENOENT: a kernel without it"
    assert said["kcore"] == "empty"


def test_the_containers_process_is_confined(machine: Machine, hostile: TestRegistry) -> None:
    """Capabilities, system calls, devices and paths are Docker's, and the process is the first of its namespace."""
    said = run(machine, hostile, *EVERYTHING)
    check_everything(said)
    assert said["NSpid"].split()[-1] == "1"


def test_the_runtime_takes_the_filter_that_was_made_before(
    machine: Machine, hostile: TestRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is in force and not the profile, which here refuses one call more: nothing is translated twice."""
    profile = Confinement().seccomp()
    assert profile is not None
    profile["syscalls"][0]["names"].append("keyctl")
    program = compile_profile(profile)
    monkeypatch.setattr(Confinement, "seccomp_program", lambda _: program)
    said = run(machine, hostile, *EVERYTHING)
    assert said["keyctl"] != "EPERM"
    assert said["mount"] == said["bpf"] == "EPERM"


def test_without_libseccomp_the_runtime_translates_the_profile(
    machine: Machine, hostile: TestRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is confined as ever where the harness cannot make the program."""
    missing = Mock(side_effect=MissingTool("libseccomp is not installed"))
    monkeypatch.setattr(Confinement, "seccomp_program", missing)
    check_everything(run(machine, hostile, *EVERYTHING))
    assert missing.called


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_workloads_are_confined(machine: Machine, hostile: TestRegistry, ended: bool) -> None:
    """Programs that run-time workloads execute have what the container's process has, also after that has ended."""
    said = run_as_workload(machine, hostile, ended, *EVERYTHING)
    check_everything(said)
    assert len(said["NSpid"].split()) == 1, "its /proc is that of its own pid namespace"
    assert 1 < int(said["NSpid"]) < 100


@pytest.mark.parametrize("seen", [False, True], ids=["under-a-request", "between-requests"])
def test_workloads_go_on_when_the_container_ends(
    machine: Machine, hostile: TestRegistry, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose first process ends after the workloads have begun takes its pid namespace along; programs are
    executed all the same, as confined as before, whether its end is seen before the next request or by its failure."""
    request = hostile.request("hostile", process=Process(args=(PROGRAM, "sleep")))
    with deployed(machine, request) as made:
        process = WorkloadProcess(machine, made.container, 20.0)
        try:
            told: Request = {"workload": "command", "argv": [PROGRAM, "report", "/tmp/said", *EVERYTHING]}
            assert "error" not in process.request({"workload": "command", "argv": [PROGRAM]}, "first")
            os.kill(made.container.pid, signal.SIGKILL)
            made.container.exit_code(10.0)
            assert made.container.exited_at_ns() is not None
            if not seen:
                with monkeypatch.context() as blind:
                    blind.setattr(process, "_enter_anew_if_ended", lambda _timeout_s: False)
                    answer = process.request(told, "second")
                assert "Cannot allocate memory" in answer["error"]
                assert process.lost_its_place(answer)
            answer = process.request(told, "again")
            assert "error" not in answer, answer
            assert not process.lost_its_place(answer)
        finally:
            process.close()
        check_everything(results(machine.outside(f"{made.container.root}/tmp/said").read_text()))


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_the_measuring_process_is_out_of_reach(machine: Machine, hostile: TestRegistry, ended: bool) -> None:
    """A workload's program sees no process but the container's, opens nothing of theirs that measures, and traces it
    not; what it writes to any descriptor is no answer."""
    said = run_as_workload(machine, hostile, ended, "others", "forge")
    assert said["others-seen"] == "1", "the first process of its pid namespace"
    if ended:
        assert (said["others-opened"], said["others-traced"]) == ("0", "0"), "it is ours"


def test_forged_answers_do_not_count(machine: Machine, hostile: TestRegistry) -> None:
    """A program that writes answers to all descriptors it has changes nothing of what is measured."""
    with deployed(machine, hostile.request("hostile", process=Process(args=(PROGRAM, "sleep")))) as made:
        process = WorkloadProcess(machine, made.container, 20.0)
        try:
            answers = [
                process.request({"workload": "command", "argv": [PROGRAM, "forge"]}, "forging") for _ in range(3)
            ]
        finally:
            process.close()
        assert all(answer["wall_s"] > 0 for answer in answers)


def test_a_program_with_the_set_user_id_bit_gains_nothing(machine: Machine, hostile: TestRegistry) -> None:
    """A user's process that executes root's set-user-ID program stays that user's."""
    request = hostile.request("hostile", process=Process(args=("/bin/root", "euid"), user="user"))
    with deployed(machine, request) as made:
        assert results(made.output()) == {"euid": "1000"}


def test_what_a_scenario_asks_for_it_gets(machine: Machine, hostile: TestRegistry) -> None:
    """A capability and a device by name, and no others."""
    assert Path("/dev/fuse").exists()
    said = run(machine, hostile, "status", "devices", capabilities=("CAP_SYS_NICE",), devices=("/dev/fuse",))
    assert int(said["CapEff"], 16) == int(CONTAINER_CAPABILITIES, 16) | 1 << 23
    assert said["made-fuse"] == "ok"
    assert said["made-loop"] == said["made-kmsg"] == "EPERM"


def test_privileged_is_without_limits(machine: Machine, hostile: TestRegistry) -> None:
    """``privileged`` is what it says; so it has to be asked for."""
    said = run(machine, hostile, "status", "devices", "namespaces", privileged=True)
    assert said["Seccomp"] == said["NoNewPrivs"] == "0"
    assert said["layer-mem"] != "EACCES"
    assert said["made-fuse"] == "ok"
    assert said["unshare-user"] == "ok"
    assert Confinement(privileged=True).described() == {"privileged": True}


def test_modules_of_the_image_are_never_imported(machine: Machine, hostile: TestRegistry) -> None:
    """Once inside, the measuring process looks for no module: one that the image offers stays unread."""
    with deployed(machine, hostile.request("hostile", process=Process(args=(PROGRAM, "sleep")))) as made:
        process = WorkloadProcess(machine, made.container, 20.0)
        try:
            pid = process._process.pid
            before = Path(f"/proc/{pid}/maps").read_text()
            process.request({"workload": "command", "argv": [PROGRAM]}, "running")
            process.request({"workload": "stat-walk", "paths": ["/srv/file1"]}, "walking")
            process.request({"workload": "read-small", "paths": ["/missing"]}, "failing")
            after = Path(f"/proc/{pid}/maps").read_text()
        finally:
            process.close()
        files = [{line.split()[-1] for line in text.splitlines() if "/" in line} for text in (before, after)]
        assert files[1] <= files[0]


def test_nothing_of_it_is_left(machine: Machine, hostile: TestRegistry) -> None:
    """After the workloads have run in an ended container, the process that stood for its first one is gone, too."""
    before = set(machine.pids())
    run_as_workload(machine, hostile, True, "status")
    deadline = time.monotonic() + 10
    while (left := set(machine.pids()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == set()


def test_attacks_as_an_ordinary_user_of_the_host(tmp_path: Path) -> None:
    """The attacks try something: outside of any confinement, most of them succeed for root, which runs this test."""
    from tests.hostile.images import attacker

    program = tmp_path / "attacker"
    program.write_bytes(attacker())
    program.chmod(0o755)
    done = subprocess.run([program, "status", "namespaces"], capture_output=True, text=True, check=True)
    said = results(done.stdout)
    assert said["Seccomp"] == "0"
    assert said["unshare-user"] == "ok"
    assert os.geteuid() == 0
