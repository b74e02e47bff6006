"""This module writes the configuration and manifest of an image whose layers were made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor, go_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.oci.image import Image
    from harness.oci.store import ImageDestination


def write_converted(
    destination: ImageDestination, image: Image, layers: Sequence[Descriptor], diff_ids: Sequence[str]
) -> Descriptor:
    """Writes ``image`` with these layers instead of its own, and gives its manifest's descriptor.

    The configuration keeps its bytes where the diff IDs are the image's own; else it is written anew with theirs.
    Annotations of the manifest are kept.
    """
    content = image.config_bytes
    if list(diff_ids) != list(image.diff_ids):
        rootfs = {**(image.config.get("rootfs") or {}), "diff_ids": list(diff_ids)}
        content = go_json({**image.config, "rootfs": rootfs})
    config = Descriptor.of(content, OCI_CONFIG)
    destination.put_blob(config, content)
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if image.annotations:
        document["annotations"] = dict(sorted(image.annotations.items()))
    return destination.put_manifest(go_json(document), OCI_MANIFEST)
