"""The same image compressed otherwise: the tars stay, the bytes repeat, and what is wrong is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from harness.errors import DigestMismatch
from harness.formats.estargz.image import convert_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.recompression import COPY_NAME, convert_layers
from harness.formats.sniff import compression_of
from harness.model.image import Compression, parse_compression
from harness.oci.descriptor import OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from harness.session.image_files import list_files
from tests.engines.support import base_layer
from tests.lazyfs.support import File, noise, tar_of
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files
TARS = [base_layer(), tar_of(File("large", noise(3 << 20)), File("text", b"again and again " * 50_000))]


def image(directory: Path, media_type: str = OCI_LAYER_GZIP) -> ImageSource:
    store = LayoutStore(directory, "latest", create=True)
    put_image(store, "latest", [Layer.of_tar(tar, media_type) for tar in TARS], config={"Entrypoint": ["/bin/probe"]})
    return ImageSource(LayoutStore(directory, "latest"))


def converted(source: ImageSource, directory: Path, compression: str) -> ImageSource:
    store = LayoutStore(directory, "latest", create=True)
    convert_layers(source, source.resolve(), store, parse_compression(compression), scratch=directory)
    return ImageSource(LayoutStore(directory, "latest"))


@pytest.mark.parametrize("compression", ["gzip", "gzip:9", "zstd", "zstd:19", "none"])
@pytest.mark.parametrize("of", [OCI_LAYER_GZIP, OCI_LAYER_ZSTD])
def test_the_tars_stay(tmp_path: Path, compression: str, of: str) -> None:
    """Configuration and diff IDs are those of the source, media types say what the first bytes are."""
    source = image(tmp_path / "source", of)
    made = converted(source, tmp_path / "made", compression)
    before, after = source.resolve(), made.resolve()
    assert after.config_bytes == before.config_bytes
    assert after.diff_ids == before.diff_ids
    kind = compression.partition(":")[0]
    for layer, tar in zip(after.layers, TARS, strict=True):
        blob = made.open_blob(layer)
        assert layer.compression == compression_of(blob.read_range(0, 6), "") == kind
        assert (layer.size == len(tar)) == (kind == "none")


def test_the_same_each_time_and_by_every_way(tmp_path: Path) -> None:
    """Whatever the image was compressed with before, the result is the same to the byte."""
    ways: dict[tuple[str, int, str], str] = {}
    for of in (OCI_LAYER_GZIP, OCI_LAYER_ZSTD):
        source = image(tmp_path / f"source{len(ways)}", of)
        for turn in range(2):
            for compression in ("gzip", "zstd", "none"):
                made = converted(source, tmp_path / f"{len(ways)}", compression)
                ways[of, turn, compression] = made.resolve().descriptor.digest
    assert len(set(ways.values())) == 3


def test_the_number_of_cores_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zstd's threads and gzip's are as many as there are cores, and the bytes are the same."""
    source = image(tmp_path / "source")
    found = set()
    for cores in (1, 2, 7):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        for compression in ("gzip", "zstd"):
            found.add(converted(source, tmp_path / f"{cores}{compression}", compression).resolve().descriptor.digest)
    assert len(found) == 2


def test_a_layer_that_is_not_what_it_promises_is_refused(tmp_path: Path) -> None:
    """Every layer is held against its diff ID while it is read."""
    source = image(tmp_path / "source")
    found = source.resolve()
    wrong = dataclasses.replace(found, diff_ids=(found.diff_ids[0], found.diff_ids[0]))
    store = LayoutStore(tmp_path / "made", "latest", create=True)
    with pytest.raises(DigestMismatch, match="layer 1"):
        convert_layers(source, wrong, store, Compression("none", 0), scratch=tmp_path)


def test_numbered_copies_share_no_blob(tmp_path: Path) -> None:
    """The same files and one more, but no blob of another copy, also as eStargz."""
    source = image(tmp_path / "source")
    blobs: list[str] = []
    trees = []
    for number in (0, 1, 2):
        made = LayoutStore(tmp_path / f"copy{number}", "latest", create=True)
        convert_layers(source, source.resolve(), made, parse_compression("gzip"), copy_number=number, scratch=tmp_path)
        copy = ImageSource(LayoutStore(tmp_path / f"copy{number}", "latest"))
        packed = LayoutStore(tmp_path / f"estargz{number}", "latest", create=True)
        convert_image(copy, copy.resolve(), packed, EstargzOptions(), scratch=tmp_path)
        for store in (copy, ImageSource(LayoutStore(tmp_path / f"estargz{number}", "latest"))):
            found = store.resolve()
            blobs += [found.config_descriptor.digest, *(layer.digest for layer in found.layers)]
        trees.append({(f.path, f.size) for f in list_files(copy, copy.resolve())})
    assert len(set(blobs)) == len(blobs)
    assert trees[1] == trees[2]
    assert {path for path, _size in trees[1] - trees[0]} == {f"/{COPY_NAME}"}
