"""The registry process and the client, with each other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError, DigestMismatch, ImageNotFound, RegistryError
from harness.images.catalog import materialise
from harness.model.image import ImageSpec
from harness.oci.cache import Cache
from harness.oci.descriptor import OCI_MANIFEST, Descriptor
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.push import PIECE_BYTES, RegistryDestination
from harness.oci.registry.server import RegistryServer
from harness.oci.store import Blob, referrers_tag
from tests.oci.samples import artefact, sample_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.files


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(storage=tmp_path_factory.mktemp("storage")) as server:
        yield server


def test_push_and_pull(registry: RegistryServer, tmp_path: Path) -> None:
    """An image comes back from the registry byte for byte; a second push moves nothing."""
    sample_layout(tmp_path / "l")
    original = open_source(f"oci:{tmp_path}/l").resolve()
    name = f"docker://{registry.host}/push/pull:one"
    with open_source(f"oci:{tmp_path}/l") as source:
        copy_image(source, open_destination(name))
        before = registry.requests()["push"]
        copy_image(source, open_destination(name))
        assert registry.requests()["push"] == before + 1
    with open_source(name) as source:
        image = source.resolve()
        assert image.manifest_bytes == original.manifest_bytes
        assert image.config_bytes == original.config_bytes
        for layer in image.layers:
            blob = source.open_blob(layer)
            assert blob.path is None
            assert blob.read() == b"".join(blob.stream(1000))
    copy_image(open_source(name), open_destination(f"oci:{tmp_path}/back:one"))
    assert open_source(f"oci:{tmp_path}/back").resolve().descriptor == original.descriptor


def test_blobs_of_every_kind(registry: RegistryServer, tmp_path: Path) -> None:
    """Bytes, files and iterators longer than one piece arrive whole; a wrong one does not arrive."""
    client = RegistryClient(registry.host, "blobs")
    destination = RegistryDestination(client)
    data = random.Random(1).randbytes(PIECE_BYTES + 12_345)
    small = Descriptor.of(data[:1000], "a/b")
    destination.put_blob(small, data[:1000])
    path = tmp_path / "file"
    path.write_bytes(data[:5000])
    filed = Descriptor.of(data[:5000], "a/b")
    destination.put_blob(filed, path)
    large = Descriptor.of(data, "a/b")
    destination.put_blob(large, (data[start : start + 100_000] for start in range(0, len(data), 100_000)))
    for descriptor in (small, filed, large):
        assert client.blob_size(descriptor.digest) == descriptor.size
        assert Blob(client, descriptor).read() == data[: descriptor.size]
    wrong = Descriptor.of(b"promised", "a/b")
    with pytest.raises(DigestMismatch):
        destination.put_blob(wrong, b"deliverd")
    with pytest.raises(ContentError):
        destination.put_blob(wrong, iter([b"deliverd"]))
    path.write_bytes(b"deliverd")
    with pytest.raises(DigestMismatch, match=str(path)):
        destination.put_blob(wrong, path)
    assert not destination.has_blob(wrong.digest)


def test_a_head_request_after_a_range_is_not_bound_by_it(registry: RegistryServer) -> None:
    """The connection of a range request serves a HEAD next: neither the range nor its size limit is left over."""
    client = RegistryClient(registry.host, "head-after-range")
    data = random.Random(3).randbytes(1 << 20)
    descriptor = Descriptor.of(data, "a/b")
    RegistryDestination(client).put_blob(descriptor, data)
    assert client.get_range(descriptor.digest, 0, 2) == data[:2]
    assert client.blob_size(descriptor.digest) == len(data)


def test_ranges_from_many_threads(registry: RegistryServer) -> None:
    """Threads share one client; each gets its own bytes, and the requests are counted."""
    client = RegistryClient(registry.host, "threads")
    data = random.Random(2).randbytes(1 << 20)
    descriptor = Descriptor.of(data, "a/b")
    RegistryDestination(client).put_blob(descriptor, data)
    before = client.counters.requests

    def check(number: int) -> bool:
        offset = number * 4001
        return client.get_range(descriptor.digest, offset, 3000) == data[offset : offset + 3000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(200)))
    assert client.counters.requests == before + 200
    assert registry.requests()["range"] >= 200


def test_mount_from_another_repository(registry: RegistryServer, tmp_path: Path) -> None:
    """Within a registry a copy moves no layer bytes."""
    sample_layout(tmp_path / "l")
    first, second = f"docker://{registry.host}/mount/a:1", f"docker://{registry.host}/mount/b:1"
    copy_image(open_source(f"oci:{tmp_path}/l"), open_destination(first))
    with open_source(first) as source:
        copy_image(source, open_destination(second))
        assert source.store.blob_path("x") is None
    assert open_source(second).resolve().descriptor == open_source(first).resolve().descriptor


def test_referrers_by_fallback_tag(registry: RegistryServer, tmp_path: Path) -> None:
    """A registry without the referrers API lists artefacts under the fallback tag, each once."""
    sample_layout(tmp_path / "l")
    name = f"docker://{registry.host}/refer:one"
    destination = open_destination(name)
    copy_image(open_source(f"oci:{tmp_path}/l"), destination)
    with open_source(name) as source:
        subject = source.resolve().descriptor
        assert source.referrers(subject.digest) == []
        destination.put_blob(Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json"), b"{}")
        made = destination.add_referrer(subject, artefact(subject), OCI_MANIFEST)
        destination.add_referrer(subject, artefact(subject), OCI_MANIFEST)
        destination.add_referrer(subject, artefact(subject, "other/type"), OCI_MANIFEST)
        assert [d.digest for d in source.referrers(subject.digest, "application/x-test")] == [made.digest]
        assert len(source.referrers(subject.digest)) == 2
        index, _ = source.manifest(referrers_tag(subject.digest))
        assert index.startswith(b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"')
    copy_image(open_source(name), open_destination(f"oci:{tmp_path}/back:one"))
    assert len(open_source(f"oci:{tmp_path}/back").referrers(subject.digest)) == 2


def test_scenario_from_a_reference(registry: RegistryServer, tmp_path: Path) -> None:
    """An image named by reference is copied into the cache by skopeo, once; an unknown one is ImageNotFound."""
    sample_layout(tmp_path / "l")
    copy_image(open_source(f"oci:{tmp_path}/l"), open_destination(f"docker://{registry.host}/ref:one"))
    cache = Cache(tmp_path / "cache")
    spec = ImageSpec(ref=f"{registry.host}/ref:one")
    reference = materialise(spec, cache)
    assert materialise(spec, cache) == reference
    assert open_source(reference).resolve().descriptor == open_source(f"oci:{tmp_path}/l").resolve().descriptor
    with pytest.raises(ImageNotFound, match="no such image"):
        materialise(ImageSpec(ref=f"{registry.host}/ref:none"), cache)
    assert list((tmp_path / "cache" / "build").iterdir()) == []


def test_server_reports_why_it_cannot_start(tmp_path: Path) -> None:
    """An address that is not ours and a port in use are RegistryErrors with the reason; nothing is left running."""
    with pytest.raises(RegistryError, match=r"198\.18\.99\.99:\d+: Cannot assign"):
        RegistryServer("198.18.99.99", storage=tmp_path).start()
    with RegistryServer(storage=tmp_path) as first:
        second = RegistryServer(port=first.port, storage=tmp_path)
        with pytest.raises(RegistryError, match="Address already in use"):
            second.start()
        with pytest.raises(RegistryError, match="does not run"):
            _ = second.pid


def test_server_dies_with_its_parent(tmp_path: Path) -> None:
    """After kill -9 of the harness the registry is gone as well."""
    code = (
        "import sys, time, pathlib; from harness.oci.registry.server import RegistryServer\n"
        f"p = pathlib.Path({str(tmp_path)!r}); s = RegistryServer(storage=p / 's', log=p / 'log')\n"
        "s.start(); print(s.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.send_signal(signal.SIGKILL)
    import select

    assert select.select([watch], [], [], 10)[0]
    os.close(watch)
