"""A tiny real image as an OCI layout, and scenario files that use it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, digest_bytes
from harness.oci.layout import LayoutStore
from tests.engines.support import base_layer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCENARIO = """\
name = "tiny"
description = "A static program that ends at once."
image = {{ layout = "{layout}" }}
shapes = ["cpu=0.5,memory=128M"]
modes = ["overlay2"]
blocks = 2
timeouts = {{ deploy_s = 60 }}

[workload]
command = {command}
readiness = {readiness}
"""


def write_layout(directory: Path, layers: Sequence[bytes] = (), media_type: str = "") -> str:
    """An image of these tars, else of one with one static program; its name as ``image.layout`` takes it."""
    layers = layers or [base_layer()]
    store = LayoutStore(directory, "latest", create=True)
    described = []
    for layer in layers:
        blob = gzip.compress(layer, 6, mtime=0)
        described.append(Descriptor.of(blob, media_type or OCI_LAYER_GZIP))
        store.put_blob(described[-1], blob)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/bin/probe"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_bytes(layer) for layer in layers]},
        }
    ).encode()
    configured = Descriptor.of(config, OCI_CONFIG)
    store.put_blob(configured, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": configured.to_json(),
        "layers": [descriptor.to_json() for descriptor in described],
    }
    store.put_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, "latest")
    return f"{directory}:latest"


def write_scenario(directory: Path, command: list[str], readiness: str = '{ kind = "exit" }') -> Path:
    """A scenario file with the tiny image; ``command`` replaces the image's."""
    path = directory / "tiny.toml"
    layout = write_layout(directory / "layout")
    path.write_text(SCENARIO.format(layout=layout, command=json.dumps(command), readiness=readiness), "utf-8")
    return path
