"""Small images for tests."""

from __future__ import annotations

import io
import tarfile
import zlib
from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Platform, digest_bytes, go_json
from harness.oci.layout import LayoutStore

if TYPE_CHECKING:
    from pathlib import Path

    from harness.oci.store import ImageDestination


def make_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def gzipped(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def put_image(store: ImageDestination, tag: str, files: list[dict[str, bytes]]) -> Descriptor:
    """Write an image of gzip layers for this host's platform; returns its manifest's descriptor."""
    layers, diff_ids = [], []
    for layer in files:
        tar = make_tar(layer)
        packed = gzipped(tar)
        descriptor = Descriptor.of(packed, OCI_LAYER_GZIP)
        store.put_blob(descriptor, packed)
        layers.append(descriptor.to_json())
        diff_ids.append(digest_bytes(tar))
    platform = Platform.of_host()
    config = go_json(
        {
            **platform.to_json(),
            "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )
    config_descriptor = Descriptor.of(config, OCI_CONFIG)
    store.put_blob(config_descriptor, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config_descriptor.to_json(),
        "layers": layers,
    }
    return store.put_manifest(go_json(manifest), OCI_MANIFEST, tag)


def sample_layout(directory: Path, tag: str = "one") -> LayoutStore:
    """A layout with one image of two layers."""
    store = LayoutStore(directory, create=True)
    put_image(store, tag, [{"hello": b"hi" * 5000, "etc/x": b"1"}, {"etc/y": b"2" * 700}])
    return store


def artefact(subject: Descriptor, kind: str = "application/x-test") -> bytes:
    """A manifest that refers to ``subject``; its config is the empty JSON object."""
    return go_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json").to_json(),
            "layers": [Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json").to_json()],
            "subject": subject.to_json(),
            "annotations": {"note": kind},
        }
    )
