"""The real containerd: real daemons, a real registry, a real machine, each snapshotter."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.container import RunningContainer
from harness.engines.protocol import Process
from harness.kernel.namespaces import KINDS
from harness.session import observing
from tests.engines.containerd.support import deployed, make, needs, request
from tests.engines.support import Watching

if TYPE_CHECKING:
    from harness.machine.machine import Machine
    from tests.engines.support import TestRegistry

pytestmark = pytest.mark.root

EAGER = [("overlay2", "default", "plain"), ("overlay2", "parallel", "plain"), ("soci", "parallel-pull", "soci")]
LAZY = [("estargz", "default", "esgz"), ("soci", "default", "soci")]


@pytest.mark.parametrize(("mode", "preset", "tag"), [*EAGER, *LAZY])
def test_a_container_starts(forms: TestRegistry, machine: Machine, mode: str, preset: str, tag: str) -> None:
    """The program runs, its output and exit code come through, phases are told and spans are in the order of time."""
    needs(mode, preset)
    seen: list[int] = []
    watch = Watching(lambda container: seen.append(container.pid))
    with deployed(machine, request(forms, machine, tag, mode, preset, "exit", "7"), watch=watch) as it:
        assert it.output(it.container.stdout).startswith("at ")
        assert it.output(it.container.stderr) == "leaving with 7\n"
        assert it.container.exit_code(10) == 7
        assert seen == [it.container.pid]
        assert watch.phases == ["create", "start"]
        spans = {span.name: span for span in it.timeline.sorted()}
        assert {"resolve", "create", "start"} <= set(spans)
        assert 0 <= spans["resolve"].start_s <= spans["resolve"].end_s <= spans["create"].start_s
        assert spans["create"].end_s == spans["start"].start_s
        versions = it.engine.report().details.versions
        assert versions is not None
        assert versions["containerd"]


@pytest.mark.parametrize("preset", ["default", "parallel"])
def test_a_full_pull_is_seen_layer_by_layer(forms: TestRegistry, machine: Machine, preset: str) -> None:
    """Each layer has a span of its fetch and one of its unpacking, which begins when it has been fetched."""
    needs("overlay2", preset)
    with deployed(machine, request(forms, machine, "plain", "overlay2", preset)) as it:
        spans = it.timeline.sorted()
        fetched = {span.layer: span for span in spans if span.name == "fetch"}
        unpacked = {span.layer: span for span in spans if span.name == "unpack"}
        assert set(fetched) == set(unpacked) == {0, 1}
        assert all(fetched[n].end_s <= unpacked[n].start_s <= unpacked[n].end_s for n in (0, 1))
        assert it.engine.lazy_usage() is None
        assert it.engine.daemon_pids() == ()
        assert it.engine.finish_background(0, it.timeline)


@pytest.mark.parametrize(("mode", "preset", "tag"), LAZY)
def test_a_lazy_snapshotter_serves(forms: TestRegistry, machine: Machine, mode: str, preset: str, tag: str) -> None:
    """Every layer is lazy, the root file system is FUSE, most bytes stay where they are, its counters are read."""
    needs(mode, preset)
    before = machine.wire().received_bytes
    with deployed(machine, request(forms, machine, tag, mode, preset, "wait")) as it:
        received = machine.wire().received_bytes - before
        usage = it.engine.lazy_usage()
        assert usage is not None
        assert (usage.layers_lazy, usage.layers_unpacked) == (2, 0)
        assert usage.fuse is None
        kinds = observing.root_file_systems(machine, (it.container.pid, *it.engine.daemon_pids()))
        assert any(kind.startswith("fuse") for kind in kinds)
        assert received < 9 << 20
        report = it.engine.report()
        assert report.invalid == ()
        counted = report.details.snapshotter_metrics_at_ready
        assert counted is not None
        assert counted["operation_duration_milliseconds_count.mount"] == 2
        if mode == "estargz":  # SOCI begins after half a minute of silence
            # Everything arrives in the background, and the end of that is noticed.
            assert it.engine.finish_background(120, it.timeline)
            assert machine.wire().received_bytes - before > 12 << 20


def test_the_process_is_as_asked(forms: TestRegistry, machine: Machine) -> None:
    """Arguments, environment, user and directory of the scenario go before the image's."""
    needs("overlay2")
    process = Process(args=("/bin/probe", "who"), env={"MARK": "here"}, cwd="/tmp", user="app")
    asked = replace(request(forms, machine, "plain", "overlay2", "default"), process=process)
    with deployed(machine, asked) as it:
        said = it.output(it.container.stdout)
        assert "uid=1000 gid=100 cwd=/tmp" in said
        assert machine.outside(f"{it.container.root}/bin/probe").exists()


