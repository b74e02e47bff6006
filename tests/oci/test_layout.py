"""OCI layouts on disk."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError, DigestMismatch, DiskFull, FormatError, ImageNotFound, UsageError
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, go_json
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.store import ImageSource
from tests.oci.samples import artefact, put_files, sample_layout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def test_resolve_and_read(tmp_path: Path) -> None:
    """The only image needs no tag; its parts are verified; ranges and streams give the stored bytes."""
    store = sample_layout(tmp_path / "l")
    with open_source(f"oci:{tmp_path}/l") as source:
        image = source.resolve()
        assert image.platform.os == "linux"
        assert len(image.layers) == len(image.diff_ids) == 2
        blob = source.open_blob(image.layers[0])
        assert blob.path is not None
        whole = blob.path.read_bytes()
        assert blob.read() == b"".join(blob.stream(7)) == whole
        assert blob.read_range(3, 20) == whole[3:23]
        with pytest.raises(FormatError, match="lies outside"):
            blob.read_range(blob.size - 1, 2)
    assert store.has_blob(image.layers[0].digest)


def test_tags(tmp_path: Path) -> None:
    """Several images are told apart by tag; a wrong or missing one lists those there are."""
    store = sample_layout(tmp_path / "l")
    other = put_files(store, "two", [{"a": b"b"}])
    assert open_source(f"oci:{tmp_path}/l:two").resolve().descriptor.digest == other.digest
    assert open_source(f"oci:{tmp_path}/l:@{other.digest}").resolve().descriptor.digest == other.digest
    with pytest.raises(UsageError, match="append :TAG with one of one, two"):
        open_source(f"oci:{tmp_path}/l").resolve()
    with pytest.raises(ImageNotFound, match="names there: one, two"):
        open_source(f"oci:{tmp_path}/l:three").resolve()
    replaced = put_files(store, "two", [{"a": b"c"}])
    assert [e.digest for e in store.entries() if e.annotations].count(replaced.digest) == 1
    assert len(store.entries()) == 2


def test_not_a_layout(tmp_path: Path) -> None:
    """A directory without an index.json is no image."""
    with pytest.raises(ImageNotFound, match="not an OCI layout"):
        open_source(f"oci:{tmp_path}")


def test_damage_is_found(tmp_path: Path) -> None:
    """A changed or cut blob, and a changed manifest, are refused when read."""
    store = sample_layout(tmp_path / "l")
    source = ImageSource(store)
    image = source.resolve()
    path = store.blob_path(image.layers[0].digest)
    assert path is not None
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ContentError, match="is cut"):
        source.open_blob(image.layers[0]).read()
    with pytest.raises(FormatError, match="ends before"):
        source.open_blob(image.layers[0]).read_range(len(data) - 2, 2)
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(DigestMismatch):
        list(source.open_blob(image.layers[0]).stream())
    manifest = store.blob_path(image.descriptor.digest)
    assert manifest is not None
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(ContentError, match="damaged"):
        source.resolve()


def test_wrong_bytes_are_not_stored(tmp_path: Path) -> None:
    """What does not match its descriptor leaves nothing behind, neither a blob nor a part of one."""
    store = LayoutStore(tmp_path / "l", create=True)
    descriptor = Descriptor.of(b"right", "a/b")
    for wrong in (b"wrong", b"righ", b"right!"):
        with pytest.raises(ContentError):
            store.put_blob(descriptor, iter([wrong]))
    assert os.listdir(tmp_path / "l" / "blobs" / "sha256") == []


def test_digests_cannot_leave_the_layout(tmp_path: Path) -> None:
    """A digest is checked before it becomes a path."""
    store = sample_layout(tmp_path / "l")
    with pytest.raises(FormatError, match="not a digest"):
        store.get_range("sha256:../../../secret", 0, 1)


def test_index_of_platforms(tmp_path: Path) -> None:
    """An index resolves to this host's image and is copied with all it holds."""
    store = LayoutStore(tmp_path / "l", create=True)
    here = put_files(store, "x", [{"a": b"here"}])
    there = put_files(store, "y", [{"a": b"there"}])
    entries = [
        Descriptor(OCI_MANIFEST, there.digest, there.size, platform=Platform("linux", "s390x")).to_json(),
        Descriptor(OCI_MANIFEST, here.digest, here.size, platform=Platform.of_host()).to_json(),
    ]
    index = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    store.put_manifest(index, OCI_INDEX, "all")
    image = open_source(f"oci:{tmp_path}/l:all").resolve()
    assert image.descriptor.digest == here.digest
    assert image.chain[0][1] == index
    copy_image(open_source(f"oci:{tmp_path}/l:all"), open_destination(f"oci:{tmp_path}/copy:all"))
    copied = LayoutStore(tmp_path / "copy")
    assert [e.annotations for e in copied.entries()] == [{"org.opencontainers.image.ref.name": "all"}]
    s390x = ImageSource(copied, "all").resolve(Platform("linux", "s390x"))
    assert s390x.descriptor.digest == there.digest


