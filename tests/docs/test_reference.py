"""What the documents show of the reference session is what its files say now."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[2]


@pytest.mark.files
def test_no_figure_or_table_is_stale() -> None:
    """Each is made from results/reference by ``nox -s reference -- write``; the message says so."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_loads_and_names_no_host() -> None:
    """Its sessions load as any other's, every scenario once, and only what a stranger can have stands in the header."""
    sessions = harness.load(str(ROOT / "results" / "reference" / "*"))
    scenarios = [name for header in sessions.headers for name in header.scenarios]
    assert len(set(scenarios)) == len(scenarios) > 0
    for header in sessions.headers:
        assert "name" not in header.host
        assert all(not path.startswith("/") for path in header.scenario_files.values())


@pytest.mark.files
def test_a_changed_number_is_found(tmp_path: Path) -> None:
    """A table edited by hand is stale, and named."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("harness", "scenarios"):
        (copy / name).symlink_to(ROOT / name)
    for name in ("docs", "results/reference", "tools"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "README.md", copy)
    readme = copy / "README.md"
    readme.write_text(
        readme.read_text("utf-8").replace("| overlay2:sequential | ", "| overlay2:sequentiel | ", 1), "utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(copy / "tools" / "reference.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "README.md" in done.stdout
