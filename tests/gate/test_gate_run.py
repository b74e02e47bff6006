"""Whole gates on a tiny real image: passes on itself, fails on a grown image with its paths, confirms, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.gate.schemas import schema
from harness.session.store import load
from tests.engines.support import base_layer
from tests.session.support import write_layout, write_scenario

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(cache: Path, here: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=here,
        env={**os.environ, "COLDBENCH_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def grown_layer() -> bytes:
    """A layer with one large new file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("data/model.bin")
        entry.size = 300_000
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    return out.getvalue()


def test_a_grown_image_fails_in_one_block_with_its_path(cache: Path, tmp_path: Path) -> None:
    """Counters alone: the candidate has a further layer; exit code 1 after one block, naming file and line."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    grown = write_layout(tmp_path / "grown", [base_layer(), grown_layer()])
    text = scenario.read_text()
    baseline = text.split('layout = "')[1].split('"')[0]
    scenario.write_text(text.replace(baseline, grown))
    step = tmp_path / "step.md"
    done = run(
        cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{baseline}", "--out", "g", "--seed", "1",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(step),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "new: /data/model.bin (+300 kB)" in done.stdout
    assert "Times were not looked at" in done.stdout
    assert f"::error file={scenario},line=3,title=coldbench image-bytes::" in done.stdout
    assert "/data/model.bin" in step.read_text()
    data = json.loads((tmp_path / "g" / "gate.json").read_text())
    jsonschema.validate(data, schema("gate"))
    assert data["blocks"] == 1
    assert data["exit_code"] == 1
    assert sum(1 for _ in (tmp_path / "g" / "observations.jsonl").open()) == 2


def test_an_image_against_itself_passes(cache: Path, tmp_path: Path) -> None:
    """Six blocks of the same image twice: no counter differs, exit code 0; then a stored baseline of this session."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    done = run(
        cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{layout}", "--blocks", "6", "--out", "g"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "g" / "gate.json").read_text())["decision"] in {
        "pass",
        "inconclusive",
        "not confirmed",
    }
    stored = run(
        cache, tmp_path, "gate", str(scenario), "--baseline", "g#scenario=tiny", "--counters-only", "--out", "h"
    )
    assert stored.returncode == 0, stored.stdout + stored.stderr
    assert "The baseline is 0 hours old" in stored.stdout


def test_missing_baselines(cache: Path, tmp_path: Path) -> None:
    """No baseline named and one mode only: exit code 6; a directory without a session, or two baselines: 2."""
    scenario = str(write_scenario(tmp_path, ["/bin/probe", "exit"]))
    assert run(cache, tmp_path, "gate", scenario).returncode == 6
    none = run(cache, tmp_path, "gate", scenario, "--baseline", "nowhere")
    assert none.returncode == 2
    assert "no session.json" in none.stderr
    assert run(cache, tmp_path, "gate", scenario, "--baseline", "x", "--baseline-mode", "erofs").returncode == 2
    fewer = run(cache, tmp_path, "gate", scenario, "--baseline-mode", "erofs", "--blocks", "8", "--max-blocks", "7")
    assert fewer.returncode == 2
    assert "--max-blocks 7 is below" in fewer.stderr


def test_trials_that_fail_are_no_pass(cache: Path, tmp_path: Path) -> None:
    """A program that ends with the wrong code is no pass: exit code 5, and the reason is said."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit", "3"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    done = run(
        cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{layout}", "--counters-only", "--out", "g",
        GITHUB_ACTIONS="true",
    )  # fmt: skip
    assert done.returncode == 5, done.stdout
    assert "exit code 3 instead of 0" in done.stdout + done.stderr
    assert f"::error file={scenario},line=3,title=coldbench::" in done.stdout
    left(tmp_path / "g")


def left(directory: Path) -> dict[str, Any]:
    """What gate.json says; all four files of a gate that came to no verdict are there, JUnit with one error."""
    suite = ET.parse(directory / "junit.xml").getroot()
    assert suite.get("errors") == "1"
    for name in ("summary.md", "comment.md"):
        assert "could not be" in (directory / name).read_text()
    data: dict[str, Any] = json.loads((directory / "gate.json").read_text())
    jsonschema.validate(data, schema("gate"))
    return data


def test_an_image_that_cannot_be_had_is_no_pass(cache: Path, tmp_path: Path) -> None:
    """The run ends with 5; summary, JUnit, JSON and annotation are there and name the image."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    step = tmp_path / "step.md"
    done = run(
        cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{tmp_path}/nowhere", "--out", "g",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(step),
    )  # fmt: skip
    assert done.returncode == 5, done.stdout
    failure = left(tmp_path / "g")["failure"]
    assert (failure["kind"], failure["exit_code"]) == ("ImageNotFound", 5)
    assert "not an OCI layout" in step.read_text()
    [line] = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert line.startswith(f"::error file={scenario},line=3,title=coldbench::")
    assert done.stderr.rstrip().splitlines()[-1].startswith("coldbench: oci:")


