"""The gate in front of a registry: what it passes on, and each way in which it fails and mends."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from harness.errors import MachineError
from harness.machine.gate_process import GateProcess
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.shape import parse_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOB = bytes(range(256)) * 4000


class Blobs(BaseHTTPRequestHandler):
    """Answers every GET with the blob, or with the first bytes that a range asks for; says which header came along."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = BLOB[:1000] if "Range" in self.headers else BLOB
        self.send_response(206 if "Range" in self.headers else 200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (body[:10], body[10:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Authorization", self.headers.get("Authorization", "none"))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


files = pytest.mark.files


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Blobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_port
        server.shutdown()


@pytest.fixture
def gate(upstream: tuple[str, int], request: pytest.FixtureRequest) -> Iterator[GateProcess]:
    made = GateProcess("127.0.0.1", upstream, tokens=getattr(request, "param", False))
    yield made
    made.stop()


def connect(gate: GateProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", gate.port, timeout=10)


def get(
    connection: http.client.HTTPConnection, path: str = "/v2/a/blobs/x", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@files
def test_it_passes_everything_on(gate: GateProcess) -> None:
    """Whole blobs, ranges, heads and chunked answers, over one connection."""
    with closing(connect(gate)) as connection:
        assert get(connection)[:2] == (200, BLOB)
        assert get(connection, Range="bytes=0-999")[:2] == (206, BLOB[:1000])
        connection.request("HEAD", "/v2/a/blobs/x")
        assert connection.getresponse().read() == b""
        assert get(connection, "/chunked")[1] == BLOB
        assert get(connection)[:2] == (200, BLOB)


@files
def test_a_gate_that_refuses(gate: GateProcess) -> None:
    """Open connections are reset and new ones refused by the kernel; afterwards it listens at the same port."""
    with closing(connect(gate)) as connection:
        get(connection)
        gate.become("refuse")
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            get(connection)
    with closing(connect(gate)) as connection, pytest.raises(ConnectionRefusedError):
        get(connection)
    gate.become("pass")
    with closing(connect(gate)) as connection:
        assert get(connection)[0] == 200


@files
def test_a_gate_that_is_unavailable(gate: GateProcess) -> None:
    """Requests are answered 503, also on connections that are open, and then well again."""
    with closing(connect(gate)) as connection:
        get(connection)
        gate.become("503")
        assert get(connection)[0] == 503
        gate.become("pass")
        assert get(connection)[:2] == (200, BLOB)


@files
@pytest.mark.parametrize("gate", [True], indirect=True)
def test_tokens_that_are_revoked(gate: GateProcess) -> None:
    """A request needs a token of the realm that its challenge names; revoked, there is none until the gate mends."""
    with closing(connect(gate)) as connection:
        status, _, headers = get(connection, "/v2/shop/web/blobs/x")
        assert status == 401
        challenge = headers["www-authenticate"]
        assert f'realm="http://127.0.0.1:{gate.port}/token"' in challenge
        assert 'scope="repository:shop/web:pull"' in challenge

        def token() -> tuple[int, str]:
            status, body, _ = get(connection, "/token?service=coldbench&scope=repository:shop/web:pull")
            return status, json.loads(body).get("token", "")

        first = token()[1]
        status, body, headers = get(connection, Authorization=f"Bearer {first}")
        assert (status, body, headers["x-authorization"]) == (200, BLOB, "none"), "the token stays at the gate"
        gate.become("401")
        assert get(connection, Authorization=f"Bearer {first}")[0] == 401
        assert token()[0] == 401
        gate.become("pass")
        assert get(connection, Authorization=f"Bearer {first}")[0] == 401, "it stays revoked"
        assert get(connection, Authorization=f"Bearer {token()[1]}")[0] == 200


@files
def test_what_it_does_not_know(gate: GateProcess) -> None:
    """Another state is an error that names it, and the gate goes on; one that has ended says so."""
    with pytest.raises(MachineError, match="did not become 'ajar'"):
        gate.become("ajar")  # type: ignore[arg-type]
    gate.become("pass")
    gate.stop()
    with pytest.raises((MachineError, ValueError)):
        gate.become("pass")


_TRY = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5)
    print("reached")
except TimeoutError:
    print("silence")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.root
def test_a_machine_whose_supply_fails() -> None:
    """The gate stands where the machine sees its registry; a cut link drops packets without a word. Both mend."""
    with SimulatedNetwork("test") as network, socket.create_server((network.address, 0)) as registry:
        upstream = (network.address, registry.getsockname()[1])
        with Machine(
            parse_shape("unlimited"), scratch_bytes=64 << 20, registry_upstream=upstream, gated="open"
        ) as machine:

            def connect() -> str:
                argv = ["python3", "-S", "-c", _TRY, *machine.registry.split(":")]
                return machine.spawn(argv, stdout=subprocess.PIPE).communicate()[0].decode().strip()

            assert machine.registry.startswith(f"{machine.host_address}:"), "not the registry itself"
            assert connect() == "reached"
            machine.ways.cut(True)
            assert connect() == "silence"
            machine.ways.cut(False)
            assert connect() == "reached"
            machine.ways.gate.become("refuse")
            assert connect() == "Connection refused"
            machine.ways.gate.become("pass")
            assert connect() == "reached"
        with Machine(parse_shape("unlimited"), scratch_bytes=64 << 20, registry_upstream=upstream) as plain:
            with pytest.raises(MachineError, match="without a gate"):
                plain.ways.gate.become("503")