def test_referrers(tmp_path: Path) -> None:
    """Artefacts are found by their subject and type, do not hide the image, and go along with a copy."""
    store = sample_layout(tmp_path / "l")
    subject = ImageSource(store).resolve().descriptor
    empty = Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")
    store.put_blob(empty, b"{}")
    made = store.add_referrer(subject, artefact(subject), OCI_MANIFEST)
    store.add_referrer(subject, artefact(subject, "other/type"), OCI_MANIFEST)
    found = store.referrers(subject.digest, "application/x-test")
    assert [(d.digest, d.artifact_type, d.annotations) for d in found] == [
        (made.digest, "application/x-test", {"note": "application/x-test"})
    ]
    assert len(store.referrers(subject.digest)) == 2
    assert store.referrers("sha256:" + "0" * 64) == []
    assert open_source(f"oci:{tmp_path}/l").resolve().descriptor == subject
    copy_image(open_source(f"oci:{tmp_path}/l"), open_destination(f"oci:{tmp_path}/copy:one"))
    assert len(LayoutStore(tmp_path / "copy").referrers(subject.digest)) == 2
    with pytest.raises(FormatError, match="subject is not"):
        store.add_referrer(made, artefact(subject), OCI_MANIFEST)


def test_a_referrer_that_is_damaged_is_not_overlooked(tmp_path: Path) -> None:
    """A changed subject would hide an artefact: its digest is checked. One that is not there at all is passed over."""
    store = sample_layout(tmp_path / "l")
    subject = ImageSource(store).resolve().descriptor
    made = store.add_referrer(subject, artefact(subject), OCI_MANIFEST)
    path = tmp_path / "l" / "blobs" / "sha256" / made.hex
    path.write_bytes(path.read_bytes().replace(subject.hex.encode(), b"0" * 64))
    with pytest.raises(ContentError, match="damaged"):
        store.referrers(subject.digest)
    path.unlink()
    assert store.referrers(subject.digest) == []


def test_copies_share_files(tmp_path: Path) -> None:
    """A copy between layouts on one file system moves no bytes."""
    store = sample_layout(tmp_path / "l")
    copy_image(open_source(f"oci:{tmp_path}/l"), open_destination(f"oci:{tmp_path}/copy:one"))
    layer = ImageSource(store).resolve().layers[0]
    paths = [store.blob_path(layer.digest), LayoutStore(tmp_path / "copy").blob_path(layer.digest)]
    assert paths[0] is not None
    assert paths[1] is not None
    assert paths[0].samefile(paths[1])


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    """A destination below a file is refused in one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        open_destination(f"oci:{tmp_path}/file/l")


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    """No space left is a DiskFull that names the place, and no part of a blob stays behind."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = LayoutStore(tmp_path / "l", create=True)
        data = bytes(1 << 20)
        with pytest.raises(DiskFull, match="no space left"):
            store.put_blob(Descriptor.of(data, "a/b"), data)
        assert os.listdir(tmp_path / "l" / "blobs" / "sha256") == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
