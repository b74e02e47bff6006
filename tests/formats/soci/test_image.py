"""Whole images: identity with the reference tool's, both versions, layouts and registries, the command."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from harness.errors import ContentError, DigestMismatch, FormatError, UsageError
from harness.formats.gzip.spans import ZtocByteSource
from harness.formats.soci import index as soci
from harness.formats.soci import ztoc
from harness.formats.soci.image import IndexedImage, Options, index_image
from harness.oci.descriptor import (
    DOCKER_LAYER_GZIP,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    digest_bytes,
)
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from tests.formats.soci.ztocs import GOLDEN, gzipped, layer, small_tar
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.files
SPAN = 262144


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The golden image, its layers put back."""
    place = tmp_path / "image"
    shutil.copytree(GOLDEN / "soci" / "image", place)
    manifest = json.loads((place / "index.json").read_bytes())["manifests"][0]
    layers = json.loads((place / "blobs/sha256" / manifest["digest"][7:]).read_bytes())["layers"]
    for entry, name in zip(layers, ("pax.zlib6.tar.gz", "gnu.zlib6.tar.gz"), strict=True):
        (place / "blobs/sha256" / entry["digest"][7:]).write_bytes(layer(name))
    return place


def index(source: object, target: object, **options: Any) -> IndexedImage:
    options = {"span_size": SPAN, "min_layer_bytes": 0, **options}
    destination = open_destination(str(target))
    with open_source(str(source)) as opened:
        result = index_image(opened, destination, Options(**options))
    destination.close()
    return result


def blobs(place: Path) -> set[str]:
    return {path.name for path in (place / "blobs" / "sha256").iterdir()}


def _unpacked(blob: bytes) -> bytes:
    if blob[:2] == b"\x1f\x8b":
        return gzip.decompress(blob)
    return zstandard.decompress(blob) if blob[:4] == b"\x28\xb5\x2f\xfd" else blob


def make_image(place: Path, layers: list[tuple[bytes, str]], docker: bool = False) -> str:
    """An image of these layers (bytes, media type); its name."""
    made = [Layer(blob, kind, digest_bytes(_unpacked(blob))) for blob, kind in layers]
    put_image(LayoutStore(place, create=True), "t", made, docker=docker)
    return f"oci:{place}:t"


# Identity


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("image-soci-v2", {}),
        (
            "image-soci-v2-prefetch-xattr",
            {"prefetch_files": ("data/s513", "/usr//bin/prog"), "optimise_xattrs": True},
        ),
    ],
)
def test_the_references_image(image: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Version 2 images have the reference's bytes: its index.json, its manifests, its index, its zTOC digests."""
    out = tmp_path / "out"
    index(f"oci:{image}", f"oci:{out}", **options)
    golden = GOLDEN / "soci" / name
    assert (out / "index.json").read_bytes() == (golden / "index.json").read_bytes()
    assert blobs(golden) <= blobs(out)
    for blob in blobs(golden):
        assert (out / "blobs/sha256" / blob).read_bytes() == (golden / "blobs/sha256" / blob).read_bytes()


def test_the_references_version_1(image: Path, tmp_path: Path) -> None:
    """A version 1 index has the reference's bytes and is found as a referrer of the unchanged image."""
    out = tmp_path / "out"
    result = index(f"oci:{image}:latest", f"oci:{out}:latest", version=soci.V1)
    with open_source(f"oci:{out}:latest") as source:
        resolved = source.resolve()
        assert result.head.digest == result.image.digest == resolved.descriptor.digest
        found = soci.find_index(source, resolved)
        assert found is not None
        assert source.manifest(found[0].digest)[0] == (GOLDEN / "soci" / "soci1.index.json").read_bytes()
        assert soci.find_index(source, resolved, v1=False) is None
        tag = json.loads((GOLDEN / "soci" / "soci1.referrers-tag.json").read_bytes())
        assert [entry.to_json() for entry in source.referrers(resolved.descriptor.digest)] == tag["manifests"]


def test_in_place(image: Path) -> None:
    """An image may be indexed where it lies; its layers are verified all the same."""
    index(f"oci:{image}:latest", f"oci:{image}:lazy")
    with open_source(f"oci:{image}:lazy") as source:
        resolved = source.resolve()
        found = soci.find_index(source, resolved)
        assert found is not None
        for descriptor in resolved.layers:
            indexed = found[1].layer(descriptor.digest)
            assert indexed is not None
            read = ztoc.parse(source.open_blob(indexed.ztoc).read())
            spans = ZtocByteSource(read, source.open_blob(descriptor))
            assert spans.extract(0, read.archive_bytes)[257:262] == b"ustar"


def test_docker_images_get_oci_types(tmp_path: Path) -> None:
    """Manifest and config become OCI's, layers keep their media type, digests of layers stay."""
    name = make_image(tmp_path / "in", [(layer("gnu.zlib6.tar.gz"), DOCKER_LAYER_GZIP)], docker=True)
    result = index(name, f"oci:{tmp_path / 'out'}:t")
    with open_source(f"oci:{tmp_path / 'out'}:t") as source:
        resolved = source.resolve()
        assert resolved.descriptor.digest == result.image.digest
        assert resolved.manifest["mediaType"] == OCI_MANIFEST
        assert resolved.config_descriptor.media_type == OCI_CONFIG
        assert [entry.media_type for entry in resolved.layers] == [DOCKER_LAYER_GZIP]
        assert source.head()[0].media_type == OCI_INDEX


# Which layers


def test_layers_passed_over(tmp_path: Path) -> None:
    """Small layers, other compressions, sparse files and odd types have no zTOC, and the result says why."""
    sparse = tarfile.TarInfo("s")
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}
    odd = tarfile.TarInfo("g")
    odd.type = tarfile.CONTTYPE
    layers = [
        (gzipped(small_tar({"a": bytes(100)})), OCI_LAYER_GZIP),
        (small_tar({"b": bytes(90_000)}), OCI_LAYER),
        (zstandard.compress(small_tar({"z": random.Random(1).randbytes(30_000)})), OCI_LAYER_ZSTD),
        (sparse.tobuf(tarfile.PAX_FORMAT) + bytes(20_000), OCI_LAYER),
        (odd.tobuf(tarfile.PAX_FORMAT) + bytes(20_000), OCI_LAYER),
    ]
    result = index(make_image(tmp_path / "in", layers), f"oci:{tmp_path / 'out'}:t", min_layer_bytes=10_000)
    assert [bool(entry.ztoc) for entry in result.layers] == [False, True, False, False, False]
    for entry, reason in zip(result.layers, ("smaller than", "", "zstd", "sparse", "tar type '7'"), strict=True):
        assert reason in entry.skipped
    assert [("skipped" in entry) for entry in result.to_json()["layers"]] == [True, False, True, True, True]


