"""Plain HTTP on sockets of our own, byte for byte what a scripted server sends, and what is left to libcurl."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from harness.oci.registry.curl_pool import CurlPool, Timeouts, TransferError
from harness.oci.registry.plain_http import STREAM_PIECE_BYTES, may_take

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.files

BODY = bytes(range(256)) * 3000


def whole(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


class Script:
    """One list of raw answers per connection; ``asked`` holds each connection's requests, as they came."""

    def __init__(self, connections: Sequence[Sequence[bytes]], closing: bool) -> None:
        self.asked: list[list[bytes]] = []
        self._connections = connections
        self._closing = closing
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v2/a/blobs/b"
        self._open: list[socket.socket] = []

    def run(self) -> None:
        for answers in self._connections:
            connection, _ = self._listener.accept()
            self._open.append(connection)
            seen: list[bytes] = []
            self.asked.append(seen)
            for answer in answers:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    more = connection.recv(4096)
                    if not more:
                        break
                    request += more
                seen.append(request)
                with contextlib.suppress(ConnectionError):  # who has seen enough hangs up
                    connection.sendall(answer)
            if self._closing:
                connection.close()

    def close(self) -> None:
        for connection in (*self._open, self._listener):
            connection.close()


@contextmanager
def scripted(*connections: Sequence[bytes], closing: bool = True) -> Iterator[Script]:
    script = Script(connections, closing)
    thread = threading.Thread(target=script.run, daemon=True)
    thread.start()
    try:
        yield script
        thread.join(10)
        assert not thread.is_alive(), "the script was not played to its end"
    finally:
        script.close()


def opened(pool: CurlPool) -> None:
    """Until a connection that was opened early stands ready."""
    for _ in range(10_000):
        if any(pool._plain._idle.values()):
            return
        time.sleep(0.001)
    pytest.fail("no connection was opened")


def test_a_connection_opened_early_carries_the_first_request() -> None:
    """The script takes one connection only: it is the one that was opened before there was anything to ask."""
    with scripted([whole(BODY[:9])]) as script:
        pool = CurlPool()
        pool.connect(script.url, 1)
        opened(pool)
        assert pool.get(script.url, limit=9).body == BODY[:9]
        pool.close()
    assert pool.counters.requests == 1


def test_a_connection_opened_early_and_closed_since_is_opened_anew() -> None:
    """The other end may not wait for the first request; and where nobody listens, nothing happens before one."""
    with scripted([], [whole(BODY[:9])]) as script:
        pool = CurlPool()
        pool.connect(script.url, 1)
        opened(pool)
        assert pool.get(script.url, limit=9).body == BODY[:9]
        pool.close()
    pool.connect("http://127.0.0.1:1/", 1)
    pool.connect("http://[bad/", 1)
    pool.connect("https://127.0.0.1/", 1)
    assert pool.counters.requests == 1


def test_one_connection_serves_many_requests() -> None:
    """Requests one after the other share a connection, and each asks for its own range."""
    with scripted([whole(BODY[:9], "206 Partial Content"), whole(BODY, "206 Partial Content")]) as script:
        pool = CurlPool()
        first = pool.get(script.url, byte_range="0-8")
        second = pool.get(script.url, ["X-One: 1"], byte_range=f"0-{len(BODY) - 1}", limit=len(BODY))
        pool.close()
    assert (first.status, first.body, second.body) == (206, BODY[:9], BODY)
    assert pool.counters.requests == 2
    assert pool.counters.received_bytes == 9 + len(BODY)
    [requests] = script.asked
    assert b"\r\nRange: bytes=0-8\r\n" in requests[0]
    assert b"\r\nX-One: 1\r\n" in requests[1]


def test_connection_closed_while_idle() -> None:
    """A kept connection that the server has closed since is replaced, without a fault for the caller."""
    with scripted([whole(b"one")], [whole(b"two")]) as script:
        pool = CurlPool()
        assert pool.get(script.url).body == b"one"
        assert pool.get(script.url).body == b"two"
        pool.close()


