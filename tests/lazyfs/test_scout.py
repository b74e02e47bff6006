"""What a scout asks for when it sees a manifest."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from harness.formats.erofs.index import ANNOTATION_HEAD, INDEX_TYPE, index_manifest
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION
from harness.formats.soci.index import INDEX_DIGEST, V1, V2
from harness.lazyfs.plan import HEAD_ANNOTATION, parse_head
from harness.lazyfs.scout import Scout
from harness.model.forms import Form
from harness.oci.ahead import Ahead
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, digest_bytes
from tests.oci.test_ahead import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lazyfs.messages import Wanted
    from harness.oci.aside import Aside

IMAGE, INDEX, OTHER, HEAD = (digest_bytes(name) for name in (b"image", b"index", b"other", b"head"))
PLATFORM = Platform("linux", "amd64")


class Registry(Store):
    """Lists what it is given as referrers, and has these manifests."""

    def __init__(self, listed: Sequence[Descriptor] = (), manifests: dict[str, bytes] | None = None) -> None:
        super().__init__()
        self.listed = list(listed)
        self.manifests = manifests or {}

    def manifest(self, reference: str) -> tuple[bytes, str]:
        self.note(f"manifest {reference}")
        return self.manifests[reference], OCI_MANIFEST

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        self.note(f"referrers {digest} {artifact_type}")
        return self.listed


class Daemon:
    """Takes what the daemon is told to expect."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []
        self.told = threading.Event()

    def __call__(self, blobs: Sequence[Wanted]) -> None:
        self.wanted += blobs
        self.told.set()

    def hears(self) -> list[Wanted]:
        assert self.told.wait(20), "the daemon was told nothing"
        return self.wanted


def see(scout: Scout, manifest: dict[str, object], media_type: str = OCI_MANIFEST) -> None:
    data = json.dumps(manifest).encode()
    scout(Descriptor(media_type, IMAGE, len(data)), data)


def entry(digest: str, head: str = "") -> Descriptor:
    return Descriptor(OCI_MANIFEST, digest, 5, {HEAD_ANNOTATION: head} if head else {}, artifact_type=INDEX_TYPE)


def listing(annotations: dict[str, str] | None = None) -> dict[str, object]:
    """An index of one image."""
    image = Descriptor(OCI_MANIFEST, IMAGE, 5, annotations or {}, PLATFORM)
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [image.to_json()]}


@pytest.mark.parametrize("through_index", [False, True])
def test_erofs_head_is_known_from_the_list_of_referrers(through_index: bool) -> None:
    """The last index that is listed is asked for with its head, also while the image's own manifest is on its way."""
    registry = Registry([entry(OTHER), entry(INDEX, f"{HEAD} 300000")], {INDEX: b"m"})
    daemon = Daemon()
    scout = Scout(Ahead(registry), Form.EROFS, PLATFORM, daemon)
    if through_index:
        see(scout, listing(), OCI_INDEX)
    see(scout, {"layers": []})
    assert [(w.digest, w.offset, w.size) for w in daemon.hears()] == [(HEAD, 0, 300_000)]
    assert sorted(registry.asked) == [f"manifest {INDEX}", f"referrers {IMAGE} {INDEX_TYPE}"]


@pytest.mark.parametrize(("form", "kind"), [(Form.EROFS, INDEX_TYPE), (Form.SOCI, V1)], ids=["erofs", "soci v1"])
def test_what_refers_to_a_digest_is_asked_for_with_it(form: Form, kind: str) -> None:
    """An image named by its digest needs no answer before its referrers; its manifest does not ask for them again."""
    indexes = {Form.EROFS: b"m", Form.SOCI: soci_index()}
    registry = Registry([entry(INDEX, f"{HEAD} 7")], {INDEX: indexes[form]})
    daemon = Daemon()
    scout = Scout(Ahead(registry), form, PLATFORM, daemon)
    scout.begin(IMAGE)
    daemon.hears()
    see(scout, {"layers": []})
    assert sorted(registry.asked) == [f"manifest {INDEX}", f"referrers {IMAGE} {kind}"]


def test_a_tag_says_nothing_before_its_answer() -> None:
    """What refers to an image is known by the image's digest alone; eStargz has nothing that refers to it."""

    class Silent(Ahead):
        """Is asked for nothing."""

        def expect_referrers(self, digest: str, artifact_type: str | None) -> Aside[list[Descriptor]]:
            raise AssertionError(f"{artifact_type} of {digest} was asked for")

    for form, name in ((Form.EROFS, "latest"), (Form.SOCI, "latest"), (Form.ESTARGZ, IMAGE)):
        Scout(Silent(Registry()), form, PLATFORM, Daemon()).begin(name)


