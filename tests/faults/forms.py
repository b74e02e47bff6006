"""One image in the forms that tools write around it: what ``docker save`` and containerd export make, and others."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

from harness.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor, Platform, digest_bytes, go_json
from harness.oci.layout import LayoutStore
from tests.faults.cases import DIRECTORY, TAR
from tests.faults.entries import gzipped
from tests.oci.samples import artefact
from tests.oci.test_odd_images import FOREIGN, entry, forget, put_index, write_tar
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.cases import Shown

TREE: dict[str, Shown] = {"x": DIRECTORY, "x/a": b"hi", "x/b": b"z" * 5000}
"""What each of them shows, beside what the layer on top holds."""
HERE, ELSEWHERE, NOWHERE = Platform.of_host(), Platform("linux", "s390x"), Platform("unknown", "unknown")


def write(place: Path, top: bytes, command: list[str]) -> dict[str, str]:
    """Write all of them with the tar ``top`` as their upper layer; by name, where each is as a scenario says it."""
    config = {"Entrypoint": command}
    lower, upper = Layer.of_tar(TAR), Layer.of_tar(top)

    store = LayoutStore(place / "foreign", create=True)
    put_image(store, "latest", [Layer.of_tar(TAR, FOREIGN), upper], config=config)

    partial = LayoutStore(place / "partial-index", create=True)
    kept = put_image(partial, "here", [lower, upper], config=config, platform=HERE)
    gone = put_image(partial, "there", [lower], platform=ELSEWHERE)
    attested = partial.put_manifest(artefact(kept), OCI_MANIFEST, "attested")
    put_index(partial, "latest", entry(gone, ELSEWHERE), entry(attested, NOWHERE), entry(kept, HERE))
    for digest in (gone.digest, attested.digest):
        forget(partial, digest)
    with tarfile.open(place / "partial-index.tar", "w") as archive:
        archive.add(place / "partial-index", arcname=".")

    bare = LayoutStore(place / "no-platform", create=True)
    alone = put_image(bare, "alone", [lower, upper], config=config, platform=HERE)
    attested = bare.put_manifest(artefact(alone), OCI_MANIFEST, "attested")
    put_index(bare, "latest", entry(attested, None), entry(alone, None))

    _save(place / "docker-save.tar", [TAR, top], config)
    (place / "docker-save-gz.tar.gz").write_bytes(gzipped((place / "docker-save.tar").read_bytes()))
    return {
        "foreign": f'layout = "{place}/foreign:latest"',
        "partial-index": f'layout = "{place}/partial-index:latest"',
        "partial-index-archive": f'archive = "{place}/partial-index.tar:latest"',
        "no-platform": f'layout = "{place}/no-platform:latest"',
        "docker-save": f'archive = "{place}/docker-save.tar"',
        "docker-save-gz": f'archive = "{place}/docker-save-gz.tar.gz"',
    }


def _save(path: Path, tars: list[bytes], config: dict[str, list[str]]) -> None:
    """What Docker 25 saves: manifest.json, and beside it an OCI manifest without layers."""
    diff_ids = [digest_bytes(tar) for tar in tars]
    image = go_json({**HERE.to_json(), "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    empty = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": Descriptor.of(image, OCI_CONFIG).to_json()}
    manifest = go_json({**empty, "layers": []})
    blobs = {f"blobs/sha256/{digest_bytes(blob)[7:]}": blob for blob in (image, manifest, *tars)}
    listing = [
        {
            "Config": f"blobs/sha256/{digest_bytes(image)[7:]}",
            "RepoTags": ["app:x"],
            "Layers": [f"blobs/sha256/{diff_id[7:]}" for diff_id in diff_ids],
        }
    ]
    documents = {
        "index.json": go_json({"schemaVersion": 2, "manifests": [Descriptor.of(manifest, OCI_MANIFEST).to_json()]}),
        "manifest.json": json.dumps(listing).encode(),
    }
    write_tar(path, {**blobs, **documents})
