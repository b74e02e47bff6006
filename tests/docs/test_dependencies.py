"""What is installed for development: only packages whose hashes are written down."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

FILES = ("constraints.txt", "constraints-notebook.txt", "constraints-run.txt", "constraints-apart.txt")
ROOT = Path(__file__).parents[2]
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==\S+ (?P<rest>.*)")


def canonical(requirement: str) -> str:
    """A requirement's name as package indexes write it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pins(name: str) -> list[re.Match[str]]:
    """The pins of one of the constraints files; every line of it is one."""
    lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    found = [pin for line in lines if (pin := PIN.fullmatch(line)) is not None]
    assert len(found) == len(lines) > 0
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_its_hashes(name: str) -> None:
    """Each is an exact version with at least one sha256, so that --require-hashes can hold."""
    for pin in pins(name):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", pin["rest"]), pin["name"]


def test_every_dependency_is_pinned() -> None:
    """What pyproject.toml names, the build's own packages included, is pinned: else run `nox -s lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = dict(project["project"]["optional-dependencies"])
    notebook = extras.pop("notebook")
    named = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras.values():
        named += extra
    for file, wanted in (("constraints.txt", named), ("constraints-notebook.txt", [*named, *notebook])):
        pinned = {pin["name"] for name in (file, "constraints-apart.txt") for pin in pins(name)}
        assert {canonical(one) for one in wanted} - {"coldbench"} - pinned == set()


def test_what_runs_is_what_was_tried() -> None:
    """The container's pins are those of the development environment, version by version, and hold all it needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tried = {pin["name"]: pin[0].split()[0] for pin in pins("constraints.txt")}
    run = {pin["name"]: pin[0].split()[0] for pin in pins("constraints-run.txt")}
    assert {name: pin for name, pin in run.items() if tried.get(name) != pin} == {}
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    assert {canonical(one) for one in wanted} - run.keys() == set()


def test_nothing_else_is_installed() -> None:
    """Both ways into the environment install by hash, and the package itself without its dependencies."""
    for name in ("dev", "noxfile.py"):
        text = (ROOT / name).read_text()
        installs = [line for line in text.splitlines() if "pip install" in line or "session.install(" in line]
        assert installs
        for line in installs:
            assert any(
                way in line for way in ("--require-hashes", "--no-build-isolation", "*hashed", "*apart", " $apart")
            ), line


def test_what_needs_a_compiler_comes_after_its_tools() -> None:
    """pyfuse3 has no wheel and old pips build none under hashes: it is installed apart, once setuptools is there."""
    for file in ("constraints.txt", "constraints-notebook.txt"):
        names = {pin["name"] for pin in pins(file)}
        assert "setuptools" in names
        assert "pyfuse3" not in names
    assert "pyfuse3" in {pin["name"] for pin in pins("constraints-apart.txt")}