def test_one_layer_listed_twice(tmp_path: Path) -> None:
    """A layer that an image lists twice is indexed once and named twice."""
    one = (layer("gnu.zlib6.tar.gz"), OCI_LAYER_GZIP)
    result = index(make_image(tmp_path / "in", [one, one]), f"oci:{tmp_path / 'out'}:t")
    assert result.layers[0] is result.layers[1]


def test_all_layers_too_small(image: Path, tmp_path: Path) -> None:
    """An index of nothing is an error that says what to do."""
    with pytest.raises(UsageError, match="lower --min-layer-size"):
        index(f"oci:{image}", f"oci:{tmp_path / 'out'}", min_layer_bytes=10 << 20)
    odd = tarfile.TarInfo("g")
    odd.type = tarfile.CONTTYPE
    name = make_image(tmp_path / "in", [(odd.tobuf(tarfile.PAX_FORMAT) + bytes(1024), OCI_LAYER)])
    with pytest.raises(ContentError, match="no layer can have a zTOC"):
        index(name, f"oci:{tmp_path / 'out'}:t")
    with pytest.raises(UsageError, match="span size"):
        index(f"oci:{image}", f"oci:{tmp_path / 'out'}", span_size=0)


def test_prefetch_files(image: Path, tmp_path: Path) -> None:
    """Files come from the topmost layer that has them; ranges that touch are one; unknown names are reported."""
    files = ("data/big", "data/random", "data/exact", "xattr/cap", "./dot/slash", "usr/bin", "nowhere")
    result = index(f"oci:{image}:latest", f"oci:{tmp_path / 'out'}:t", span_size=65536, prefetch_files=files)
    assert result.prefetch_missing == ("nowhere", "usr/bin")
    with open_source(f"oci:{tmp_path / 'out'}:t") as source:
        found = soci.find_index(source, source.resolve())
        assert found is not None
        artefacts = {
            digest: json.loads(source.open_blob(entry).read())["prefetch_spans"]
            for digest, entry in found[1].prefetch.items()
        }
    lower, upper = result.layers
    assert artefacts == {
        lower.layer.digest: [{"start_span": 7, "end_span": 7}],
        upper.layer.digest: [{"start_span": 1, "end_span": 8}],
    }


# Damage