def test_server_that_closes_is_believed() -> None:
    """After ``Connection: close`` the next request gets a connection of its own."""
    with scripted([whole(b"one", "200 OK", "Connection: close")], [whole(b"two")], closing=False) as script:
        pool = CurlPool()
        assert [pool.get(script.url).body, pool.get(script.url).body] == [b"one", b"two"]
        pool.close()
    assert [len(requests) for requests in script.asked] == [1, 1]


def test_stream_in_pieces() -> None:
    """A sink gets the body in order, in pieces of the stated size, without what a resumed transfer skips."""
    pieces: list[bytes] = []
    with scripted([whole(BODY)]) as script:
        response = CurlPool().get(script.url, sink=pieces.append, skip=1000)
    assert b"".join(pieces) == BODY[1000:]
    assert max(map(len, pieces)) <= STREAM_PIECE_BYTES
    assert response.body == b""


def test_other_answers_are_kept() -> None:
    """An error's body goes to the caller, not to the sink, and nothing of it is skipped."""
    pieces: list[bytes] = []
    with scripted([whole(b"no such blob", "404 Not Found", "X-Why: because")]) as script:
        response = CurlPool().get(script.url, sink=pieces.append, skip=5)
    assert (response.status, response.body, pieces) == (404, b"no such blob", [])
    assert response.header("x-why") == "because"


def test_cut_body_gives_what_came() -> None:
    """A connection cut in the body hands on what had come, and says that trying again may help."""
    pieces: list[bytes] = []
    with scripted([whole(BODY)[:-1000]]) as script, pytest.raises(TransferError) as caught:
        CurlPool().get(script.url, sink=pieces.append)
    assert b"".join(pieces) == BODY[:-1000]
    assert caught.value.may_pass


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_cut_head(answer: bytes) -> None:
    """A new connection that is closed before the head is whole is a fault that may pass."""
    with scripted([answer]) as script, pytest.raises(TransferError) as caught:
        CurlPool().get(script.url)
    assert caught.value.may_pass


def test_silence_ends() -> None:
    """A server that says nothing more is given up after the time limit."""
    with scripted([whole(BODY)[:-1]], closing=False) as script, pytest.raises(TransferError) as caught:
        CurlPool(Timeouts(stall_s=0.05)).get(script.url, limit=len(BODY))
    assert caught.value.may_pass


def test_body_over_the_limit() -> None:
    """A body that announces more than the limit is not read."""
    with scripted([whole(BODY)]) as script:
        response = CurlPool().get(script.url, limit=1000)
    assert response.too_long
    assert response.body == b""


def test_connection_refused() -> None:
    """Where nobody listens the fault is one that may pass."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(TransferError, match="refused") as caught:
        CurlPool().get(url)
    assert caught.value.may_pass


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
    ],
    ids=["chunked", "interim", "http-1.0", "no-length"],
)
def test_unusual_answers_go_to_libcurl(answer: bytes) -> None:
    """What this client does not read it leaves to libcurl, which asks again on a connection of its own."""
    with scripted([answer], [answer]) as script:
        assert CurlPool().get(script.url).body == b"hello"
    assert [len(requests) for requests in script.asked] == [1, 1]


@pytest.mark.parametrize(
    "url",
    ["https://host/v2/", "http://host/a b", "http://user:word@host/", "http://host/a#b", "http://host/a/../b",
     "http://host/\u00e9", "http://host/a\r\nX: y"],
)  # fmt: skip
def test_odd_urls_go_to_libcurl(url: str) -> None:
    """TLS, and anything that would have to be normalised, is not ours."""
    assert not may_take(url)


def test_proxy_goes_to_libcurl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy libcurl decides who uses it; loopback and simulated networks never do."""
    for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert may_take("http://host/v2/")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert not may_take("http://host/v2/")
    assert not may_take("http://127.host/v2/")
    assert may_take("http://127.0.0.1:5000/v2/")
    assert may_take("http://198.18.0.1:5000/v2/")
