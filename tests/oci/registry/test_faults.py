"""The registry client against a server that misbehaves."""

from __future__ import annotations

import random
import shutil
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pycurl
import pytest

from harness.errors import (
    AuthError,
    ContentError,
    DigestMismatch,
    FormatError,
    ImageNotFound,
    RegistryError,
    UnsupportedMediaType,
)
from harness.oci.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    digest_bytes,
    go_json,
)
from harness.oci.registry.client import RegistryClient, Retries
from harness.oci.registry.curl_pool import TransferError
from harness.oci.registry.logins import Credentials
from harness.oci.store import Blob, ImageSource, RangeIgnored
from tests.oci.registry.fault_server import Answer, FaultServer, Request, serve_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.files

DATA = bytes(range(256)) * 1000
DIGEST = digest_bytes(DATA)
BLOB = Descriptor("application/octet-stream", DIGEST, len(DATA))


class Naps:
    """Stands in for time.sleep and remembers; also a clock that only sleeping moves."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def client(server: FaultServer, naps: Naps | None = None, **fields: Any) -> RegistryClient:
    naps = naps or Naps()
    fields.setdefault("retries", Retries(attempts=4))
    fields.setdefault("credentials", Credentials("user", "secret"))
    return RegistryClient(server.host, "some/image", sleep=naps.sleep, clock=naps.clock, rng=random.Random(1), **fields)


def sequence(*answers: Answer | Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    """One answer after the other, the last one for ever."""
    left = list(answers)

    def handle(request: Request) -> Answer:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return answer if isinstance(answer, Answer) else answer(request)

    return handle


def good(request: Request) -> Answer:
    return serve_range(request, DATA)


def test_ignored_range_is_detected() -> None:
    """A server that answers 200 with everything is refused, and its bytes are not taken for the range."""
    with FaultServer(lambda request: Answer(200, DATA)) as server:
        with pytest.raises(RangeIgnored, match="ignores range requests"):
            client(server).get_range(DIGEST, 10, 100)
        with pytest.raises(RangeIgnored):
            client(server).get_range(DIGEST, 0, 100_000)


def test_wrong_range_is_detected() -> None:
    """A 206 for other bytes than those asked for is refused."""
    answer = Answer(206, DATA[:100], {"Content-Range": f"bytes 0-99/{len(DATA)}"})
    with FaultServer(lambda request: answer) as server, pytest.raises(RangeIgnored, match="asked for bytes 10-109"):
        client(server).get_range(DIGEST, 10, 100)


def test_range_past_the_end() -> None:
    """A range that the blob does not have is a FormatError, whether the server cuts it or refuses it."""
    with FaultServer(good) as server:
        with pytest.raises(FormatError, match="ends before byte"):
            client(server).get_range(DIGEST, len(DATA) - 10, 20)
        with pytest.raises(FormatError, match="ends before byte"):
            client(server).get_range(DIGEST, len(DATA) + 10, 20)


def test_stream_without_range_support() -> None:
    """A whole blob is still readable piece by piece from a server that ignores ranges."""
    with FaultServer(lambda request: Answer(200, DATA)) as server:
        assert b"".join(Blob(client(server), BLOB).stream(1000)) == DATA


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_faults_are_retried(status: int) -> None:
    """Overload and server errors are tried again, with pauses that grow."""
    naps = Naps()
    with FaultServer(sequence(Answer(status), Answer(status), good)) as server:
        made = client(server, naps)
        assert made.get_range(DIGEST, 10, 100) == DATA[10:110]
    assert len(naps.slept) == 2
    assert made.counters.retries == 2
    assert made.counters.requests == 3


def test_retry_after_is_honoured() -> None:
    """The pause is the one the server asks for."""
    naps = Naps()
    with FaultServer(sequence(Answer(429, b"", {"Retry-After": "7"}), good)) as server:
        client(server, naps).get_range(DIGEST, 10, 100)
    assert naps.slept == [7.0]


def test_gives_up_with_the_reason() -> None:
    """After the last attempt the error names the place and the status."""
    with FaultServer(lambda request: Answer(503)) as server:
        with pytest.raises(RegistryError, match=rf"{server.host} after 4 attempts: .*503"):
            client(server).manifest("latest")
        assert len(server.requests) == 4


def test_unreachable() -> None:
    """A closed port is a RegistryError that says what to check."""
    with FaultServer(good) as server:
        pass
    with pytest.raises(RegistryError, match="check that the registry is up"):
        client(server).manifest("latest")


def test_cut_range_is_retried() -> None:
    """An answer shorter than announced is asked for again."""

    def cut(request: Request) -> Answer:
        answer = good(request)
        return Answer(answer.status, answer.body[:20], answer.headers, claimed=len(answer.body))

    with FaultServer(sequence(cut, good)) as server:
        assert client(server).get_range(DIGEST, 10, 100) == DATA[10:110]


def test_broken_stream_resumes() -> None:
    """Each byte reaches the sink once and in order, though the connection breaks twice."""

    def cut(request: Request) -> Answer:
        answer = good(request)
        return Answer(answer.status, answer.body[:70_001], answer.headers, claimed=len(answer.body))

    with FaultServer(sequence(cut, cut, good)) as server:
        assert Blob(client(server), BLOB).read() == DATA
        assert [request.range for request in server.requests] == [None, (70_001, None), (140_002, None)]


def test_broken_stream_resumes_without_ranges() -> None:
    """A server that cannot resume sends all again, and what was delivered is left out."""
    whole = Answer(200, DATA)
    with FaultServer(sequence(Answer(200, DATA[:70_001], claimed=len(DATA)), whole)) as server:
        assert Blob(client(server), BLOB).read() == DATA


def test_truncated_blob() -> None:
    """A blob that is honestly shorter than its descriptor says is refused."""
    with FaultServer(lambda request: Answer(200, DATA[:-1])) as server, pytest.raises(ContentError, match="is cut"):
        Blob(client(server), BLOB).read()


def test_changed_blob() -> None:
    """A blob with one wrong byte is refused after its last byte, and one that is too long at once."""
    with FaultServer(lambda request: Answer(200, b"x" + DATA[1:])) as server, pytest.raises(DigestMismatch):
        Blob(client(server), BLOB).read()
    with FaultServer(lambda request: Answer(200, DATA * 2)) as server, pytest.raises(ContentError, match="longer"):
        Blob(client(server), BLOB).read()


def test_wrong_manifest_digest() -> None:
    """A manifest that is not the one asked for by digest, or stated by header, is refused."""
    with FaultServer(lambda request: Answer(200, b"{}")) as server, pytest.raises(DigestMismatch):
        client(server).manifest(DIGEST)
    lying = Answer(200, b"{}", {"Docker-Content-Digest": DIGEST})
    with FaultServer(lambda request: lying) as server, pytest.raises(DigestMismatch):
        client(server).manifest("latest")


def test_huge_manifest() -> None:
    """A manifest beyond 4 MiB is refused without being read."""
    with FaultServer(lambda request: Answer(200, bytes(5 << 20))) as server, pytest.raises(FormatError, match="larger"):
        client(server).manifest("latest")


def test_unknown_image() -> None:
    """404 is an ImageNotFound that names the image."""
    with FaultServer(lambda request: Answer(404)) as server:
        with pytest.raises(ImageNotFound, match=r"some/image:nope: no such image"):
            client(server).manifest("nope")
        assert client(server).blob_size(DIGEST) is None
        with pytest.raises(ImageNotFound):
            client(server).get_range(DIGEST, 0, 1)


def test_registry_words_are_passed_on() -> None:
    """An unexpected status comes with the registry's own message."""
    body = b'{"errors": [{"code": "UNSUPPORTED", "message": "not today"}]}'
    with FaultServer(lambda request: Answer(405, body)) as server:
        with pytest.raises(RegistryError, match="UNSUPPORTED not today"):
            client(server).manifest("latest")


