"""The cache belongs to one user, and what lies in it is checked before it is used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.errors import DigestMismatch, HostUnfit, UsageError
from harness.oci.cache import Cache
from harness.oci.descriptor import OCI_LAYER_GZIP, Descriptor, digest_bytes
from harness.oci.recipe.recipe import BuiltLayer, unpack_layer
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.push import RegistryDestination
from tests.oci.registry.fault_server import Answer, FaultServer, Request
from tests.oci.samples import make_tar
from tests.support.images import Layer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def test_a_new_cache_is_private(tmp_path: Path) -> None:
    """Nobody else may look into it or write to it, whatever the umask."""
    before = os.umask(0)
    try:
        cache = Cache(tmp_path / "some" / "cache")
        with cache.lock("x"):
            pass
    finally:
        os.umask(before)
    assert cache.root.stat().st_mode & 0o777 == 0o700
    assert (cache.root / "locks" / "x").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to mend it; nothing is read or written there."""
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(mode)
    monkeypatch.setenv("COLDBENCH_CACHE", str(root))
    with pytest.raises(UsageError, match=r"others can write there.*chmod -R go-w"):
        Cache.default()
    with pytest.raises(UsageError, match="others can write"), Cache(root).scratch("x"):
        pass
    (root / "images").mkdir()
    with pytest.raises(UsageError, match="others can write"):
        Cache(root).has(root / "images")


@pytest.mark.root
def test_a_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could have filled it, and could change it while root unpacks it; the same holds of one entry."""
    root = tmp_path / "cache"
    root.mkdir(mode=0o755)
    os.chown(root, 65534, 65534)
    monkeypatch.setenv("COLDBENCH_CACHE", str(root))
    with pytest.raises(UsageError, match="belongs to user 65534, not to user 0"):
        Cache.default()
    os.chown(root, 0, 0)
    entry = root / "images" / "x"
    entry.mkdir(parents=True)
    os.chown(entry, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to user 65534"):
        Cache(root).has(entry)


def test_an_entry_is_no_link(tmp_path: Path) -> None:
    """An entry that is a link leads somewhere else, where nobody vouches for anything."""
    cache = Cache(tmp_path / "cache")
    with cache.lock("x"):
        pass
    (tmp_path / "elsewhere").mkdir()
    (cache.root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a directory"):
        cache.has(cache.images)
    with pytest.raises(UsageError, match="not a directory"):
        cache.commit(tmp_path / "elsewhere", cache.images / "x")


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    """A link under a lock's name does not make this program open, or make, the file it leads to."""
    cache = Cache(tmp_path / "cache")
    with cache.lock("x"):
        pass
    victim = tmp_path / "victim"
    (cache.root / "locks" / "y").symlink_to(victim)
    with pytest.raises(UsageError, match="cannot be opened as a lock"), cache.lock("y"):
        pass
    assert not victim.exists()
    os.mkfifo(cache.root / "locks" / "z")
    with pytest.raises(UsageError, match="not a lock file"), cache.lock("z"):
        pass


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    """It is said, and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(HostUnfit, match="COLDBENCH_CACHE"), Cache(tmp_path / "file" / "cache").lock("x"):
        pass


def test_a_flipped_byte_of_a_cached_layer_is_noticed(tmp_path: Path) -> None:
    """A layer is hashed before anything of it is unpacked."""
    layer = Layer.of_tar(make_tar({"a": b"1" * 5000}))
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(layer.blob)
    built = BuiltLayer(path, digest_bytes(layer.blob), len(layer.blob), layer.diff_id, 0, 1, "x")
    unpack_layer(built, tmp_path / "good")
    assert (tmp_path / "good" / "a").read_bytes() == b"1" * 5000
    flipped = bytearray(layer.blob)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DigestMismatch, match=r"layer\.tar\.gz"):
        unpack_layer(built, tmp_path / "bad")
    assert list((tmp_path / "bad").iterdir()) == []


def test_a_flipped_byte_of_a_pushed_blob_is_named(tmp_path: Path) -> None:
    """The registry says only that it got something else; the file that is damaged is named."""

    def registry(request: Request) -> Answer:
        if request.method == "POST":
            return Answer(202, headers={"Location": "/v2/app/blobs/uploads/1"})
        return Answer(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')

    path = tmp_path / "blob"
    path.write_bytes(b"good")
    descriptor = Descriptor.of(b"good", OCI_LAYER_GZIP)
    path.write_bytes(b"Good")
    with FaultServer(registry) as server:
        destination = RegistryDestination(RegistryClient(server.host, "app"), "x")
        with pytest.raises(DigestMismatch, match=str(path)):
            destination.put_blob(descriptor, path)