def test_only_the_pinned_index_is_followed() -> None:
    """Anybody who may push can list another one."""
    registry = Registry([entry(INDEX, f"{HEAD} 7"), entry(OTHER, f"{OTHER} 9")], {INDEX: b"m"})
    daemon = Daemon()
    see(Scout(Ahead(registry), Form.EROFS, PLATFORM, daemon, INDEX), {"layers": []})
    assert [w.digest for w in daemon.hears()] == [HEAD]


def test_the_annotation_is_what_the_index_is_written_with() -> None:
    """The writer's name for it, and its form, are those that the scout reads; anything else is no head."""
    head = Descriptor("h", HEAD, 12)
    manifest = json.loads(index_manifest(Descriptor(OCI_MANIFEST, IMAGE, 5), head, None, 1 << 20))
    assert ANNOTATION_HEAD == HEAD_ANNOTATION
    assert parse_head(manifest["annotations"][HEAD_ANNOTATION]) == (HEAD, 12)
    for wrong in ("", HEAD, f"{HEAD} -1", f"{HEAD} 1e3", "sha256:0 5", f"{HEAD} {'9' * 40}"):
        assert parse_head(wrong) is None


def soci_index() -> bytes:
    return json.dumps(
        {
            "config": Descriptor(V2, HEAD, 2).to_json(),
            "layers": [
                Descriptor(
                    "application/octet-stream", OTHER, 77, {"com.amazon.soci.image-layer-digest": IMAGE}
                ).to_json()
            ],
        }
    ).encode()


@pytest.mark.parametrize("named_by", ["index", "manifest", "referrers"])
def test_soci_indexes_lead_to_their_ztocs(named_by: str) -> None:
    """Wherever the index is named, it is asked for once, and the zTOCs that it names after it."""
    registry = Registry([entry(INDEX)], {INDEX: soci_index()})
    daemon = Daemon()
    scout = Scout(Ahead(registry), Form.SOCI, PLATFORM, daemon)
    note = {INDEX_DIGEST: INDEX}
    see(scout, listing(note if named_by == "index" else {}), OCI_INDEX)
    see(scout, {"layers": [], "annotations": {} if named_by == "referrers" else note})
    assert [(w.digest, w.offset, w.size) for w in daemon.hears()] == [(OTHER, 0, 77)]
    by_list = [f"referrers {IMAGE} {V1}"]
    found = [f"manifest {INDEX}", *(by_list if named_by == "referrers" else [])]
    if named_by == "index":
        # The manifest of the image names no list of its own to look at once its index did.
        assert registry.asked == found
    assert sorted(registry.asked) == sorted(found)


def test_soci_layers_that_are_unpacked_are_asked_for_too() -> None:
    """A small layer without a zTOC is pulled before the mount, so it comes with the zTOCs of the others."""
    registry = Registry([], {INDEX: soci_index()})
    daemon = Daemon()
    ahead = Ahead(registry)
    layers = [Descriptor("l", IMAGE, 9_000_000).to_json(), Descriptor("l", HEAD, 300).to_json()]
    see(Scout(ahead, Form.SOCI, PLATFORM, daemon), {"layers": layers, "annotations": {INDEX_DIGEST: INDEX}})
    assert daemon.hears()
    ahead.stream_blob(HEAD, lambda piece: None)
    assert sorted(registry.asked) == sorted([f"manifest {INDEX}", f"{HEAD} 0+300"])


def test_estargz_ends_are_asked_for_with_the_manifest() -> None:
    """Each layer that has a TOC ends with it."""
    daemon = Daemon()
    layers = [
        Descriptor("l", OTHER, 1_000_000, {TOC_DIGEST_ANNOTATION: IMAGE}).to_json(),
        Descriptor("l", HEAD, 1_000_000).to_json(),
        Descriptor("l", INDEX, 1000, {TOC_DIGEST_ANNOTATION: IMAGE}).to_json(),
    ]
    see(Scout(Ahead(Store()), Form.ESTARGZ, PLATFORM, daemon), {"layers": layers})
    told = [(w.digest, w.offset, w.size) for w in daemon.hears()]
    assert told == [(OTHER, 1_000_000 - (64 << 10), 64 << 10), (INDEX, 0, 1000)]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"layers": 5}', b'{"manifests": 5}', b'{"annotations": 3}'])
@pytest.mark.parametrize("form", [Form.EROFS, Form.SOCI, Form.ESTARGZ, Form.IMAGE])
@pytest.mark.parametrize("media_type", [OCI_INDEX, OCI_MANIFEST])
def test_nonsense_is_left_to_who_reads_it(data: bytes, form: Form, media_type: str) -> None:
    """A scout never raises: what is wrong with a manifest its reader says."""
    Scout(Ahead(Registry()), form, PLATFORM, Daemon())(Descriptor(media_type, IMAGE, len(data)), data)