def test_wrong_layers(image: Path, tmp_path: Path) -> None:
    """A layer that is not its digest's, or no gzip, ends the work with an error and no image."""
    victim = max((image / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[4] ^= 1  # the time in the gzip header: nothing but a digest can notice
    victim.write_bytes(data)
    for target in (f"oci:{tmp_path / 'out'}:t", f"oci:{image}:t"):
        with pytest.raises(DigestMismatch):
            index(f"oci:{image}:latest", target)
    assert (
        "manifests" not in (tmp_path / "out" / "index.json").read_text()
        or not json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    )
    victim.write_bytes(data[:-100])
    with pytest.raises((FormatError, ContentError)):
        index(f"oci:{image}:latest", f"oci:{tmp_path / 'out'}:t")


def test_an_annotation_is_no_tag(image: Path, tmp_path: Path) -> None:
    """What names the index must be a digest: a tag could be anything."""
    with open_source(f"oci:{image}:latest") as source:
        resolved = source.resolve()
        resolved.manifest["annotations"] = {soci.INDEX_DIGEST: "latest"}
        with pytest.raises(FormatError, match="not a digest"):
            soci.find_index(source, resolved)


# Registries


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A distribution registry on loopback; host:port."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    with subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            if "listening on" in line:
                address = line.split("listening on ")[1].split('"')[0].strip()
                break
        try:
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(ValueError):
                process.stderr.close()


def test_push_and_find(image: Path, registry: str) -> None:
    """Both versions go to a registry without the referrers API and are found again, bytes unchanged."""
    with open_source(f"oci:{image}:latest") as source:
        plain = open_destination(f"docker://{registry}/app:plain")
        copy_image(source, plain)
        plain.close()
    second = index(f"docker://{registry}/app:plain", f"docker://{registry}/app:v2")
    first = index(f"docker://{registry}/app:plain", f"docker://{registry}/app:plain", version=soci.V1)
    with open_source(f"docker://{registry}/app:v2") as source:
        resolved = source.resolve()
        assert resolved.descriptor.digest == second.image.digest
        assert resolved.annotations[soci.INDEX_DIGEST] == second.index.digest
        found = soci.find_index(source, resolved)
        assert found is not None
        assert found[1].version == soci.V2
        assert source.manifest("v2")[0] in golden_manifests()
    with open_source(f"docker://{registry}/app:plain") as source:
        resolved = source.resolve()
        found = soci.find_index(source, resolved)
        assert found is not None
        assert found[0].digest == first.index.digest
        assert source.manifest(found[0].digest)[0] == (GOLDEN / "soci" / "soci1.index.json").read_bytes()
        indexed = found[1].layers[0]
        read = ztoc.parse(source.open_blob(indexed.ztoc).read())
        stored = source.open_blob(resolved.layers[0])
        assert ZtocByteSource(read, stored).extract(0, 512)[257:262] == b"ustar"


def golden_manifests() -> list[bytes]:
    return [path.read_bytes() for path in (GOLDEN / "soci" / "image-soci-v2" / "blobs" / "sha256").iterdir()]


# The command


def coldbench(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "index", "soci", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)


def test_command(image: Path, tmp_path: Path) -> None:
    """The command writes the same image, prints JSON, and ends in 2 with one line when it is asked wrongly."""
    out = tmp_path / "out"
    sizes = ["--span-size", str(SPAN), "--min-layer-size", "0"]
    done = coldbench(f"oci:{image}:latest", f"oci:{out}", *sizes, "--json", "--prefetch-file", "nowhere")
    assert done.returncode == 0, done.stderr
    assert "'nowhere'" in done.stderr
    document = json.loads(done.stdout)
    assert [entry["spans"] for entry in document["layers"]] == [3, 3]
    assert (out / "index.json").read_bytes() == (GOLDEN / "soci" / "image-soci-v2" / "index.json").read_bytes()
    text = coldbench(f"oci:{image}:latest", f"oci:{out}:t", *sizes, "--v1", "--build-tool", "mine")
    assert text.returncode == 0, text.stderr
    assert "SOCI index sha256:" in text.stdout
    small = coldbench(f"oci:{image}:latest", f"oci:{out}:t")
    assert small.returncode == 2
    assert "lower --min-layer-size" in small.stderr
    assert "Traceback" not in small.stderr
    assert coldbench(f"oci:{image}:latest", f"oci:{out}:t", "--v1", "--v2").returncode == 2


@pytest.mark.root
def test_a_full_temporary_directory_is_one_line(image: Path, tmp_path: Path) -> None:
    """zTOCs grow in the temporary directory; where it is too small, the error says so."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
    try:
        done = coldbench(
            f"oci:{image}:latest", f"oci:{tmp_path / 'out'}", "--min-layer-size", "0", "--span-size", "4096",
            TMPDIR=str(small),
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert done.returncode == 5
    assert "no room left in" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