def test_redirect_is_followed_and_remembered() -> None:
    """Blobs are fetched where the registry points, without its Authorization, and directly the next time."""
    with FaultServer(good) as store:

        def registry(request: Request) -> Answer:
            if "authorization" not in request.headers:
                return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="r"'})
            return Answer(307, b"", {"Location": f"http://{store.host}/signed?X-Amz-Expires=100"})

        naps = Naps()
        with FaultServer(registry) as server:
            made = client(server, naps)
            for offset in (0, 500, 900):
                assert made.get_range(DIGEST, offset, 10) == DATA[offset : offset + 10]
            assert len(server.requests) == 2
            assert all("authorization" not in request.headers for request in store.requests)
            naps.now += 81
            made.get_range(DIGEST, 0, 10)
            assert len(server.requests) == 3


def test_stale_redirect_is_asked_for_again() -> None:
    """When a remembered place refuses, the registry is asked for a new one."""
    with FaultServer(sequence(good, Answer(403), good)) as store:
        place = Answer(307, b"", {"Location": f"http://{store.host}/signed"})
        with FaultServer(lambda request: place) as server:
            made = client(server)
            assert made.get_range(DIGEST, 0, 10) == DATA[:10]
            assert made.get_range(DIGEST, 5, 10) == DATA[5:15]
            assert len(server.requests) == 2


