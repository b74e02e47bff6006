"""A registry that keeps its tokens and blobs elsewhere: small HTTP servers before a real registry."""

from __future__ import annotations

import http.client
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.oci.registry.fault_server import Answer, FaultServer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = "Bearer granted"
_PASSED_ON = {"content-type", "content-range", "docker-content-digest", "location", "range", "accept"}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The three servers; each keeps what it was asked."""

    registry: FaultServer
    tokens: FaultServer
    blobs: FaultServer


def _pass_on(host: str, request: Request) -> Answer:
    """What the real registry answers."""
    connection = http.client.HTTPConnection(host)
    headers = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
    connection.request(request.method, request.path, request.body, headers)
    response = connection.getresponse()
    body = response.read()
    kept = {name: value for name, value in response.getheaders() if name.lower() in _PASSED_ON}
    location = kept.get("Location", "")
    if location.startswith(f"http://{host}"):
        kept["Location"] = location.removeprefix(f"http://{host}")
    answer = Answer(response.status, body, kept)
    if request.method == "HEAD":
        answer.claimed = int(response.headers.get("Content-Length") or 0)
    connection.close()
    return answer


@contextmanager
def registry_with_parts_elsewhere(
    real: str, place: Callable[[Request, str], str] = lambda _, host: host
) -> Iterator[Elsewhere]:
    """``real`` behind a front that wants a token of another server and redirects blobs to a third.

    ``place(request, host)`` says the host that a blob is redirected to, given the third server's.
    """
    with ExitStack() as stack:
        tokens = stack.enter_context(FaultServer(lambda _: Answer(200, b'{"token": "granted"}')))

        def give(request: Request) -> Answer:
            # An object store takes the signature in the URL and refuses a second credential.
            return Answer(400) if "authorization" in request.headers else _pass_on(real, request)

        blobs = stack.enter_context(FaultServer(give))

        def front(request: Request) -> Answer:
            if request.headers.get("authorization") != TOKEN:
                challenge = f'Bearer realm="http://{tokens.host}/token",service="s",scope="repository:x:pull,push"'
                return Answer(401, b"", {"WWW-Authenticate": challenge})
            if request.method == "GET" and "/blobs/sha256:" in request.path:
                return Answer(307, b"", {"Location": f"http://{place(request, blobs.host)}{request.path}"})
            return _pass_on(real, request)

        yield Elsewhere(stack.enter_context(FaultServer(front)), tokens, blobs)
