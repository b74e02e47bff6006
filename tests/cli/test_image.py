"""``coldbench image``: build, push, inspect, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from harness.cli.bars import megabytes
from harness.images.inspection import inspect_image
from harness.oci.descriptor import (
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    digest_bytes,
    go_json,
)
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.store import ImageSource
from tests.oci.samples import make_tar, sample_layout
from tests.support.images import Layer, put_image

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
    assert [(layer["entries"], layer["files"], layer["lazy"]) for layer in facts["layers"]] == [(2, 2, []), (1, 1, [])]
    assert facts["total"]["uncompressed_bytes"] == sum(layer["uncompressed_bytes"] for layer in facts["layers"])
    assert facts["total"]["added_bytes"] == 0
    shown = coldbench("image", "inspect", f"oci:{tmp_path}/l", cache=tmp_path)
    assert [line.split()[-2:] for line in shown.stdout.splitlines() if line.split()[:1] == ["all"]] == [["3", "3"]]
    assert "no lazy form" in shown.stdout


@pytest.mark.files
def test_lazy_forms_are_shown(tmp_path: Path) -> None:
    """TOCs, zTOCs and EROFS indexes are counted, with their chunks and spans and what they add in bytes."""
    sample_layout(tmp_path / "l")
    source = f"oci:{tmp_path}/l"
    for arguments in (
        ("convert", "estargz", source, f"oci:{tmp_path}/e:t"),
        ("index", "soci", source, f"oci:{tmp_path}/s:t", "--v2", "--min-layer-size", "0"),
        ("index", "soci", source, f"oci:{tmp_path}/b:t", "--v1", "--min-layer-size", "0"),
        ("index", "erofs", f"oci:{tmp_path}/b:t"),
    ):
        done = coldbench(*arguments, cache=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # bars are for terminals
    facts = inspect(f"oci:{tmp_path}/e:t", tmp_path)
    assert [(layer["lazy"], layer["estargz"]["chunks"]) for layer in facts["layers"]] == [
        (["estargz"], 2),
        (["estargz"], 1),
    ]
    assert facts["total"]["added_bytes"] == sum(layer["estargz"]["toc_bytes"] for layer in facts["layers"]) > 0
    facts = inspect(f"oci:{tmp_path}/s:t", tmp_path)
    assert [layer["ztoc"]["spans"] for layer in facts["layers"]] == [1, 1]
    assert [artefact["kind"] for artefact in facts["artefacts"]] == ["SOCI index v2"]
    assert facts["total"]["added_bytes"] == facts["artefacts"][0]["bytes"] > 0
    facts = inspect(f"oci:{tmp_path}/b:t", tmp_path)
    assert [layer["lazy"] for layer in facts["layers"]] == [["ztoc", "erofs"]] * 2
    assert [artefact["kind"] for artefact in facts["artefacts"]] == ["SOCI index v1", "EROFS index"]
    assert facts["total"]["added_bytes"] == sum(artefact["bytes"] for artefact in facts["artefacts"])
    stored = sum(path.stat().st_size for path in (tmp_path / "b" / "blobs" / "sha256").iterdir())
    before = sum(path.stat().st_size for path in (tmp_path / "l" / "blobs" / "sha256").iterdir())
    shared = len(b"{}")  # both indexes' empty configuration is one blob
    assert stored - before == facts["total"]["added_bytes"] + shared


def inspect(image: str, cache: Path) -> Any:
    """The facts as JSON; as text they must fit a terminal of 80 columns."""
    env = os.environ | {"COLDBENCH_CACHE": str(cache), "COLUMNS": "80"}
    command = [sys.executable, "-m", "harness", "image", "inspect", image]
    shown = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    assert max(len(line) for line in shown.splitlines()[1:]) <= 80
    return as_json(coldbench("image", "inspect", image, "--json", cache=cache))


@pytest.mark.files
def test_a_damaged_form_is_shown_with_its_reason(tmp_path: Path) -> None:
    """A TOC that is not the promised one does not stop inspection; its row says what is wrong."""
    sample_layout(tmp_path / "l")
    done = coldbench("convert", "estargz", f"oci:{tmp_path}/l", f"oci:{tmp_path}/e:t", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    source = open_source(f"oci:{tmp_path}/e:t")
    layer = source.resolve().layers[0]
    with open(tmp_path / "e" / "blobs" / "sha256" / layer.hex, "r+b") as file:
        file.seek(layer.size - 200)
        file.write(b"damaged")
    facts = as_json(coldbench("image", "inspect", "--fast", f"oci:{tmp_path}/e:t", "--json", cache=tmp_path))
    assert "error" in facts["layers"][0]["estargz"]
    assert "error" not in facts["layers"][1]["estargz"]
    assert "eStargz" in coldbench("image", "inspect", "--fast", f"oci:{tmp_path}/e:t", cache=tmp_path).stdout


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_400, "999 kB"), (999_600, "1.00 MB"), (12_345_678, "12.3 MB")]
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    """Sizes are decimal units with three digits that count, at the edges too."""
    assert megabytes(count) == text


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
        (["inspect", "oci:/none", "--platform", "vax"], 2, "os/architecture"),
    ],
)
def test_one_line_errors(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    """Every mistake is one line on stderr and its exit code, nothing on stdout."""
    done = coldbench("image", *arguments, cache=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_inspection_says_where_labels_lie(tmp_path: Path) -> None:
    """A layer's first bytes count, and an index that names another platform than the configuration is said so."""
    store = LayoutStore(tmp_path / "l", create=True)
    tar = make_tar({"a": b"1" * 3000})
    plain = Layer(tar, OCI_LAYER_GZIP, digest_bytes(tar))
    here = Platform.of_host()
    made = put_image(store, "", [plain], platform=Platform("linux", "s390x"))
    entry = Descriptor(OCI_MANIFEST, made.digest, made.size, platform=here).to_json()
    store.put_manifest(go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}), OCI_INDEX, "x")
    with ImageSource(store, "x") as source:
        facts = inspect_image(source, read_layers=False)
    assert facts["layers"][0]["compression"] == "none"
    assert facts["remarks"] == [
        f"the index says {here}, its configuration says linux/s390x",
        "layer 0 is none, its media type says gzip",
    ]
    assert facts["layers"][0]["media_type"] == OCI_LAYER_GZIP


