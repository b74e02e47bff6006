"""``coldbench index erofs`` on layouts and a real registry, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard

from harness.errors import ImageNotFound
from harness.formats.erofs import index as form
from harness.formats.erofs.image import find_erofs_index
from harness.formats.erofs.pack import frame_digest
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.erofs.recording import Recording
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.registry.server import RegistryServer
from harness.oci.store import ImageSource
from tests.formats.erofs.packs import loaded_pack, put_pack, whole_image
from tests.formats.erofs.test_index import layer_tar, make_layout

if TYPE_CHECKING:
    from pathlib import Path

    from harness.formats.erofs.pack import Frame

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


def packed_by_command(place: Path) -> str:
    """An image's name, whose index has a pack of all of it, made by ``coldbench index erofs --pack``."""
    make_layout(place / "layout", [(layer_tar(0), "gzip"), (layer_tar(1), "none")])
    name = f"oci:{place}/layout:image"
    assert coldbench("index", "erofs", name).returncode == 0
    with open_source(name) as source:
        (place / "recording").write_bytes(whole_image(source).encode())
    result = coldbench("index", "erofs", name, "--pack", str(place / "recording"))
    assert result.returncode == 0, result.stderr
    assert "start pack of" in result.stdout
    return name


def test_a_pack_is_kept_until_it_is_not_wanted(tmp_path: Path) -> None:
    """Indexing again keeps what the pack holds, also with other spans; `--no-pack` makes an index without."""
    name = packed_by_command(tmp_path)
    kept = json.loads(coldbench("index", "erofs", name, "--span-size", "131072", "--json").stdout)
    assert kept["pack_raw_bytes"] > 0
    smaller = json.loads(
        coldbench("index", "erofs", name, "--pack", str(tmp_path / "recording"), "--pack-max", "1", "--json").stdout
    )
    assert smaller["pack_raw_bytes"] == 1_000_000 // 4096 * 4096 < kept["pack_raw_bytes"]
    without = json.loads(coldbench("index", "erofs", name, "--no-pack", "--json").stdout)
    assert without["pack"] is None
    assert json.loads(coldbench("index", "erofs", name, "--json").stdout)["pack"] is None


def test_inspect_says_what_a_pack_holds(tmp_path: Path) -> None:
    """Its files with their bytes in JSON, directories and what it adds in the table."""
    name = packed_by_command(tmp_path)
    facts = json.loads(coldbench("image", "inspect", name, "--json").stdout)
    pack = next(artefact["pack"] for artefact in facts["artefacts"] if "pack" in artefact)
    held = {file["path"]: file["bytes"] for file in pack["files"]}
    with open_source(name) as source:
        made, index, _ = loaded_pack(source)
    files = {"/" + path.decode(): extent.size for path, extent in ErofsImage(over_bytes(index.metadata)).file_extents()}
    assert held == {path: size for path, size in files.items() if size}
    assert (pack["raw_bytes"], pack["bytes"]) == (made.pack.raw_bytes, made.descriptor.size)
    assert "start pack" in coldbench("image", "inspect", name).stdout


def test_verify_compares_the_pack_with_the_layers(tmp_path: Path) -> None:
    """A pack that is signed right and holds other bytes is found, with the layer and the place."""
    name = packed_by_command(tmp_path)
    good = coldbench("verify", name)
    assert good.returncode == 0, good.stdout
    assert "start pack" in good.stdout

    def other_bytes(frames: list[Frame], blobs: list[bytes]) -> None:
        data = bytearray(frames[0].decode(blobs[0], 0))
        data[-1] ^= 1
        blobs[0] = zstandard.ZstdCompressor().compress(bytes(data))
        frames[0] = replace(frames[0], packed_bytes=len(blobs[0]), digest=frame_digest(blobs[0]))

    put_pack(ImageSource(LayoutStore(tmp_path / "layout"), "image"), other_bytes)
    bad = coldbench("verify", name)
    assert bad.returncode != 0
    assert "frame 0 has other bytes than the layer" in bad.stdout + bad.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pack", "/nowhere"], "--pack /nowhere: No such file"),
        (["--pack", "{bad}"], "coldbench trace SCENARIO --pack FILE makes one"),
        (["--no-pack", "--pack", "{bad}"], "expected no recording beside it"),
        (["--"], "expected the command to record after it"),
        (["--record", "nothing-of-that-name"], "nothing-of-that-name"),
        (["--pack", "{other}"], "asks for nothing that a pack of this image can hold"),
    ],
)
def test_what_cannot_be_packed(arguments: list[str], words: str, tmp_path: Path) -> None:
    """One line says what is wrong, and how to mend it; nothing is written."""
    make_layout(tmp_path / "layout", [(layer_tar(0, 1), "gzip")])
    (tmp_path / "bad").write_text("/usr/bin/python3\n")
    (tmp_path / "other").write_bytes(Recording((("sha256:" + "1" * 64, 0, 4096),)).encode())
    places = {"bad": str(tmp_path / "bad"), "other": str(tmp_path / "other")}
    given = [argument.format(**places) for argument in arguments]
    result = coldbench("index", "erofs", f"oci:{tmp_path}/layout:image", *given)
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    with open_source(f"oci:{tmp_path}/layout:image") as source, pytest.raises(ImageNotFound):
        find_erofs_index(source, source.resolve().descriptor)