def test_blob_store_that_asks_for_a_login_gets_none() -> None:
    """Only the registry's own challenges are answered: another host's may name any place to send the login to."""

    def greedy(request: Request) -> Answer:
        return Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    with FaultServer(greedy) as store:
        place = Answer(307, b"", {"Location": f"http://{store.host}/signed"})
        with FaultServer(lambda request: place) as server:
            for ask in (lambda: client(server).blob_size(DIGEST), lambda: client(server).get_range(DIGEST, 0, 10)):
                with pytest.raises(RegistryError):
                    ask()
        assert store.requests
        assert all("authorization" not in request.headers for request in store.requests)


def test_redirect_loop_ends() -> None:
    """A circle of redirects is an error, not a hang."""
    with FaultServer(lambda request: Answer(307, b"", {"Location": "/round"})) as server:
        with pytest.raises(RegistryError, match="redirected more than"):
            client(server).get_range(DIGEST, 0, 10)


def test_redirect_to_a_file_is_refused() -> None:
    """Only HTTP places are followed."""
    with FaultServer(lambda request: Answer(307, b"", {"Location": "file:///etc/passwd"})) as server:
        with pytest.raises(RegistryError, match="refuses to follow"):
            client(server).get_range(DIGEST, 0, 10)


def token_registry(lifetime_s: int, tokens: list[str]) -> Callable[[Request], Answer]:
    """Accepts only the last token given out; its token server is under /token."""

    def handle(request: Request) -> Answer:
        if request.path.startswith("/token"):
            tokens.append(f"t{len(tokens)}")
            return Answer(200, go_json({"token": tokens[-1], "expires_in": lifetime_s}))
        if not tokens or request.headers.get("authorization") != f"Bearer {tokens[-1]}":
            realm = f"http://{request.headers['host']}/token"
            challenge = f'Bearer realm="{realm}",service="reg",scope="repository:some/image:pull"'
            return Answer(401, b"", {"WWW-Authenticate": challenge})
        return good(request)

    return handle


def test_token_is_fetched_once_and_renewed() -> None:
    """One token serves until shortly before it expires; the login goes to the token server only."""
    naps = Naps()
    tokens: list[str] = []
    with FaultServer(token_registry(300, tokens)) as server:
        made = client(server, naps)
        made.get_range(DIGEST, 0, 10)
        made.get_range(DIGEST, 10, 10)
        assert tokens == ["t0"]
        naps.now += 296
        made.get_range(DIGEST, 20, 10)
        assert tokens == ["t0", "t1"]
    asked = [request for request in server.requests if request.path.startswith("/token")]
    assert all(request.headers["authorization"].startswith("Basic ") for request in asked)
    assert "scope=repository%3Asome%2Fimage%3Apull" in asked[0].path
    assert len(server.requests) == 6


def test_revoked_token_is_replaced() -> None:
    """A token that the registry stops accepting before its time is replaced by a new one."""
    tokens: list[str] = []
    with FaultServer(token_registry(3600, tokens)) as server:
        made = client(server)
        made.get_range(DIGEST, 0, 10)
        tokens.append("revoked")
        assert made.get_range(DIGEST, 0, 10) == DATA[:10]


