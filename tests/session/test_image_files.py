"""The list of an image's visible files: merged as OverlayFS shows them, kept by digest."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from harness.oci.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, digest_bytes, go_json
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
from harness.session.image_files import list_files

if TYPE_CHECKING:
    from pathlib import Path


def layer(*entries: tuple[str, bytes | None, int]) -> bytes:
    """A gzipped tar; None is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, mode in entries:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def put_image(directory: Path, layers: list[bytes]) -> None:
    """An OCI layout with one image of these layers."""
    store = LayoutStore(directory, "latest", create=True)
    descriptors = []
    for data in layers:
        descriptor = Descriptor(OCI_LAYER_GZIP, digest_bytes(data), len(data))
        store.put_blob(descriptor, data)
        descriptors.append(descriptor)
    diff_ids = [digest_bytes(gzip.decompress(data)) for data in layers]
    config = go_json(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    )
    configured = Descriptor(OCI_CONFIG, digest_bytes(config), len(config))
    store.put_blob(configured, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": configured.to_json(),
        "layers": [d.to_json() for d in descriptors],
    }
    store.put_manifest(go_json(manifest), OCI_MANIFEST, "latest")


@pytest.mark.files
def test_upper_layers_hide_and_replace(tmp_path: Path) -> None:
    """Whiteouts hide, later layers replace, executables are marked, and the second call reads the kept list."""
    lower = layer(("usr", None, 0o755), ("usr/a", b"x" * 10, 0o644), ("usr/b", b"y", 0o755), ("gone", b"z", 0o644))
    upper = layer(("usr", None, 0o755), ("usr/a", b"longer than before", 0o644), (".wh.gone", b"", 0o644))
    put_image(tmp_path / "layout", [lower, upper])
    with open_source(f"oci:{tmp_path / 'layout'}:latest") as source:
        image = source.resolve()
        read: list[int] = []
        files = list_files(source, image, tmp_path / "cache", read.append)
        assert [(f.path, f.kind, f.size, f.layer, f.executable) for f in files] == [
            ("/usr", "dir", 0, -1, False),
            ("/usr/a", "file", 18, 1, False),
            ("/usr/b", "file", 1, 0, True),
        ]
        assert sum(read) == image.compressed_bytes
        read.clear()
        assert list_files(source, image, tmp_path / "cache", read.append) == files
        assert not read
