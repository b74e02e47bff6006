"""A named registry: what its URL may be, and where its tokens may come from."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from harness.errors import UsageError
from harness.session.registry import Endpoint, named_endpoint, require_one_host

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def challenging(realm: str) -> Iterator[str]:
    """A server that refuses everything and names a token server; its host:port. ``{host}`` in the realm is itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            where = realm.format(host=self.headers["Host"])
            self.send_header("WWW-Authenticate", f'Bearer realm="{where}",service="registry"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def endpoint(host: str) -> Endpoint:
    address, _, port = host.partition(":")
    return Endpoint(host, (address, int(port)))


@pytest.mark.files
def test_a_token_server_elsewhere_is_refused() -> None:
    """The machine could not ask it; the message names it and what to do."""
    with challenging("http://127.0.0.2:9/token") as host, pytest.raises(UsageError, match=r"127\.0\.0\.2.*leave"):
        require_one_host(endpoint(host))


@pytest.mark.files
def test_a_token_server_of_its_own_is_fine() -> None:
    """So is a registry that does not answer: preparation says why."""
    with challenging("http://{host}/token") as host:
        require_one_host(endpoint(host))
    require_one_host(endpoint(host))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://registry.example", "expected https"),
        ("https://registry.example:x", "expected https"),
        ("https://user@registry.example", "expected https"),
        ("http://registry.example", "expected https; plain HTTP is for loopback"),
        ("https://127.0.0.1:5000", "expected http;"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    """Each says what was expected."""
    with pytest.raises(UsageError, match=message):
        named_endpoint(url)


@pytest.mark.files
def test_the_path_becomes_a_prefix() -> None:
    """What follows the host goes before every repository's name."""
    found = named_endpoint("http://127.0.0.1:5000/team/")
    assert (found.host, found.upstream, found.prefix) == ("127.0.0.1:5000", ("127.0.0.1", 5000), "team/")
    assert found.requests is None