def test_refused_logins() -> None:
    """Wrong, missing and useless logins are AuthErrors that say to log in; nothing is tried for ever."""
    basic = Answer(401, b"", {"WWW-Authenticate": 'Basic realm="r"'})
    with FaultServer(lambda request: basic) as server:
        with pytest.raises(AuthError, match="refused the login of user"):
            client(server).manifest("latest")
        assert len(server.requests) == 2
    with FaultServer(lambda request: Answer(401)) as server, pytest.raises(AuthError, match="neither Basic nor Bearer"):
        client(server).manifest("latest")
    with FaultServer(lambda request: Answer(403)) as server, pytest.raises(AuthError, match="docker login"):
        client(server).manifest("latest")

    def refusing(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(401)
        return Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    with FaultServer(refusing) as server, pytest.raises(AuthError, match="no token"):
        client(server).manifest("latest")


def test_never_accepted_tokens_end() -> None:
    """A registry that refuses every token it gave out ends in an AuthError."""

    def handle(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(200, b'{"token": "x"}')
        return Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    with FaultServer(handle) as server:
        with pytest.raises(AuthError, match="access denied"):
            client(server).manifest("latest")
        assert len(server.requests) <= 6


def test_sink_errors_pass_through() -> None:
    """What the consumer raises comes out as it is, and the client is usable afterwards."""

    def full(piece: bytes) -> None:
        raise OSError("disk full")

    with FaultServer(good) as server:
        made = client(server)
        with pytest.raises(OSError, match="disk full"):
            made.stream_blob(DIGEST, full)
        assert made.get_range(DIGEST, 0, 10) == DATA[:10]


def image_server(manifest: dict[str, Any], config: bytes) -> Callable[[Request], Answer]:
    def handle(request: Request) -> Answer:
        if "/manifests/" in request.path:
            return Answer(200, go_json(manifest), {"Content-Type": str(manifest.get("mediaType", ""))})
        return serve_range(request, config)

    return handle


def test_unsupported_media_types() -> None:
    """Old manifests, layers of unknown types and artefacts are refused by name."""
    with FaultServer(image_server({"schemaVersion": 1}, b"{}")) as server:
        with pytest.raises(UnsupportedMediaType, match=r"manifest\.v1\+json"):
            ImageSource(client(server), "latest").resolve()
    config = go_json({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [DIGEST]}})
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor.of(config, OCI_CONFIG).to_json(),
        "layers": [Descriptor("application/x-lzip", DIGEST, 5).to_json()],
    }
    with FaultServer(image_server(manifest, config)) as server:
        with pytest.raises(UnsupportedMediaType, match="layer 0 has media type application/x-lzip"):
            ImageSource(client(server), "latest").resolve()
    manifest["layers"] = [Descriptor(OCI_LAYER_GZIP, DIGEST, 5).to_json()] * 2
    with FaultServer(image_server(manifest, config)) as server:
        with pytest.raises(FormatError, match="1 diff_ids for 2 layers"):
            ImageSource(client(server), "latest").resolve()


def test_tls_is_verified(tmp_path: Path) -> None:
    """A certificate is checked against the CA that is named, and refused without retries when it does not fit."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, no certificate can be made")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test -days 2"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with FaultServer(good, context) as server:
        trusting = client(server, plain=False, ca_file=str(certificate))
        assert trusting.get_range(DIGEST, 0, 10) == DATA[:10]
        naps = Naps()
        with pytest.raises(RegistryError, match="certificate"):
            client(server, naps, plain=False).get_range(DIGEST, 0, 10)
        assert naps.slept == []


def test_a_connection_lost_under_a_body_is_tried_again() -> None:
    """libcurl cannot rewind what it was given to send; the client opens the body anew."""
    assert TransferError(pycurl.E_SEND_FAIL_REWIND, "necessary data rewind was not possible").may_pass
    assert not TransferError(pycurl.E_PEER_FAILED_VERIFICATION, "certificate").may_pass


@pytest.mark.parametrize("has_api", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("far", [True, False])
def test_far_both_ways_to_the_referrers_are_asked_at_once(has_api: bool, known: bool, far: bool) -> None:
    """The same answer either way; far it takes one round, whichever of the two the registry has.

    Where they are the first requests of all, the second waits a moment for the first one's answer.
    """
    made = Descriptor(OCI_MANIFEST, DIGEST, 7, artifact_type="application/x-test")
    index = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [made.to_json()]})
    together = threading.Barrier(2)

    def handle(request: Request) -> Answer:
        if far:
            together.wait(10)
        if ("/referrers/" in request.path) == has_api:
            return Answer(200, index, {"Content-Type": OCI_INDEX})
        return Answer(404)

    with FaultServer(handle) as server:
        made_client = client(server)
        if known:
            made_client.link.hint(0.2 if far else 0.001)
        assert [entry.digest for entry in made_client.referrers(DIGEST, "application/x-test")] == [DIGEST]
        if known or far:  # else the first answer may be held up, and the other way asked as well
            assert len(server.requests) == (1 if has_api and not far else 2)
        made_client.close()


def test_far_errors_of_the_fallback_tag_come_through() -> None:
    """What went wrong beside the caller is raised to it."""
    answers = {True: Answer(404), False: Answer(500)}
    with FaultServer(lambda request: answers["/referrers/" in request.path]) as server:
        made_client = client(server)
        made_client.link.hint(0.2)
        with pytest.raises(RegistryError, match="500"):
            made_client.referrers(DIGEST)
