"""Registries as they are: logins, referrers, ranges and redirects that no specification foresaw."""

from __future__ import annotations

import json
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import AuthError, RegistryError
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, digest_bytes, go_json
from harness.oci.location import open_destination
from harness.oci.registry.auth import parse_challenges
from harness.oci.registry.client import RegistryClient, Retries
from harness.oci.registry.logins import Credentials
from harness.oci.registry.places import Places, nearness
from harness.oci.registry.push import RegistryDestination
from harness.oci.store import ImageSource, RangeIgnored
from tests.oci.registry.fault_server import Answer, FaultServer, Request, serve_range
from tests.oci.registry.test_faults import DATA, DIGEST, Naps, client, good, sequence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.files

SUBJECT = go_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []})
SUBJECT_DIGEST = digest_bytes(SUBJECT)


# referrers


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_referrers_api_that_leads_nowhere_means_none(status: int) -> None:
    """A redirect to a host that refuses says nothing of the image: none are known, said once, asked once."""
    naps = Naps()
    with FaultServer(lambda request: Answer(status)) as elsewhere:

        def registry(request: Request) -> Answer:
            if "/referrers/" in request.path:
                return Answer(303, b"", {"Location": f"http://{elsewhere.host}/page"})
            return Answer(404)

        with FaultServer(registry) as server:
            made = client(server, naps)
            assert made.referrers(SUBJECT_DIGEST) == []
            assert made.referrers(SUBJECT_DIGEST, "application/x") == []
        assert len(elsewhere.requests) == 1
    assert naps.slept == []
    assert len(made.remarks) == 1
    assert f"answers {status}" in made.remarks[0]


def test_a_referrers_api_that_leads_to_a_page_means_none() -> None:
    """A page for people, or a host that is not there, are no lists; the fallback tag still counts."""
    listed = Descriptor(OCI_MANIFEST, DIGEST, 7, artifact_type="a/b")
    index = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed.to_json()]})
    with FaultServer(lambda request: Answer(200, b"<html>", {"Content-Type": "text/html"})) as elsewhere:
        place = f"http://{elsewhere.host}/page"

        def registry(request: Request) -> Answer:
            if "/referrers/" in request.path:
                return Answer(303, b"", {"Location": place})
            return Answer(200, index, {"Content-Type": OCI_INDEX})

        with FaultServer(registry) as server:
            made = client(server)
            assert [one.digest for one in made.referrers(SUBJECT_DIGEST)] == [DIGEST]
            assert made.remarks == []
    with FaultServer(registry) as server:
        made = client(server)
        assert [one.digest for one in made.referrers(SUBJECT_DIGEST)] == [DIGEST]
        assert len(made.remarks) == 1


def test_a_denied_referrers_api_means_none() -> None:
    """A registry that gives the image and denies its referrers is not asked for a login over it."""

    def registry(request: Request) -> Answer:
        return Answer(403 if "/referrers/" in request.path or "sha256-" in request.path else 404)

    with FaultServer(registry) as server:
        made = client(server)
        assert made.referrers(SUBJECT_DIGEST) == []
        assert len(made.remarks) == 2


@pytest.mark.parametrize("kind", ["manifest", "index"])
def test_a_fallback_tag_that_is_the_image_itself_lists_nothing(kind: str) -> None:
    """GitLab's dependency proxy keeps an image under `sha256-…`: its platforms are no referrers."""
    listed = Descriptor(OCI_MANIFEST, DIGEST, 7)
    index = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed.to_json()]})
    data, media_type = (index, OCI_INDEX) if kind == "index" else (SUBJECT, OCI_MANIFEST)

    def registry(request: Request) -> Answer:
        return Answer(404) if "/referrers/" in request.path else Answer(200, data, {"Content-Type": media_type})

    with FaultServer(registry) as server:
        assert client(server).referrers(digest_bytes(data)) == []


def test_pages_of_referrers_stay_with_the_registry() -> None:
    """The next page is asked of the registry only, and a list without end is cut off."""
    index = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    with FaultServer(lambda request: Answer(200, index, {"Content-Type": OCI_INDEX})) as elsewhere:
        for link in (f"http://{elsewhere.host}/more", "/v2/some/image/referrers/more"):
            page = Answer(200, index, {"Content-Type": OCI_INDEX, "Link": f'<{link}>; rel="next"'})
            with FaultServer(sequence(page)) as server:
                made = client(server)
                made.link.hint(0.001)
                assert made.referrers(SUBJECT_DIGEST) == []
                assert len(server.requests) <= 17
                assert "does not end" in made.remarks[0]
        assert elsewhere.requests == []


# logins


