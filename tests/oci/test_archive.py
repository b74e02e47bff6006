"""Images in one file."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import FormatError, ImageNotFound, UsageError
from harness.images.catalog import materialise
from harness.model.image import ImageSpec
from harness.oci.archive import detect_archive
from harness.oci.cache import Cache
from harness.oci.descriptor import OCI_LAYER, digest_bytes, go_json
from harness.oci.location import copy_image, open_destination, open_source
from tests.oci.samples import make_tar, sample_layout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def write_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def docker_archive(path: Path, **changes: Any) -> list[bytes]:
    """What docker save wrote before 25.0, with a layer that is there twice and stored once."""
    layers = [make_tar({"a": b"1" * 3000}), make_tar({"b": b"2"})]
    diff_ids = [digest_bytes(layers[0]), digest_bytes(layers[1]), digest_bytes(layers[0])]
    config = go_json({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    names = ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"]
    manifest: list[Any] = [{"Config": "c.json", "RepoTags": ["me/app:1"], "Layers": names} | changes]
    files = {"aa/layer.tar": layers[0], "bb/layer.tar": layers[1], "c.json": config}
    write_tar(path, files | {"manifest.json": json.dumps(manifest).encode()}, {"cc/layer.tar": "../aa/layer.tar"})
    return layers


def test_oci_archive_round_trip(tmp_path: Path) -> None:
    """What is written as an OCI archive is read back the same, by skopeo as well, and nothing else is left there."""
    sample_layout(tmp_path / "l")
    original = open_source(f"oci:{tmp_path}/l").resolve()
    target = open_destination(f"oci-archive:{tmp_path}/out.tar:one")
    copy_image(open_source(f"oci:{tmp_path}/l"), target)
    assert not (tmp_path / "out.tar").exists()
    target.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l", "out.tar"]
    with open_source(f"oci-archive:{tmp_path}/out.tar:one") as source:
        image = source.resolve()
        assert image.manifest_bytes == original.manifest_bytes
        blob = source.open_blob(image.layers[0])
        assert blob.read_range(1, 9) == blob.read()[1:10]
    assert detect_archive(str(tmp_path / "out.tar")) == f"oci-archive:{tmp_path}/out.tar"
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    shown = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci-archive:{tmp_path}/out.tar:one"], capture_output=True, check=True
    )
    assert shown.stdout == original.manifest_bytes


def test_docker_archive(tmp_path: Path) -> None:
    """docker save's layers are read in place, under their diff IDs; the name chooses among its tags."""
    path = tmp_path / "d.tar"
    layers = docker_archive(path)
    for name in (f"docker-archive:{path}", f"docker-archive:{path}:me/app:1"):
        with open_source(name) as source:
            image = source.resolve()
            assert [layer.media_type for layer in image.layers] == [OCI_LAYER] * 3
            assert [layer.digest for layer in image.layers] == list(image.diff_ids)
            assert source.open_blob(image.layers[2]).read() == layers[0]
    with pytest.raises(ImageNotFound, match="names there: me/app:1"):
        open_source(f"docker-archive:{path}:other")
    assert detect_archive(str(path)) == f"docker-archive:{path}"


def test_wrong_archives(tmp_path: Path) -> None:
    """Missing files, other tars and archives that do not add up are told apart in one line."""
    with pytest.raises(ImageNotFound, match="no such file"):
        open_source(f"oci-archive:{tmp_path}/none")
    (tmp_path / "text").write_text("not a tar, though long enough to be taken for the beginning of one" * 20)
    with pytest.raises(FormatError, match="cannot be read as a tar"):
        open_source(f"docker-archive:{tmp_path}/text")
    write_tar(tmp_path / "other", {"x": b""})
    with pytest.raises(FormatError, match="not an OCI archive"):
        open_source(f"oci-archive:{tmp_path}/other")
    with pytest.raises(FormatError, match="neither"):
        detect_archive(str(tmp_path / "other"))
    docker_archive(tmp_path / "d", Layers=["aa/layer.tar"])
    with pytest.raises(FormatError, match="3 diff_ids for 1 layers"):
        open_source(f"docker-archive:{tmp_path}/d")
    docker_archive(tmp_path / "e", Layers=["../../etc/passwd"] * 3)
    with pytest.raises(FormatError, match="not in the archive"):
        open_source(f"docker-archive:{tmp_path}/e")
    with pytest.raises(UsageError, match="directory does not exist"):
        open_destination(f"oci-archive:{tmp_path}/no/where.tar")


def test_scenario_from_an_archive(tmp_path: Path) -> None:
    """An archive named by a scenario becomes a layout in the cache, once."""
    docker_archive(tmp_path / "d.tar")
    cache = Cache(tmp_path / "cache")
    spec = ImageSpec(archive=str(tmp_path / "d.tar"))
    said: list[str] = []
    first = materialise(spec, cache, lambda what, done, total: said.append(what))
    assert materialise(spec, cache, lambda what, done, total: said.append(what)) == first
    assert len(said) == 1
    assert len(open_source(first).resolve().layers) == 3
