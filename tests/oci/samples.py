"""Small images for tests."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_MANIFEST, Descriptor, Platform, go_json
from harness.oci.layout import LayoutStore
from tests.support.images import Layer, put_image

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


def put_files(store: ImageDestination, tag: str, files: list[dict[str, bytes]]) -> Descriptor:
    """Write an image of gzip layers for this host's platform; returns its manifest's descriptor."""
    layers = [Layer.of_tar(make_tar(layer)) for layer in files]
    return put_image(store, tag, layers, config={"Cmd": ["/hello"]}, platform=Platform.of_host())


def sample_layout(directory: Path, tag: str = "one") -> LayoutStore:
    """A layout with one image of two layers."""
    store = LayoutStore(directory, create=True)
    put_files(store, tag, [{"hello": b"hi" * 5000, "etc/x": b"1"}, {"etc/y": b"2" * 700}])
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