@pytest.mark.parametrize(
    "value",
    [
        'Basic realm="r", Bearer realm="https://t/x?a=1,2",service="s"',
        'Bearer realm="https://t/x?a=1,2",service="s", Basic realm="r"',
        'Bearer service = "s" , realm = "https://t/x?a=1,2",Basic realm=r',
    ],
)
def test_two_challenges_in_one_header(value: str) -> None:
    """Both are read, in whichever order they come."""
    found = parse_challenges([value])
    assert found == {"basic": {"realm": "r"}, "bearer": {"realm": "https://t/x?a=1,2", "service": "s"}}


def asks_for(challenge: str, accepts: Callable[[str], bool]) -> Callable[[Request], Answer]:
    """A registry that accepts some Authorization; its token server gives ``token`` to everybody."""

    def handle(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(200, b'{"token": "t"}')
        if request.path.startswith("/gone"):
            return Answer(404)
        if not accepts(request.headers.get("authorization", "")):
            host = request.headers["host"]
            return Answer(401, b"", {"WWW-Authenticate": challenge.replace("HOST", host)})
        return good(request)

    return handle


BOTH = ('Basic realm="r", Bearer realm="http://HOST/token"', 'Bearer realm="http://HOST/token", Basic realm="r"')


@pytest.mark.parametrize("challenge", BOTH)
@pytest.mark.parametrize("scheme", ["Bearer t", Credentials("user", "secret").basic])
def test_either_of_two_schemes_serves(challenge: str, scheme: str) -> None:
    """A token is tried first; where the registry takes only the login itself, that is tried next."""
    with FaultServer(asks_for(challenge, lambda given: given == scheme)) as server:
        assert client(server).get_range(DIGEST, 0, 10) == DATA[:10]


def test_basic_serves_where_the_token_server_is_gone() -> None:
    """A token server that fails is no end where Basic is offered, too."""
    challenge = 'Bearer realm="http://HOST/gone", Basic realm="r"'
    login = Credentials("user", "secret").basic
    with FaultServer(asks_for(challenge, lambda given: given == login)) as server:
        assert client(server).get_range(DIGEST, 0, 10) == DATA[:10]


@pytest.mark.parametrize("status", [400, 403])
def test_a_token_that_ended_is_replaced(status: int) -> None:
    """Some registries say 400 or 403 when a token has ended: one that was accepted before is replaced, once."""
    tokens: list[str] = []
    ended: list[bool] = []

    def handle(request: Request) -> Answer:
        if request.path.startswith("/token"):
            tokens.append(f"t{len(tokens)}")
            return Answer(200, go_json({"token": tokens[-1]}))
        given = request.headers.get("authorization")
        if given is None:
            return Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})
        if ended or given != f"Bearer {tokens[-1]}":
            return Answer(status)
        return good(request)

    with FaultServer(handle) as server:
        made = client(server)
        made.get_range(DIGEST, 0, 10)
        tokens.append("ended")
        assert made.get_range(DIGEST, 5, 10) == DATA[5:15]
        ended.append(True)
        asked = len(server.requests)
        with pytest.raises(RegistryError, match=str(status) if status == 400 else "access denied"):
            made.get_range(DIGEST, 9, 10)
        assert len(server.requests) - asked == 3


def test_a_busy_token_server_is_asked_again() -> None:
    """Overload of the token server passes as that of the registry does."""
    tokens = sequence(Answer(503), Answer(200, b'{"token": "t"}'))

    def handle(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return tokens(request)
        if request.headers.get("authorization") == "Bearer t":
            return good(request)
        return Answer(401, b"", {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    with FaultServer(handle) as server:
        assert client(server).get_range(DIGEST, 0, 10) == DATA[:10]


@pytest.fixture
def broken_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that names a credential helper nobody installed."""
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "no-such-helper"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("broken_login")
def test_a_missing_helper_does_not_stop_what_is_public() -> None:
    """A token for everybody is asked for without a login; where one is needed, the message says why none came."""
    challenge = 'Bearer realm="http://HOST/token"'
    with FaultServer(asks_for(challenge, lambda given: given == "Bearer t")) as server:
        made = RegistryClient(server.host, "some/image")
        assert made.get_range(DIGEST, 0, 10) == DATA[:10]
        asked = [request for request in server.requests if request.path.startswith("/token")]
        assert "authorization" not in asked[0].headers
    with FaultServer(asks_for('Basic realm="r"', lambda given: False)) as server:
        with pytest.raises(AuthError, match=r"needs a login; .*docker-credential-no-such-helper: .*not installed"):
            RegistryClient(server.host, "some/image").get_range(DIGEST, 0, 10)


def test_logins_of_podman_and_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their auth.json is read, too, a repository's own login before its host's; Docker's comes first."""
    from harness.oci.registry.logins import find_credentials

    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    wide, narrow = {"username": "wide", "password": "1"}, {"username": "narrow", "password": "2"}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"h": wide, "h/team": narrow}}))
    assert find_credentials("h", "other/app") == Credentials("wide", "1")
    assert find_credentials("h", "team/app") == Credentials("narrow", "2")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {"h": {"username": "d", "password": "3"}}}))
    assert find_credentials("h", "team/app") == Credentials("d", "3")


