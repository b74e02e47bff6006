"""``coldbench image``: build, push, inspect, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from harness.oci.location import open_source
from tests.oci.samples import sample_layout

if TYPE_CHECKING:
    from pathlib import Path

SCENARIO = """
name = "tiny"
[image.recipe.config]
command = ["/x"]
[[image.recipe.layers]]
kind = "files"
files = [{ path = "/x", text = "hello", mode = "0755" }]
[workload]
readiness = { kind = "exit" }
"""


def coldbench(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLDBENCH_CACHE": str(cache)}
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
def test_build(tmp_path: Path) -> None:
    """A scenario file's image is built into the cache, and named so that other commands take it."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    facts = as_json(coldbench("image", "build", str(tmp_path / "tiny.toml"), "--json", cache=tmp_path / "cache"))
    image = open_source(facts["image"]).resolve()
    assert image.descriptor.digest == facts["digest"]
    assert facts["compressed_bytes"] == image.compressed_bytes
    shown = coldbench("image", "build", str(tmp_path / "tiny.toml"), cache=tmp_path / "cache")
    assert shown.stdout.splitlines()[0] == facts["image"]
    assert facts["digest"] in shown.stdout


@pytest.mark.files
def test_push_and_inspect(tmp_path: Path) -> None:
    """A pushed image is the same image, and inspection adds up what its layers hold."""
    sample_layout(tmp_path / "l")
    digest = open_source(f"oci:{tmp_path}/l").resolve().descriptor.digest
    pushed = as_json(
        coldbench("image", "push", f"oci:{tmp_path}/l", f"oci-archive:{tmp_path}/a:t", "--json", cache=tmp_path)
    )
    assert pushed["digest"] == digest
    assert pushed["blobs"] == 3
    facts = as_json(coldbench("image", "inspect", f"oci-archive:{tmp_path}/a:t", "--json", cache=tmp_path))
    assert facts["digest"] == digest
    assert [(layer["entries"], layer["files"], layer["lazy"]) for layer in facts["layers"]] == [(2, 2, ""), (1, 1, "")]
    assert facts["total"]["uncompressed_bytes"] == sum(layer["uncompressed_bytes"] for layer in facts["layers"])
    assert facts["total"]["added_bytes"] == 0
    shown = coldbench("image", "inspect", f"oci:{tmp_path}/l", cache=tmp_path)
    assert "total" in shown.stdout
    assert "3 entries" in shown.stdout


@pytest.mark.files
def test_lazy_forms_are_shown(tmp_path: Path) -> None:
    """TOCs and zTOCs are counted, with their spans and what they add in bytes."""
    sample_layout(tmp_path / "l")
    source = f"oci:{tmp_path}/l"
    for arguments in (
        ("convert", "estargz", source, f"oci:{tmp_path}/e:t"),
        ("index", "soci", source, f"oci:{tmp_path}/s:t", "--v2", "--min-layer-size", "0"),
    ):
        done = coldbench(*arguments, cache=tmp_path)
        assert done.returncode == 0, done.stderr
    facts = as_json(coldbench("image", "inspect", f"oci:{tmp_path}/e:t", "--json", cache=tmp_path))
    assert all(layer["estargz"]["toc_bytes"] > 0 for layer in facts["layers"])
    assert facts["total"]["added_bytes"] == sum(layer["estargz"]["toc_bytes"] for layer in facts["layers"])
    facts = as_json(coldbench("image", "inspect", f"oci:{tmp_path}/s:t", "--json", cache=tmp_path))
    assert [layer["ztoc"]["spans"] for layer in facts["layers"]] == [1, 1]
    assert facts["artefacts"][0]["kind"] == "SOCI index"
    assert facts["total"]["added_bytes"] == facts["artefacts"][0]["bytes"] > 0


@pytest.mark.files
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "debian:12"], 2, "expected docker://"),
        (["inspect", "oci:/none"], 5, "not an OCI layout"),
        (["inspect", "scenario:quikstart"], 2, "did you mean 'quickstart'"),
        (["build", "none.toml"], 2, "no such scenario file"),
        (["push", "oci:/none", "docker-archive:x"], 5, "not an OCI layout"),
        (["inspect", "oci-archive:/none"], 5, "no such file"),
    ],
)
def test_one_line_errors(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    """Every mistake is one line on stderr and its exit code, nothing on stdout."""
    done = coldbench("image", *arguments, cache=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
