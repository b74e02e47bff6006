"""The wheel is the whole program: installed in an environment of its own, it works from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from harness import scenarios

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree by the pinned hatchling, without a network."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (made,) = place.glob("coldbench-*.whl")
    return made


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    """Templates, shapes, Go helpers: what git tracks of the package and of the scenarios is in it."""
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "harness", "scenarios"], capture_output=True, text=True, check=False
    ).stdout.split()
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {name.replace("scenarios/", "harness/_scenarios/", 1) if name.startswith("scenarios/") else name
              for name in tracked}  # fmt: skip
    assert wanted - inside == set()


def test_it_lists_scenarios_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """A new environment, the wheel without this tree, and dependencies as they are installed here."""
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    python = clean / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([str(python), *install], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # As a path and not as a site directory, so that the link to this tree in it does not count.
    env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "COLUMNS": "200"}
    where = subprocess.run(
        [str(python), "-c", "import harness; print(harness.__file__)"],
        cwd=elsewhere, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(clean))
    for arguments in (["scenarios"], ["shapes"], ["scenarios", "check", "quickstart"], ["--version"]):
        done = subprocess.run(
            [str(clean / "bin" / "coldbench"), *arguments],
            cwd=elsewhere, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if arguments == ["scenarios"]:
            shipped = [path.stem for path in sorted((ROOT / "scenarios").glob("*.toml"))]
            assert all(name in done.stdout for name in shipped)
    assert scenarios.find("quickstart").exists()