# where a login goes


def secure_client(server: FaultServer, tls: Any, **more: Any) -> RegistryClient:
    return RegistryClient(
        server.host, "some/image", plain=False, ca_file=tls.ca, retries=Retries(2), sleep=lambda _: None, **more
    )


def test_no_login_leaves_tls(tls: Any) -> None:
    """The token server of an https registry gets a login over https only; without one it may be asked."""
    asked: list[Request] = []

    def tokens(request: Request) -> Answer:
        asked.append(request)
        return Answer(200, b'{"token": "t"}')

    with FaultServer(tokens) as realm:
        challenge = f'Bearer realm="http://{realm.host}/token"'
        with FaultServer(asks_for(challenge, lambda given: given == "Bearer t"), tls.context) as server:
            with pytest.raises(AuthError, match="without TLS; the login is not sent there"):
                secure_client(server, tls, credentials=Credentials("user", "secret")).get_range(DIGEST, 0, 10)
            assert asked == []
            assert secure_client(server, tls, anonymous=True).get_range(DIGEST, 0, 10) == DATA[:10]
            assert "authorization" not in asked[0].headers


def test_no_upload_leaves_tls(tls: Any) -> None:
    """A proxy that makes a registry think it is reached by http does not get the layers in the clear."""
    with FaultServer(lambda request: Answer(404)) as clear:
        answer = Answer(202, b"", {"Location": f"http://{clear.host}/upload"})
        with FaultServer(lambda request: answer, tls.context) as server:
            destination = RegistryDestination(secure_client(server, tls, anonymous=True), "x")
            with pytest.raises(RegistryError, match="without TLS; refused"):
                destination.put_blob(Descriptor.of(b"1", "a/b"), b"1")
        assert clear.requests == []


def test_a_redirect_out_of_tls_is_refused(tls: Any) -> None:
    """An https registry cannot send a client to a place without TLS."""
    with FaultServer(good) as clear:
        answer = Answer(307, b"", {"Location": f"http://{clear.host}/blob"})
        with FaultServer(lambda request: answer, tls.context) as server:
            with pytest.raises(RegistryError, match="refuses to follow"):
                secure_client(server, tls, anonymous=True).get_range(DIGEST, 0, 10)
        assert clear.requests == []


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("localhost", "loopback"),
        ("192.0.2.1", ""),
        ("2001:db8::1", ""),
    ],
)
def test_near_places(host: str, kind: str) -> None:
    """Loopback and link-local addresses are told in every way to write them, and behind names."""
    assert nearness(host) == kind


def test_a_remote_registry_leads_nowhere_near() -> None:
    """Neither redirect nor token server of a registry elsewhere is on this machine; a local registry's may be."""
    names = {"registry.example": ["192.0.2.1"], "inside.example": ["127.0.0.1"], "store.example": ["192.0.2.2"]}

    def resolve(host: str) -> list[str]:
        return names.get(host) or [host]

    places = Places(home="registry.example", resolve=resolve)
    places.visit("https://store.example/blob", "a blob")
    for near in ("https://inside.example/", "http://169.254.169.254/latest/meta-data", "https://[::1]:8443/"):
        with pytest.raises(RegistryError, match="address of this machine; refused"):
            places.visit(near, "a blob")
    Places(home="127.0.0.1:5000", resolve=resolve).visit("http://127.0.0.1:9000/blob", "a blob")


