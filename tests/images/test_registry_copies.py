"""A tag is looked up anew by every run, and its copy is kept by digest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.errors import DigestMismatch, ImageNotFound, RegistryError
from harness.images.catalog import obtain
from harness.model.image import ImageSpec
from harness.oci.cache import Cache
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, digest_bytes, go_json
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
from tests.oci.registry.fault_server import Answer, FaultServer, Request, serve_range
from tests.oci.samples import make_tar, put_files
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


class Shelf:
    """A registry over a layout directory; ``tags`` can be moved while it answers."""

    def __init__(self, directory: Path) -> None:
        self.store = LayoutStore(directory, create=True)
        self.tags: dict[str, Descriptor] = {}
        self.login = ""

    def add(self, tag: str, content: bytes) -> Descriptor:
        self.tags[tag] = put_files(self.store, "", [{"a": content}])
        return self.tags[tag]

    def add_index(self, tag: str) -> tuple[Descriptor, Descriptor]:
        """An index of this host's image and one for another platform; the tag means the index."""
        here = put_files(self.store, "", [{"a": b"here"}])
        there = put_image(
            self.store, "", [Layer.of_tar(make_tar({"a": b"there"}))], platform=Platform("linux", "s390x")
        )
        entries = [
            Descriptor(OCI_MANIFEST, there.digest, there.size, platform=Platform("linux", "s390x")).to_json(),
            Descriptor(OCI_MANIFEST, here.digest, here.size, platform=Platform.of_host()).to_json(),
        ]
        data = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        self.tags[tag] = self.store.put_nested_manifest(data, OCI_INDEX)
        return here, there

    def __call__(self, request: Request) -> Answer:
        if self.login and request.headers.get("authorization") != self.login:
            return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="r"'})
        name = request.path.rpartition("/")[2]
        found = self.tags.get(name)
        path = self.store.blob_path(found.digest if found else name) if found or ":" in name else None
        if path is None:
            return Answer(404)
        data = path.read_bytes()
        if "/manifests/" in request.path:
            return Answer(200, data, {"Content-Type": json.loads(data)["mediaType"]})
        return serve_range(request, data)


def test_a_tag_is_looked_up_by_every_run(tmp_path: Path) -> None:
    """Each run asks once what the tag means; where it moved, the new image is used and both digests are named."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    first = shelf.add("latest", b"first")
    with FaultServer(shelf) as server:
        spec = ImageSpec(ref=f"{server.host}/app:latest")
        made = obtain(spec, cache)
        assert made.made
        assert made.lookup is not None
        assert (made.lookup.digest, made.lookup.news) == (first.digest, "")
        asked = len(server.requests)
        again = obtain(spec, cache)
        assert not again.made
        assert again.layout == made.layout
        assert len(server.requests) == asked + 1
        second = shelf.add("latest", b"second")
        moved = obtain(spec, cache)
    assert moved.made
    assert moved.lookup is not None
    assert (moved.lookup.digest, moved.lookup.moved_from) == (second.digest, first.digest)
    assert f"has moved: it was {first.digest}" in moved.lookup.news
    with open_source(moved.layout) as source:
        assert source.resolve().descriptor.digest == second.digest
        assert source.where == f"docker://{server.host}/app:latest"


def test_offline_uses_what_is_there(tmp_path: Path) -> None:
    """Without a registry the last lookup counts, and is named with its time; what was never copied is refused."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    first = shelf.add("latest", b"first")
    with FaultServer(shelf) as server:
        spec = ImageSpec(ref=f"{server.host}/app:latest")
        with pytest.raises(ImageNotFound, match="never looked up here; run once without --offline"):
            obtain(spec, cache, offline=True)
        made = obtain(spec, cache)
        asked = len(server.requests)
        used = obtain(spec, cache, offline=True)
        assert len(server.requests) == asked
    assert used.layout == made.layout
    assert used.lookup is not None
    assert made.lookup is not None
    assert used.lookup.news.endswith(f"looked up {made.lookup.looked_up_at}: {first.digest}")
    with pytest.raises(RegistryError, match=r"--offline uses the copy of 2"):
        obtain(spec, cache)


def test_a_digest_is_copied_once_and_never_asked_again(tmp_path: Path) -> None:
    """What a digest means cannot change, so a copy of it is used without a request; so is a session's own digest."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    first = shelf.add("latest", b"first")
    with FaultServer(shelf) as server:
        made = obtain(ImageSpec(ref=f"{server.host}/app:latest"), cache)
    by_digest = obtain(ImageSpec(ref=f"{server.host}/app@{first.digest}"), cache)
    pinned = obtain(ImageSpec(ref=f"{server.host}/app:latest"), cache, pinned=first.digest)
    assert by_digest.layout == pinned.layout == made.layout


def test_only_this_hosts_image_is_copied(tmp_path: Path) -> None:
    """Of an index one platform is copied; its digest is the index's, which is what the tag meant."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    here, there = shelf.add_index("latest")
    with FaultServer(shelf) as server:
        made = obtain(ImageSpec(ref=f"{server.host}/app:latest"), cache)
        asked = {request.path.rpartition("/")[2] for request in server.requests}
    assert there.digest not in asked
    assert made.lookup is not None
    assert made.lookup.digest == shelf.tags["latest"].digest
    with open_source(made.layout) as source:
        assert source.resolve().descriptor.digest == here.digest


def test_the_same_login_serves_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ref =` and `docker://` find their login in the same places."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    made = shelf.add("latest", b"first")
    shelf.login = "Basic dTpw"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with FaultServer(shelf) as server:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": "dTpw"}}}))
        obtain(ImageSpec(ref=f"{server.host}/app:latest"), cache)
        with open_source(f"docker://{server.host}/app:latest") as source:
            assert source.resolve().descriptor.digest == made.digest


def test_errors_name_what_the_user_named(tmp_path: Path) -> None:
    """A damaged layer of a registry's image is reported by the image's name, not by a path in the cache."""
    shelf, cache = Shelf(tmp_path / "shelf"), Cache(tmp_path / "cache")
    shelf.add("latest", b"first")
    with FaultServer(shelf) as server:
        made = obtain(ImageSpec(ref=f"{server.host}/app:latest"), cache)
    with open_source(made.layout) as source:
        layer = source.resolve().layers[0]
        path = source.open_blob(layer).path
        assert path is not None
        path.chmod(0o644)
        path.write_bytes(b"x" * layer.size)
        with pytest.raises(
            DigestMismatch, match=rf"docker://{server.host}/app:latest: blob: digest is .*{layer.digest}"
        ) as caught:
            source.open_blob(layer).read()
    assert str(cache.root) not in str(caught.value)
    assert digest_bytes(b"x" * layer.size) in str(caught.value)
