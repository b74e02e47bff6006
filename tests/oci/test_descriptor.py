"""Descriptors, platforms and Go's JSON."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from harness.errors import FormatError
from harness.oci.descriptor import OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Platform, go_json, is_digest
from harness.oci.image import platform_candidates

DIGEST = "sha256:" + "a" * 64


def test_key_order_is_that_of_go() -> None:
    """A full descriptor serialises in the order of Go's struct, annotations sorted, empty fields left out."""
    full = Descriptor(
        OCI_LAYER_GZIP, DIGEST, 7, {"z": "1", "a": "<&>"}, Platform("linux", "arm64", "v8"), "x/y", ("u",), "ZGF0YQ=="
    )
    assert go_json(full.to_json()) == (
        b'{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"' + DIGEST.encode() + b'","size":7,'
        b'"urls":["u"],"annotations":{"a":"\\u003c\\u0026\\u003e","z":"1"},"data":"ZGF0YQ==",'
        b'"platform":{"architecture":"arm64","os":"linux","variant":"v8"},"artifactType":"x/y"}'
    )
    assert Descriptor.from_json(full.to_json()) == full
    assert list(Descriptor("a/b", DIGEST, 0).to_json()) == ["mediaType", "digest", "size"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"digest": DIGEST},
        {"digest": "sha256:abc", "size": 1},
        {"digest": DIGEST, "size": -1},
        {"digest": DIGEST, "size": True},
        {"digest": DIGEST, "size": "1"},
        {"digest": DIGEST, "size": 1, "annotations": {"a": 1}},
        {"digest": DIGEST, "size": 1, "mediaType": 5},
        {"digest": "../../etc/passwd", "size": 1},
    ],
)
def test_wrong_descriptors_are_refused(value: Any) -> None:
    """Anything that is not a descriptor is a FormatError."""
    with pytest.raises(FormatError):
        Descriptor.from_json(value)


def test_digests_are_canonical() -> None:
    """Only lower-case hex of the right length, and nothing behind it."""
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST.upper())
    assert not is_digest(DIGEST + "\n")
    assert not is_digest("sha256:" + "a" * 63)


def entry(platform: Platform | None, letter: str, **fields: Any) -> dict[str, Any]:
    return Descriptor(OCI_MANIFEST, "sha256:" + letter * 64, 1, platform=platform, **fields).to_json()


def test_platform_selection() -> None:
    """An exact variant wins over an open one, others and attestations never match, a miss names the offer."""
    index = {
        "mediaType": OCI_INDEX,
        "manifests": [
            entry(Platform("unknown", "unknown"), "0"),
            entry(Platform("linux", "arm64"), "1"),
            entry(Platform("linux", "arm64", "v8"), "2"),
            entry(Platform("linux", "amd64"), "3"),
        ],
    }
    assert platform_candidates(index, Platform("linux", "arm64", "v8"), "x").fitting[0].hex[0] == "2"
    assert platform_candidates(index, Platform("linux", "arm64", "v7"), "x").fitting[0].hex[0] == "1"
    assert platform_candidates(index, Platform("linux", "amd64"), "x").fitting[0].hex[0] == "3"
    missed = platform_candidates(index, Platform("linux", "s390x"), "x")
    assert not missed.fitting
    assert missed.offered == "linux/amd64, linux/arm64, linux/arm64/v8"


def test_single_entry_without_platform() -> None:
    """An entry that names no platform is tried after those that do; an artefact beside it does not count."""
    attested = entry(Platform("unknown", "unknown"), "0")
    artefact = entry(None, "2", artifact_type="a/b")
    found = platform_candidates({"manifests": [attested, entry(None, "1"), artefact]}, Platform(), "x")
    assert not found.fitting
    assert [one.hex[0] for one in found.nameless] == ["1"]


def test_client_import_is_light() -> None:
    """What runs inside the machine brings no pydantic, rich, httpx or typer with it."""
    code = "import sys, harness.oci.location, harness.oci.registry.push; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "rich", "httpx", "typer", "requests", "asyncio", "ssl"} & set(loaded)
