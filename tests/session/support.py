"""A tiny real image as an OCI layout, and scenario files that use it."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_LAYER_GZIP
from harness.oci.layout import LayoutStore
from tests.engines.support import base_layer, tar_bytes
from tests.support.images import Layer, put_image

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
    store = LayoutStore(directory, "latest", create=True)
    stored = [Layer.of_tar(layer, media_type or OCI_LAYER_GZIP) for layer in layers or [base_layer()]]
    put_image(store, "latest", stored, config={"Entrypoint": ["/bin/probe"]})
    return f"{directory}:latest"


def write_faulty(directory: Path, faults: str) -> Path:
    """A scenario of a full pull and a lazy mode over an image of eight megabytes, the rest of which takes seconds to
    come, and a container that goes on; ``faults`` is the text of its table."""
    rng = random.Random(1)
    files = tar_bytes([(f"data{number}", {"data": rng.randbytes(80_000)}) for number in range(100)])
    layout = write_layout(directory / "layout", [base_layer(), files])
    path = directory / "faulty.toml"
    ready = '{ kind = "stdout", pattern = "up" }'
    path.write_text(
        SCENARIO.format(layout=layout, command='["/bin/probe", "say", "up"]', readiness=ready)
        .replace('["overlay2"]', '["overlay2:tuned", "erofs"]')
        .replace("cpu=0.5,memory=128M", "memory=512M,bandwidth=20Mbit")
        .replace("blocks = 2", "blocks = 1")
        + f"\n[faults]\n{faults}\n",
        "utf-8",
    )
    return path


def write_scenario(directory: Path, command: list[str], readiness: str = '{ kind = "exit" }') -> Path:
    """A scenario file with the tiny image; ``command`` replaces the image's."""
    path = directory / "tiny.toml"
    layout = write_layout(directory / "layout")
    path.write_text(SCENARIO.format(layout=layout, command=json.dumps(command), readiness=readiness), "utf-8")
    return path