@pytest.mark.parametrize(
    ("fields", "filtered", "has"),
    [({}, "2", False), ({"capabilities": ("CAP_SYS_NICE",)}, "2", True), ({"privileged": True}, "0", True)],
    ids=["default", "capability", "privileged"],
)
def test_what_a_scenario_asks_for_it_gets(
    forms: TestRegistry, machine: Machine, fields: dict[str, Any], filtered: str, has: bool
) -> None:
    """A capability beyond Docker's, and privileges altogether, are the container's; by default it has a filter."""
    needs("overlay2")
    process = Process(args=("/bin/probe", "wait"), **fields)
    with deployed(machine, replace(request(forms, machine, "plain", "overlay2", "default"), process=process)) as it:
        status = Path(f"/proc/{it.container.pid}/status").read_text()
        said = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert said["Seccomp"] == filtered
        assert bool(int(said["CapBnd"], 16) & 1 << 23) == has
        assert said["NoNewPrivs"] == ("0" if "privileged" in fields else "1")


def test_a_container_that_ended_before_anybody_looked(
    forms: TestRegistry, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run-time workloads have its namespaces all the same: the helper held them before its process ran."""
    needs("overlay2")

    def late(self: RunningContainer, pid: int) -> None:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(RunningContainer, "watch", late)
    with deployed(machine, request(forms, machine, "plain", "overlay2", "default", "exit", "0")) as it:
        assert it.container.exit_code(20) == 0
        assert it.container.namespaces is not None
        assert set(it.container.namespaces.descriptors) == set(KINDS)


def test_the_container_is_the_machines(forms: TestRegistry, machine: Machine) -> None:
    """The container is charged to the machine, has its network, and goes on until it is ended."""
    needs("overlay2")
    with deployed(machine, request(forms, machine, "plain", "overlay2", "default", "wait")) as it:
        assert it.container.pid in machine.pids()
        network = os.readlink(f"/proc/{it.container.pid}/ns/net")
        assert network == os.readlink(f"/proc/{machine.namespace_pid}/ns/net")
        assert it.container.exit_code(0.05) is None


def test_nothing_of_the_hosts_containerd_is_touched(forms: TestRegistry, machine: Machine) -> None:
    """No socket, no state, no directory appears in containerd's usual places."""
    needs("overlay2")
    usual = [Path(p) for p in ("/run/containerd", "/var/lib/containerd", "/opt/containerd", "/run/nri", "/run/runc")]

    def there() -> set[str]:
        return {str(path) for top in usual if top.exists() for path in [top, *top.rglob("*")]}

    before = there()
    with deployed(machine, request(forms, machine, "plain", "overlay2", "default", "wait")):
        assert there() - before == set()
    assert there() - before == set()


def test_two_at_once_do_not_meet(forms: TestRegistry, machine: Machine, small_machine: object) -> None:
    """A second containerd in a second machine runs beside the first, with the same names for everything."""
    needs("estargz")
    other = small_machine("unlimited")  # type: ignore[operator]
    with deployed(machine, request(forms, machine, "esgz", "estargz", "default", "wait")) as one:
        with deployed(other, request(forms, other, "esgz", "estargz", "default", "exit", "3")) as two:
            assert two.container.exit_code(10) == 3
        assert one.container.exit_code(0.05) is None


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A containerd that is too old, or none, is one line with the version found and the way to a newer one."""
    old = tmp_path / "containerd"
    old.write_text("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20~ds1\n")
    old.chmod(0o755)
    monkeypatch.setenv("COLDBENCH_CONTAINERD", str(old))
    found = make().available("overlay2")
    assert "containerd 1.6.20" in found.reason
    assert "too old, 2.2 or newer is wanted; build it with `./dev engines`" in found.reason
    assert [program.version for program in found.programs][:1] == ["1.6.20"]
    monkeypatch.setenv("COLDBENCH_CONTAINERD", str(tmp_path / "none"))
    assert "there is no containerd" in make().available("overlay2").reason
