"""No answer grows memory past a bound, whatever its status, method, length and way."""

from __future__ import annotations

import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from harness.errors import ColdbenchError, ContentError, FormatError
from harness.oci.descriptor import Descriptor
from harness.oci.registry.client import RegistryClient, Retries
from harness.oci.registry.curl_pool import CurlPool, TransferError
from harness.oci.registry.logins import Credentials
from harness.oci.registry.push import RegistryDestination
from harness.oci.store import Blob, ImageSource
from tests.oci.registry.endless_server import EndlessServer
from tests.oci.registry.fault_server import Answer, FaultServer
from tests.oci.registry.test_faults import BLOB, DIGEST, client

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.files

BOUND_BYTES = 24 << 20
"""Above the limit of a manifest with its copies, far below what an endless answer would come to."""

CALLS: dict[str, Callable[[RegistryClient], object]] = {
    "manifest": lambda made: made.manifest("x"),
    "range": lambda made: made.get_range(DIGEST, 5, 10),
    "size": lambda made: made.blob_size(DIGEST),
    "referrers": lambda made: made.referrers(DIGEST),
    "ping": lambda made: made.ping(),
    "blob": lambda made: Blob(made, BLOB).read(),
    "pieces": lambda made: list(Blob(made, BLOB).stream(1000)),
    "mount": lambda made: RegistryDestination(made).mount_blob(BLOB, made),
    "upload": lambda made: RegistryDestination(made).put_blob(Descriptor.of(b"1", "a/b"), b"1"),
    "push": lambda made: RegistryDestination(made).put_manifest(b"{}", "a/b"),
    "image": lambda made: ImageSource(made, "x").resolve(),
}


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("status", [200, 206, 201, 400, 401, 403, 404, 405, 500])
def test_an_endless_body_ends(status: int, framing: str) -> None:
    """Every call ends, in an error or not, with at most a few megabytes in memory."""
    with EndlessServer(status, framing) as server:
        for name, call in CALLS.items():
            made = RegistryClient(server.host, "some/image", retries=Retries(1), credentials=Credentials("u", "s"))
            tracemalloc.start()
            try:
                call(made)
            except (ColdbenchError, TransferError):
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                made.close()
            assert peak < BOUND_BYTES, (name, peak)


@pytest.mark.parametrize("identity", [True, False])
def test_an_endless_token_ends(identity: bool) -> None:
    """The token server's answer to GET and POST is bounded like every other."""
    with EndlessServer(200, "chunked") as tokens:
        challenge = Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/token"'})
        with FaultServer(lambda request: challenge) as server:
            made = client(server, credentials=Credentials("", "s", identity=identity))
            tracemalloc.start()
            with pytest.raises(ColdbenchError, match="more than 1048576 bytes"):
                made.manifest("x")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < BOUND_BYTES


def test_endless_headers_end() -> None:
    """A head that does not end is given up, by both of our ways to speak HTTP."""
    with EndlessServer(200, "headers") as server:
        tracemalloc.start()
        for url in (f"http://{server.host}/x", f"http://{server.host}/x/./y"):
            with pytest.raises(TransferError):
                CurlPool().get(url)
        with pytest.raises(TransferError):
            CurlPool().send("HEAD", f"http://{server.host}/x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BOUND_BYTES


def test_a_blob_longer_than_it_says_ends() -> None:
    """A server that ignores ranges and sends without end fills neither memory nor disk."""
    with EndlessServer(200, "chunked") as server:
        made = RegistryClient(server.host, "some/image", retries=Retries(1))
        with pytest.raises(ContentError, match="longer than its"):
            list(Blob(made, BLOB).stream(1000))


def test_documents_have_a_limit() -> None:
    """A configuration that claims gigabytes is refused before a byte of it is asked for."""
    huge = Descriptor(BLOB.media_type, DIGEST, 8 << 30)
    with FaultServer(lambda request: Answer(404)) as server:
        with pytest.raises(FormatError, match="read into memory"):
            Blob(client(server), huge).read()
        assert server.requests == []


def test_no_thread_is_left() -> None:
    """The servers of these tests end with them."""
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("endless")]
