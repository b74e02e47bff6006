"""``coldbench try``: from an image to an answer, with the scenario kept; bad input in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from tests.engines.support import base_layer
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path


def run_try(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_coldbench(place, "try", *arguments)


def run_coldbench(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=place,
        env={**os.environ, "COLDBENCH_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
def test_an_answer_without_a_scenario_file(tmp_path: Path) -> None:
    """The image is started in four modes; the answer, the report and a scenario that loads are there."""
    layout = write_layout(tmp_path / "tiny", [base_layer()])
    shape = "cpu=1,memory=128M"
    done = run_try(
        tmp_path,
        f"oci:{layout}",
        "--shape",
        shape,
        "--quick",
        "--minutes",
        "0.1",
        "--out",
        "r",
        "--",
        "/bin/probe",
        "exit",
    )
    assert done.returncode == 0, done.stderr
    assert "1 block: no verdict" in done.stdout
    assert "so far: " in done.stderr
    assert "guessed: ready when the process has ended" in done.stderr
    assert (tmp_path / "r" / "report.html").exists()
    kept = scenarios.load(tmp_path / "r.toml")
    assert kept.workload.command == ("/bin/probe", "exit")
    assert "coldbench run r.toml" in done.stdout
    advised = run_coldbench(tmp_path, "advise", "r", "--shape", shape, "--shape", "cpu=0.25,memory=128M", "--json")
    assert advised.returncode == 0, advised.stderr
    (advice,) = json.loads(advised.stdout)
    assert [(choice["measured"], choice["shape"]) for choice in advice["choices"]] == [
        (True, shape),
        (False, "cpu=0.25,memory=128M"),
    ]
    assert advice["choices"][1]["ready_s"] > 0
    assert advice["contents"]["files_read"] >= 1
    assert advice["read_in"] == "a start"


@pytest.mark.files
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.tar.gz.d/x",), "--"),
        (("nginx:1.27", "--ready", "listen:80"), "expected exit, tcp:PORT"),
        (("docker:nginx",), "docker://"),
        (("oci:none:1", "--ready", "exit"), "not an OCI layout"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot be tried is refused before anything runs, in words, and nothing is left in the directory."""
    if arguments[0].startswith("nothing"):
        arguments = (f"oci:{write_layout(tmp_path / 'tiny', [base_layer()])}", "--quick", "--shape", "cpu=nope")
        said = "cpu"
    done = run_try(tmp_path, *arguments)
    assert done.returncode in {2, 5}
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())
