"""JSON documents that others wrote: every field of every document, replaced by values of every other kind."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import ColdbenchError
from harness.formats.erofs.index import index_manifest, index_parts
from harness.formats.soci import index as soci_index
from harness.oci.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    digest_bytes,
    go_json,
)  # fmt: skip
from harness.oci.image import build_image, parse_json, platform_candidates
from harness.oci.layout import referrer_descriptor
from harness.oci.location import open_source
from tests.oci.samples import make_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ODD: list[Any] = [
    None, [], {}, "", 0, -1, 1.5, True, "x", [1], [[]], {"a": 1}, [None], ["x"], {"a": None}, 1 << 70, "\ud800",
    "sha256:zz",
]  # fmt: skip
LAYER = Descriptor(OCI_LAYER_GZIP, "sha256:" + "a" * 64, 5, annotations={"x": "y"}, urls=("u",))
HEAD = Descriptor(OCI_MANIFEST, "sha256:" + "c" * 64, 9, annotations={"a": "b"}, platform=Platform())
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "os.features": ["a"],
    "config": {"Cmd": ["x"], "Entrypoint": ["y"], "Env": ["A=b"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "b" * 64]},
}
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": Descriptor(OCI_CONFIG, "sha256:" + "c" * 64, 9).to_json(),
    "layers": [LAYER.to_json()],
    "annotations": {"a": "b"},
    "subject": LAYER.to_json(),
}
INDEX = {"mediaType": OCI_INDEX, "manifests": [HEAD.to_json(), {**HEAD.to_json(), "artifactType": "x"}]}
SOCI = soci_index.SociIndex(
    soci_index.V1,
    (soci_index.IndexedLayer(LAYER.digest, LAYER.media_type, 5, LAYER),),
    "tool",
    LAYER,
    {LAYER.digest: Descriptor(soci_index.PREFETCH_TYPE, LAYER.digest, 5)},
)


def changed(document: Any) -> Iterator[Any]:
    """The document with each of its parts taken away, or replaced by each odd value."""
    places: list[tuple[Any, ...]] = [()]
    while places:
        place = places.pop()
        part = document
        for key in place:
            part = part[key]
        inside = part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        places += [(*place, key) for key in inside]
        for odd in [*ODD, ...]:
            if not place:
                yield None if odd is ... else odd
                continue
            other = copy.deepcopy(document)
            holder = other
            for key in place[:-1]:
                holder = holder[key]
            if odd is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = odd
            yield other


def as_image(manifest: bytes, config: bytes) -> None:
    image = build_image(HEAD, manifest, config, "image")
    run = image.config.get("config") or {}
    assert all(isinstance(word, str) for key in ("Entrypoint", "Cmd", "Env") for word in run.get(key) or [])
    assert image.compressed_bytes >= 0
    go_json(image.platform.to_json())
    soci_index.annotated_manifest(image, LAYER.digest)


def as_referrer(data: bytes) -> None:
    go_json(referrer_descriptor(HEAD.digest, 1, parse_json(data, "referrer"), OCI_MANIFEST).to_json())


def as_soci(data: bytes) -> None:
    soci_index.parse_index(data).to_bytes()


@pytest.mark.parametrize(
    ("document", "use"),
    [
        (MANIFEST, lambda data: as_image(data, go_json(CONFIG))),
        (CONFIG, lambda data: as_image(go_json(MANIFEST), data)),
        (INDEX, lambda data: platform_candidates(parse_json(data, "index"), Platform(), "index")),
        (MANIFEST, as_referrer),
        (json.loads(SOCI.to_bytes()), as_soci),
        (json.loads(soci_index.prefetch_bytes([(0, 3)])), lambda data: soci_index.parse_prefetch(data, 10)),
        (json.loads(index_manifest(HEAD, LAYER, LAYER, 1)), lambda data: index_parts(data, HEAD.digest)),
    ],
)
def test_a_part_of_another_kind_is_refused_or_harmless(document: Any, use: Callable[[bytes], object]) -> None:
    """One error of ours, or a result that can be written again; never another exception."""
    for other in changed(document):
        with suppress(ColdbenchError):
            use(json.dumps(other).encode())


@pytest.mark.files
def test_what_docker_save_writes(tmp_path: Path) -> None:
    """The list and the configuration in a ``docker save`` archive are read as strictly."""
    layer = make_tar({"a": b"b"})
    config = {**CONFIG, "rootfs": {"type": "layers", "diff_ids": [digest_bytes(layer)]}}
    listing = [{"Config": "config.json", "RepoTags": ["a:b"], "Layers": ["layer.tar"]}]
    pairs = [(other, config) for other in changed(listing)] + [(listing, other) for other in changed(config)]
    found = 0
    for number, (first, second) in enumerate([(listing, config), *pairs]):
        parts = {"layer.tar": layer, "config.json": json.dumps(second).encode()}
        (tmp_path / "image.tar").write_bytes(make_tar({**parts, "manifest.json": json.dumps(first).encode()}))
        with suppress(ColdbenchError), open_source(f"docker-archive:{tmp_path}/image.tar") as source:
            source.resolve(Platform())
            found += 1
        assert found or number