def test_a_redirect_to_this_machine_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself refuses, before anything is sent there."""
    with FaultServer(good) as secret:
        answer = Answer(307, b"", {"Location": f"http://{secret.host}/blob"})
        with FaultServer(lambda request: answer) as server:
            made = client(server)
            made.places = Places(
                home="registry.example", resolve=lambda host: {"registry.example": ["192.0.2.1"]}.get(host, [host])
            )
            for read in (
                lambda: made.get_range(DIGEST, 0, 10),
                lambda: made.blob_size(DIGEST),
                lambda: made.manifest("x"),
            ):
                with pytest.raises(RegistryError, match="loopback address of this machine"):
                    read()
        assert secret.requests == []


# transfers


def test_a_first_range_answered_whole_is_asked_again() -> None:
    """A cold cache answers the first range with all it has, and the next one as asked."""
    with FaultServer(sequence(Answer(200, DATA), good)) as server:
        assert client(server).get_range(DIGEST, 10, 100) == DATA[10:110]
        assert len(server.requests) == 2
    with FaultServer(lambda request: Answer(200, DATA)) as server:
        with pytest.raises(RangeIgnored):
            client(server).get_range(DIGEST, 10, 100)
        assert len(server.requests) == 3
        assert client(server).get_range(DIGEST, 0, len(DATA)) == DATA


def test_plain_http_where_tls_was_expected() -> None:
    """It is said so, and tried once."""
    naps = Naps()
    with FaultServer(good) as server:
        with pytest.raises(RegistryError, match="speaks plain HTTP where TLS was expected"):
            client(server, naps, plain=False).get_range(DIGEST, 0, 10)
    assert naps.slept == []


def test_tls_where_plain_http_was_expected(tls: Any) -> None:
    """It is said so, though the server says nothing that is HTTP."""
    with FaultServer(good, tls.context) as server:
        with pytest.raises(RegistryError, match=f"{server.host}"):
            client(server, plain=True, retries=Retries(1)).get_range(DIGEST, 0, 10)
    words = Answer(400, b"Client sent an HTTP request to an HTTPS server.\n")
    with FaultServer(lambda request: words) as server:
        with pytest.raises(RegistryError, match="wants TLS"):
            client(server).manifest("x")


@pytest.mark.parametrize("plain", [True, False])
def test_an_unknown_name_is_not_tried_again(plain: bool) -> None:
    """A host that cannot be found is reported at once, with what to check."""
    naps = Naps()
    made = RegistryClient("no-such-host.invalid:5000", "x", plain=plain, sleep=naps.sleep, rng=random.Random(1))
    with pytest.raises(RegistryError, match="check the name"):
        made.manifest("x")
    assert naps.slept == []


def test_a_name_that_was_found_before_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that fails for a moment does not end a mount that has worked for an hour."""
    naps = Naps()
    with FaultServer(good) as server:
        made = client(server, naps)
        made.get_range(DIGEST, 0, 10)
        made.close()
        real = socket.create_connection
        failing = [True]

        def connect(*args: Any, **more: Any) -> socket.socket:
            if failing.pop() if failing else False:
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return real(*args, **more)

        monkeypatch.setattr(socket, "create_connection", connect)
        assert made.get_range(DIGEST, 0, 10) == DATA[:10]
    assert len(naps.slept) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (405, "takes no pushes"),
        (413, "client_max_body_size"),
        (500, "the fault is the registry's"),
        (507, "storage is full"),
    ],
)
def test_bare_answers_say_how_to_mend(status: int, words: str) -> None:
    """A status without any words of the registry comes with ours."""
    with FaultServer(lambda request: Answer(status)) as server:
        destination = RegistryDestination(client(server), "x")
        with pytest.raises(RegistryError, match=words):
            destination.put_manifest(b"{}", OCI_MANIFEST)


def test_open_named_destinations_are_registries() -> None:
    """A push to a mirror fails with the sentence that says to push elsewhere."""
    with FaultServer(lambda request: Answer(405)) as server:
        destination = open_destination(f"docker://{server.host}/a:x")
        with pytest.raises(RegistryError, match="push elsewhere"):
            destination.put_blob(Descriptor.of(b"1", "a/b"), b"1")


def test_a_fallback_tag_is_extended_by_a_push() -> None:
    """Pushing an artefact adds it to the list, and an image under that tag is not taken for a list."""
    puts: dict[str, bytes] = {}

    def handle(request: Request) -> Answer:
        if request.method == "PUT":
            puts[request.path.rpartition("/")[2]] = request.body
            return Answer(201)
        return Answer(200, SUBJECT, {"Content-Type": OCI_MANIFEST})

    subject = Descriptor.of(SUBJECT, OCI_MANIFEST)
    artefact = go_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "subject": subject.to_json()})
    with FaultServer(handle) as server:
        RegistryDestination(client(server), "x").add_referrer(subject, artefact, OCI_MANIFEST)
    index = json.loads(puts[f"sha256-{subject.hex}"])
    assert [one["digest"] for one in index["manifests"]] == [digest_bytes(artefact)]


def test_source_of_a_registry_has_its_remarks() -> None:
    """Who reads an image by its source finds there what the registry could not tell."""
    with FaultServer(lambda request: Answer(403)) as server:
        with ImageSource(client(server), "x") as source:
            assert source.referrers(SUBJECT_DIGEST) == []
            assert source.store.remarks


def test_serve_range_helper() -> None:
    """The test server's ranges are a registry's: what all the above stands on."""
    assert serve_range(Request("GET", "/", {"range": "bytes=2-3"}), b"01234").body == b"23"