def test_a_tag_is_no_picture(tmp_path: Path) -> None:
    """`:new:` stays what it is in every line that is printed."""
    put_image(LayoutStore(tmp_path / "l", create=True), "new", [Layer.of_tar(make_tar({"a": b"1"}))])
    name = f"oci:{tmp_path}/l:new"
    for argv in (["image", "inspect", name], ["convert", "estargz", name, f"oci:{tmp_path}/e:new:"]):
        done = subprocess.run([sys.executable, "-m", "harness", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ":new" in done.stdout
        assert "\N{SQUARED NEW}" not in done.stdout


def test_a_pipe_gets_no_spinner(tmp_path: Path) -> None:
    """Progress into a pipe is a line per step, without control characters."""
    store = LayoutStore(tmp_path / "l", create=True)
    put_image(store, "x", [Layer.of_tar(make_tar({"a": b"1"}))], platform=Platform.of_host())
    archive = open_destination(f"oci-archive:{tmp_path}/a.tar:x")
    copy_image(ImageSource(store, "x"), archive)
    archive.close()
    (tmp_path / "s.toml").write_text(
        f'name = "s"\nimage = {{ archive = "{tmp_path}/a.tar" }}\n[workload]\nreadiness = {{ kind = "exit" }}\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "harness", "image", "build", str(tmp_path / "s.toml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLDBENCH_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"unpacking {tmp_path}/a.tar\n"
