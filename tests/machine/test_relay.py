"""The delaying relay between real sockets on the loopback interface."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

import pytest

from harness.machine.relay import Connection, Uplink
from harness.machine.relay_process import RelayProcess
from harness.model.shape import Distance

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.files

PAYLOAD = bytes(range(256)) * 4096


class _Answer(socketserver.StreamRequestHandler):
    """Each line asks for so many bytes."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write((PAYLOAD * 8)[: int(line)])


@pytest.fixture
def upstream() -> Iterator[tuple[str, int]]:
    """A server that answers each line with as many bytes as it says."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()
        thread.join()


def ask(connection: socket.socket, size: int) -> tuple[bytes, float]:
    """The answer to one request, and when its first byte came, in seconds after the request."""
    start = time.monotonic()
    connection.sendall(b"%d\n" % size)
    answer, first_s = bytearray(), 0.0
    while len(answer) < size:
        data = connection.recv(1 << 20)
        assert data
        first_s = first_s or time.monotonic() - start
        answer += data
    return bytes(answer), first_s


def test_bytes_arrive_unchanged_and_late(upstream: tuple[str, int]) -> None:
    """The first request of a connection waits two round trips and the first byte, a later one a round trip less."""
    relay = RelayProcess("127.0.0.1", upstream, Distance(rtt_ms=40, first_byte_ms=60))
    try:
        with socket.create_connection(("127.0.0.1", relay.port)) as connection:
            answer, first_s = ask(connection, 100_000)
            assert answer == (PAYLOAD * 8)[:100_000]
            assert first_s >= 0.040 + 0.040 + 0.060
            _answer, later_s = ask(connection, 10)
            assert later_s >= 0.040 + 0.060
    finally:
        relay.stop()
    assert not relay.alive


@pytest.mark.parametrize(("asked_s", "arrives_s"), [(10.0, 13.0), (11.0, 13.0), (12.0, 13.0), (15.0, 16.0)])
def test_a_connection_opened_early_has_shaken_hands(asked_s: float, arrives_s: float) -> None:
    """The handshake counts from when a connection is opened, not from its first request; times are made up."""
    ends = [*socket.socketpair(), *socket.socketpair()]
    try:
        connection = Connection(ends[1], ends[2], 10.0, (2.0, 0.0, 0.0))
        ends[0].sendall(b"GET")
        connection.receive(ends[1], asked_s)
        assert [due for due, _ in connection.up.queue] == [arrives_s]
    finally:
        for end in ends:
            end.close()


def test_rate_holds_per_connection(upstream: tuple[str, int]) -> None:
    """A connection takes at least as long as its rate allows; the end of the stream passes through after the bytes."""
    relay = RelayProcess("127.0.0.1", upstream, Distance(per_connection_bytes_s=4_000_000))
    try:
        with socket.create_connection(("127.0.0.1", relay.port)) as connection:
            start = time.monotonic()
            connection.sendall(b"2000000\n")
            connection.shutdown(socket.SHUT_WR)
            total = 0
            while data := connection.recv(1 << 20):
                total += len(data)
            assert total == 2_000_000
            assert time.monotonic() - start >= 0.5
    finally:
        relay.stop()


def test_refused_upstream_ends_the_connection() -> None:
    """A registry that is not there looks like one that hangs up, and the relay lives on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        relay = RelayProcess("127.0.0.1", ("127.0.0.1", unused.getsockname()[1]), Distance(rtt_ms=1))
        try:
            for _attempt in range(2):
                with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
                    try:
                        assert connection.recv(1) == b""
                    except ConnectionResetError:
                        pass
            assert relay.alive
        finally:
            relay.stop()


def test_an_uplink_is_shared() -> None:
    """Whatever the connections are, their bytes leave one after the other at its rate; without a rate nothing waits."""
    line = Uplink(1000.0)
    assert [line.due(0.0, 500), line.due(0.0, 500), line.due(0.2, 1000)] == [0.5, 1.0, 2.0]
    assert line.due(10.0, 100) == 10.1
    free = Uplink(0.0)
    assert [free.due(0.0, 500), free.due(0.0, 500)] == [0.0, 0.0]
    assert (line.piece(1 << 20), free.piece(1 << 20)) == (Uplink.PIECE_BYTES, 1 << 20)


def test_bytes_through_an_uplink_are_unchanged(upstream: tuple[str, int]) -> None:
    """Two connections at once get all that they asked for."""
    relay = RelayProcess("127.0.0.1", upstream, Distance(), uplink_bytes_s=40_000_000)
    try:
        with (
            socket.create_connection(("127.0.0.1", relay.port)) as one,
            socket.create_connection(("127.0.0.1", relay.port)) as two,
        ):
            one.sendall(b"%d\n" % len(PAYLOAD))
            assert ask(two, 2 * len(PAYLOAD))[0] == PAYLOAD * 2
            received = bytearray()
            while len(received) < len(PAYLOAD):
                received += one.recv(1 << 20)
            assert bytes(received) == PAYLOAD
    finally:
        relay.stop()