def test_an_unfit_host_is_no_pass(cache: Path, tmp_path: Path) -> None:
    """Without a container runtime the gate ends with 4, and the files say how to mend it."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    done = run(
        cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{layout}", "--out", "g",
        GITHUB_ACTIONS="true", PATH=str(tmp_path / "empty"),
    )  # fmt: skip
    assert done.returncode == 4, done.stdout
    data = left(tmp_path / "g")
    assert (data["decision"], data["exit_code"]) == ("error", 4)
    assert "apt-get install crun" in data["failure"]["message"]


def test_a_wrong_scenario_is_annotated(cache: Path, tmp_path: Path) -> None:
    """Where not even the scenario can be read there is one annotation, and the exit code of a wrong file."""
    path = tmp_path / "wrong.toml"
    path.write_text("name = 3\n")
    done = run(cache, tmp_path, "gate", str(path), GITHUB_ACTIONS="true")
    assert done.returncode == 2
    assert done.stdout.startswith("::error title=coldbench::")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("apart", [False, True], ids=["one cache", "two caches"])
def test_two_gates_at_once_in_one_directory(cache: Path, tmp_path: Path, apart: bool) -> None:
    """One of them decides and leaves its session and files whole; the other is refused, and writes over none of them.

    With one cache the second waits for its turn; with two nothing but the directory keeps them apart.
    """
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    gates = [
        subprocess.Popen(
            [sys.executable, "-m", "harness", "gate", str(scenario), "--baseline-image", f"oci:{layout}",
             "--counters-only", "--out", "g", "--seed", str(seed)],
            cwd=tmp_path, env={**os.environ, "COLDBENCH_CACHE": str(tmp_path / "own" if apart and seed else cache)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    said = [gate.communicate(timeout=300) for gate in gates]
    codes = [gate.returncode for gate in gates]
    assert sorted(codes) == [0, 2], said
    seed = codes.index(0)
    out, wrong = said[1 - seed]
    assert "**could not be run**" in out
    assert "holds a session already" in wrong or "another coldbench is running this session" in wrong
    header, observations = load(tmp_path / "g")
    assert header.seed == seed
    assert [o.status for o in observations] == ["ok", "ok"]
    assert {o.session for o in observations} == {header.session}
    data = json.loads((tmp_path / "g" / "gate.json").read_text())
    assert (data["decision"], data["failure"]) == ("pass", None)
    for name in ("summary.md", "comment.md", "gate.json"):
        assert f"--seed {seed}" in (tmp_path / "g" / name).read_text()
    assert ET.parse(tmp_path / "g" / "junit.xml").getroot().get("errors") == "0"


def test_two_gates_at_once_without_a_directory(cache: Path, tmp_path: Path) -> None:
    """Each has a place of its own below results; the second waits for the first, and says so."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    command = [sys.executable, "-m", "harness", "gate", str(scenario), "--baseline-image", f"oci:{layout}"]
    gates = [
        subprocess.Popen(
            [*command, "--counters-only"], cwd=tmp_path, env={**os.environ, "COLDBENCH_CACHE": str(cache)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [gate.communicate(timeout=300) for gate in gates]
    assert [gate.returncode for gate in gates] == [0, 0], said
    places = sorted((tmp_path / "results").iterdir())
    assert len(places) == 2
    for place in places:
        assert len(load(place)[1]) == 2
        assert json.loads((place / "gate.json").read_text())["decision"] == "pass"


def test_a_confirmation_of_before_is_refused_at_once(cache: Path, tmp_path: Path) -> None:
    """Where the second session's place is taken the gate ends before it measures, and leaves what is there alone."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    layout = scenario.read_text().split('layout = "')[1].split('"')[0]
    taken = tmp_path / "g-confirmation"
    taken.mkdir()
    (taken / "session.json").write_text("{}")
    done = run(cache, tmp_path, "gate", str(scenario), "--baseline-image", f"oci:{layout}", "--out", "g")
    assert done.returncode == 2
    assert "g-confirmation: holds a session already" in done.stderr
    assert not (tmp_path / "g" / "session.json").exists()
    assert [path.name for path in taken.iterdir()] == ["session.json"]
