"""Writes test images: any layers, to any destination."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.oci.descriptor import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    digest_bytes,
    go_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.oci.store import ImageDestination


@dataclass(frozen=True)
class Layer:
    """One layer as stored, and what the image says of it."""

    blob: bytes
    media_type: str = OCI_LAYER_GZIP
    diff_id: str = "sha256:" + "0" * 64
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_tar(cls, tar: bytes, media_type: str = OCI_LAYER_GZIP) -> Layer:
        """A tar as gzip level 6 keeps it."""
        return cls(gzip.compress(tar, 6, mtime=0), media_type, digest_bytes(tar))


def put_image(
    store: ImageDestination,
    tag: str,
    layers: Sequence[Layer],
    *,
    config: dict[str, Any] | None = None,
    platform: Platform | None = None,
    docker: bool = False,
    config_type: str = "",
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """Write the layers, a configuration and a manifest (Docker's with ``docker``); the manifest's descriptor."""
    descriptors = [Descriptor.of(it.blob, it.media_type, annotations=it.annotations) for it in layers]
    for descriptor, layer in zip(descriptors, layers, strict=True):
        store.put_blob(descriptor, layer.blob)
    document = go_json(
        {
            **(platform or Platform()).to_json(),
            **({"config": config} if config is not None else {}),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )
    configuration = Descriptor.of(document, config_type or (DOCKER_CONFIG if docker else OCI_CONFIG))
    store.put_blob(configuration, document)
    manifest_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": configuration.to_json(),
        "layers": [descriptor.to_json() for descriptor in descriptors],
        **({"annotations": annotations} if annotations else {}),
    }
    return store.put_manifest(go_json(manifest), manifest_type, tag)
