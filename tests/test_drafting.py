"""A scenario drafted for an image loads, runs what was asked for, and says what was guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness import scenarios
from harness.drafting import Wish, draft, image_source, parse_ready, scenario_name
from harness.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.model.scenario import Scenario

RUNS = {"Cmd": ["python3", "/app.py"]}


def drafted(wish: Wish, config: dict[str, Any], paths: frozenset[str] = frozenset()) -> tuple[Scenario, str]:
    made = draft(wish, config, paths)
    return scenarios.parse(made.text, f"{made.name}.toml"), " ".join(made.guesses)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nginx:1.27", {"ref": "docker.io/library/nginx:1.27"}),
        ("ghcr.example/team/app@sha256:" + "0" * 64, {"ref": "ghcr.example/team/app@sha256:" + "0" * 64}),
        ("docker://registry.example:5000/shop:1", {"ref": "registry.example:5000/shop:1"}),
        ("oci:/images/shop:2", {"layout": "/images/shop:2"}),
        ("oci-archive:/images/shop.tar:2", {"archive": "oci-archive:/images/shop.tar:2"}),
        ("docker-archive:/images/shop.tar", {"archive": "docker-archive:/images/shop.tar"}),
    ],
)
def test_names_as_docker_and_skopeo_write_them(name: str, expected: dict[str, str]) -> None:
    """Each becomes the scenario's image table that means the same image."""
    assert image_source(name) == expected


def test_a_file_or_directory_that_is_there_is_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path needs no transport: a file is an archive, a directory an OCI layout; both become absolute."""
    (tmp_path / "shop.tar").touch()
    (tmp_path / "layout").mkdir()
    monkeypatch.chdir(tmp_path)
    assert image_source("shop.tar") == {"archive": str(tmp_path / "shop.tar")}
    assert image_source("layout:1") == {"layout": f"{tmp_path}/layout:1"}


@pytest.mark.parametrize("name", ["docker:nginx", "UPPER CASE", "ftp://x/y"])
def test_what_names_no_image_is_refused(name: str) -> None:
    """The error names the forms that are taken."""
    with pytest.raises(UsageError):
        image_source(name)


@pytest.mark.parametrize(
    ("image", "expected"),
    [("docker.io/library/nginx:1.27", "nginx-1.27"), ("/tmp/Shop Front.tar", "shop-front"), ("x/@sha256:00", "x")],
)
def test_the_scenario_is_named_after_the_image(image: str, expected: str) -> None:
    """The name is one a scenario may have."""
    assert scenario_name(image) == expected


def test_readiness_is_guessed_from_the_ports_and_said() -> None:
    """A web port goes before others; the guess is said with the way to be stricter."""
    scenario, said = drafted(Wish("nginx:1"), {**RUNS, "ExposedPorts": {"443/tcp": {}, "8080/tcp": {}, "53/udp": {}}})
    assert scenario.workload.readiness.model_dump(exclude={"timeout_s"}) == {"kind": "tcp", "port": 8080}
    assert "ready when port 8080" in said


def test_without_ports_ready_is_the_end_of_the_process() -> None:
    """So it is for a command given on the command line, whatever the image exposes."""
    scenario, said = drafted(Wish("x:1"), RUNS)
    assert scenario.workload.readiness.kind == "exit"
    assert "exposes no port" in said
    scenario, _ = drafted(Wish("x:1", command=("a", "b c")), {**RUNS, "ExposedPorts": {"80/tcp": {}}})
    assert scenario.workload.readiness.kind == "exit"
    assert scenario.workload.command == ("a", "b c")


@pytest.mark.parametrize("text", ["exit", "tcp:5432", "http:8080/healthz", 'stdout:^"ready"\\s+\\d', "stderr:up"])
def test_readiness_as_said(text: str) -> None:
    """Every form of --ready is taken over as it is, quotes and backslashes too, and nothing is guessed."""
    scenario, said = drafted(Wish("x:1", ready=text, quick=True), RUNS)
    assert said == ""
    made = scenario.workload.readiness.model_dump()
    assert made["kind"] == text.partition(":")[0]
    if made["kind"] in {"stdout", "stderr"}:
        assert made["pattern"] == text.partition(":")[2]


@pytest.mark.parametrize("text", ["", "tcp", "tcp:x", "http:/x", "stdout:", "exit:3", "listen:80"])
def test_readiness_that_is_none(text: str) -> None:
    """The error names all forms."""
    with pytest.raises(UsageError, match="stdout:REGEX"):
        parse_ready(text)


def test_workloads_fit_what_is_in_the_image() -> None:
    """Python is started where Python is, a shell's many processes where a shell is; --quick measures none."""
    paths = frozenset({"/usr/bin/python3", "/usr/bin/sh"})
    scenario, said = drafted(Wish("x:1"), RUNS, paths)
    names = [w.name for w in scenario.runtime.workloads]
    assert names == ["stat-walk", "read-small", "read-sequential", "start-python3", "exec-many"]
    assert "start-python3" in said
    node, _ = drafted(Wish("x:1"), RUNS, frozenset({"/usr/local/bin/node"}))
    assert "start-node" in [w.name for w in node.runtime.workloads]
    assert drafted(Wish("x:1", quick=True), RUNS, paths)[0].runtime.workloads == ()


def test_an_image_without_a_command_is_refused() -> None:
    """The error says how to give one."""
    with pytest.raises(UsageError, match="-- COMMAND"):
        draft(Wish("scratch:1"), {}, frozenset())


def test_modes_have_a_full_pull_to_stand_against() -> None:
    """Four modes when quick; the simple full pull beside them otherwise."""
    quick, _ = drafted(Wish("x:1", quick=True), RUNS)
    whole, _ = drafted(Wish("x:1"), RUNS)
    assert len(quick.modes) == 4
    assert len(whole.modes) == 5
    assert {m.key for m in quick.modes} < {m.key for m in whole.modes}
