"""The fixture ``cold_start`` in a user's own suite: rounds are times to ready, and a bad trial fails the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.engines.support import base_layer
from tests.session.support import SCENARIO, write_layout

if TYPE_CHECKING:
    from pathlib import Path

SUITE = """
def test_with_benchmark(cold_start, benchmark):
    benchmark.pedantic(cold_start, args=("tiny.toml",), kwargs={"mode": "overlay2:tuned"}, rounds=2)


def test_alone(cold_start):
    assert cold_start("tiny.toml", mode="erofs").time_to_ready_s > 0


def test_that_cannot_be_ready(cold_start):
    cold_start("broken.toml", mode="overlay2:tuned")
"""


def run_suite(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=place,
        env={**os.environ, "COLDBENCH_CACHE": str(place / "cache"), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
def test_rounds_are_times_to_ready(tmp_path: Path) -> None:
    """pytest-benchmark's JSON holds the trials' times and their cost; a trial that fails has a reason and no time."""
    layout = write_layout(tmp_path / "image", [base_layer()])
    good = SCENARIO.format(layout=layout, command='["/bin/probe", "exit"]', readiness='{ kind = "exit" }')
    broken = SCENARIO.format(layout=layout, command='["/bin/probe", "exit", "3"]', readiness='{ kind = "exit" }')
    (tmp_path / "tiny.toml").write_text(good, "utf-8")
    (tmp_path / "broken.toml").write_text(broken, "utf-8")
    (tmp_path / "test_shop.py").write_text(SUITE, "utf-8")
    done = run_suite(tmp_path, "--benchmark-json=b.json", "--basetemp=t")
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    (made,) = json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    recorded = [
        json.loads(line)["time_to_ready_s"]
        for path in sorted((tmp_path / "t").glob("test_with_benchmark0/trial*/observations.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert sorted(made["stats"]["data"]) == pytest.approx(sorted(recorded))
    assert {"cpu_s", "pull_s", "received_before_ready_bytes"} <= made["extra_info"].keys()
