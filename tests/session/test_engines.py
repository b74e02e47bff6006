"""Engines are asked whether they can run before a session starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HostUnfit, ScenarioError, UsageError
from harness.model.plan import Selection
from harness.model.scenario import Scenario
from harness.scenarios import parse
from harness.session.engines import runnable_plan

if TYPE_CHECKING:
    from pathlib import Path


def scenario(engines: Any, **fields: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "web",
            "image": {"ref": "docker://registry.example/web:1"},
            "workload": {"readiness": {"kind": "exit"}},
            "modes": ["overlay2:tuned", "erofs"],
            "engines": engines,
            **fields,
        }
    )


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A complete Docker 20.10 as far as versions tell, found by the environment."""
    for name in ("dockerd", "containerd", "containerd-shim-runc-v2", "runc"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Docker version 20.10.24, build x'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("COLDBENCH_DOCKERD", str(tmp_path / "dockerd"))
    return str(tmp_path / "dockerd")


def cases(found: Scenario, selection: Selection | None = None) -> tuple[list[str], tuple[str, ...]]:
    plan = runnable_plan([found], 1, selection)
    return [f"{c.case.engine} {c.case.mode}:{c.case.preset}" for c in plan.cases], plan.left_out


@pytest.mark.usefixtures("dockerd")
def test_an_engine_without_an_entry_of_its_own_runs_its_default() -> None:
    """Adding an engine to a scenario needs no knowledge of its presets."""
    expected = ["embedded overlay2:tuned", "embedded erofs:tuned", "docker overlay2:overlay2"]
    assert cases(scenario(["embedded", "docker"])) == (expected, ())
    assert cases(scenario({"embedded": {}, "docker": {}})) == (expected, ())


def test_a_missing_engine_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is prepared, not in the first trial."""
    monkeypatch.setenv("COLDBENCH_DOCKERD", "/nowhere/dockerd")
    with pytest.raises(HostUnfit, match=r"engine docker: there is no program /nowhere/dockerd; install it"):
        runnable_plan([scenario(["embedded", "docker"])], 1)


def test_an_optional_engine_is_left_out_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others run; who names the engine wants it, and then it is not optional."""
    monkeypatch.setenv("COLDBENCH_DOCKERD", "/nowhere/dockerd")
    optional = scenario({"embedded": {}, "docker": {"optional": True}})
    names, left_out = cases(optional)
    assert names == ["embedded overlay2:tuned", "embedded erofs:tuned"]
    assert [reason[:14] for reason in left_out] == ["engine docker:"]
    with pytest.raises(HostUnfit, match="engine docker"):
        runnable_plan([optional], 1, Selection(engines=("docker",)))


@pytest.mark.usefixtures("dockerd")
def test_a_preset_the_found_version_lacks_is_refused() -> None:
    """20.10 has no images in containerd's store, which its version says."""
    with pytest.raises(HostUnfit, match=r"dockerd 20.10.24 keeps no images in containerd's store"):
        runnable_plan([scenario(["docker"], modes=["overlay2:containerd-store"])], 1)


@pytest.mark.usefixtures("dockerd")
def test_a_registry_elsewhere_is_refused_for_docker() -> None:
    """dockerd cannot be led through relays; the embedded engine's clients can."""
    with pytest.raises(UsageError, match="leave --registry or that engine out"):
        runnable_plan([scenario(["embedded", "docker"])], 1, registry="https://registry.example")
    assert runnable_plan([scenario(["embedded"])], 1, registry="https://registry.example").cases


def test_the_scenario_names_its_dockerd(dockerd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of an engine says which program it is."""
    monkeypatch.delenv("COLDBENCH_DOCKERD")
    names, _ = cases(scenario({"docker": {"dockerd": dockerd}}))
    assert names == ["docker overlay2:overlay2"]


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ('engines = ["dokcer"]', r"web.toml:5: engines.*did you mean 'docker'"),
        ("[engines.podman]", r"web.toml:\d+: engines.*no engine called 'podman'"),
        ('[engines.docker]\nsocket = "/run/docker.sock"', r"web.toml:6: engines.docker.socket: unknown key"),
        ("[engines.docker]\ndockerd = 3", r"web.toml:6: engines.docker.dockerd: expected a string, got 3"),
    ],
)
def test_wrong_engines_in_a_file(engines: str, message: str) -> None:
    """Messages name file, line and key."""
    text = 'name = "web"\nimage.ref = "docker://r.example/web:1"\nworkload.readiness.kind = "exit"\n\n'
    with pytest.raises(ScenarioError, match=message):
        parse(text + engines, "web.toml")
