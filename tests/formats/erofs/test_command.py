"""``coldbench index erofs`` on layouts and a real registry, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.formats.erofs import index as form
from harness.formats.erofs.image import find_erofs_index
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.registry.server import RegistryServer
from tests.formats.erofs.test_index import layer_tar, make_layout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def coldbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_index_beside_the_image_in_a_layout(tmp_path: Path) -> None:
    """The index goes into the image's own layout; the JSON says what a start fetches, and missing files are named."""
    make_layout(tmp_path / "layout", [(layer_tar(0), "gzip"), (layer_tar(1), "zstd")])
    wanted = tmp_path / "wanted"
    wanted.write_text("/layer0/file3\n/nothing\n")
    result = coldbench(
        "index", "erofs", f"oci:{tmp_path}/layout:image", "--span-size", "65536", "--prefetch", str(wanted), "--json"
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert "no file '/nothing'" in result.stderr
    with open_source(f"oci:{tmp_path}/layout:image") as source:
        image = source.resolve()
        descriptor, manifest = find_erofs_index(source, image.descriptor)
        head, _ = form.index_parts(manifest, image.descriptor.digest)
        index = form.load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)
    assert (said["index"]["digest"], said["head_bytes"]) == (descriptor.digest, head.size)
    assert [layer["compression"] for layer in said["layers"]] == ["gzip", "zstd"]
    assert len(index.prefetch) == 1


def test_people_are_told_what_has_no_way_in(tmp_path: Path) -> None:
    """The table marks layers that a start fetches whole."""
    make_layout(tmp_path / "layout", [(layer_tar(0, 1), "zstd")])
    result = coldbench("index", "erofs", f"oci:{tmp_path}/layout")
    assert result.returncode == 0, result.stderr
    assert "whole" in result.stdout
    assert "EROFS index sha256:" in result.stdout


def test_index_in_a_registry(tmp_path: Path) -> None:
    """Pushed as a referrer beside an image that stays as it is; found, fetched by ranges and checked; copied along."""
    if shutil.which("docker-registry") is None and shutil.which("registry") is None:
        pytest.skip("the distribution registry is not installed (package docker-registry)")
    make_layout(tmp_path / "layout", [(layer_tar(0), "gzip")])
    with RegistryServer(storage=tmp_path / "storage") as registry:
        name = f"docker://{registry.host}/some/image:tag"
        with open_source(f"oci:{tmp_path}/layout:image") as source:
            original = copy_image(source, open_destination(name))
        result = coldbench("index", "erofs", name, "--span-size", "65536")
        assert result.returncode == 0, result.stderr
        with open_source(name) as source:
            image = source.resolve()
            assert image.descriptor.digest == original.digest
            _, manifest = find_erofs_index(source, image.descriptor)
            head, windows = form.index_parts(manifest, image.descriptor.digest)
            index = form.load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)
            layer, blob = index.layers[0], source.open_blob(image.layers[0])
            stored = blob.read_range(*layer.span_compressed_extent(1))
            layer.verify(1, stored)
            assert windows is not None
            packed = source.open_blob(windows).read_range(*layer.window_extent(1))
            start, end = layer.span_bounds(1)
            assert layer.inflate_span(1, stored, layer.window(1, packed)) == layer_tar(0)[start:end]
            copy_image(source, open_destination(f"oci:{tmp_path}/back:image"))
        with open_source(f"oci:{tmp_path}/back:image") as source:
            assert find_erofs_index(source, image.descriptor)[1] == manifest


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["oci:{place}/absent"], 5, "not an OCI layout"),
        (["oci:{place}/layout", "--span-size", "1"], 2, "span size"),
        (["oci:{place}/layout", "--prefetch", "{place}/absent"], 2, "--prefetch"),
        (["nonsense"], 2, "expected docker://"),
        (["oci-archive:{place}/a.tar"], 5, ""),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """Wrong names, sizes and files end in one line on stderr and the exit code of their kind."""
    make_layout(tmp_path / "layout", [(layer_tar(0, 1), "gzip")])
    result = coldbench("index", "erofs", *(argument.format(place=tmp_path) for argument in arguments))
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("coldbench: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in result.stderr
