"""What a container reaches: the registry to read from, and nothing of the host. Needs root."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.engines.protocol import Process
from harness.machine import leftovers, network_filter
from harness.machine.machine import Machine
from harness.machine.records import ProcessId, Record
from harness.model.shape import parse_shape
from harness.session.registry import own_endpoint
from tests.engines.test_embedded import deployed
from tests.hostile.images import PROGRAM, results

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines.support import TestRegistry

pytestmark = pytest.mark.root


@pytest.fixture(params=["BPF", "nftables"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to filter, whichever this kernel would choose."""
    if request.param == "nftables":

        def refuse(_interface: str, _places: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(network_filter, "_attach_program", refuse)
    return str(request.param)


def asks(machine: Machine, registry: TestRegistry, *questions: tuple[str, str, int, str]) -> dict[str, str]:
    """Answers to requests from a container: ``METHOD:ADDRESS:PORT`` to a status or an error."""
    words = [str(word) for question in questions for word in ("ask", *question)]
    with deployed(machine, registry.request("hostile", process=Process(args=(PROGRAM, *words)))) as made:
        return results(made.output(30.0))


def test_only_the_registry_is_reached(hostile: TestRegistry, way: str) -> None:
    """The registry answers; the host's other ports, at every address it has, do not, nor does anything far away."""
    with contextlib.ExitStack() as stack:
        everywhere = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        six = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6))
        port, six_port = everywhere.getsockname()[1], six.getsockname()[1]
        upstream = (hostile.address, hostile.port)
        machine = stack.enter_context(Machine(parse_shape("unlimited"), registry_upstream=upstream))
        assert network_filter.tables() == ([machine.id] if way == "nftables" else [])
        said = asks(
            machine, hostile,
            ("GET", hostile.address, hostile.port, "/v2/"),
            ("CONNECT", hostile.address, port, "/"),
            ("CONNECT", machine.host_address, port, "/"),
            ("CONNECT", "192.0.2.1", 80, "/"),
        )  # fmt: skip
        assert said == {
            f"GET:{hostile.address}:{hostile.port}": "200",
            f"CONNECT:{hostile.address}:{port}": "ETIMEDOUT",
            f"CONNECT:{machine.host_address}:{port}": "ETIMEDOUT",
            "CONNECT:192.0.2.1:80": "ENETUNREACH",
        }
        # Over the link's own IPv6 addresses, from a process of ours inside, which may name an interface.
        script = (
            "import socket; s = socket.socket(socket.AF_INET6); s.settimeout(1)\n"
            f"try: s.connect(('fe80::1', {six_port}, 0, socket.if_nametoindex('eth0'))); print('in')\n"
            "except OSError as error: print('out')"
        )
        process = machine.spawn(["python3", "-c", script], stdout=subprocess.PIPE)
        assert process.communicate()[0] == b"out\n"
    assert network_filter.tables() == []


def test_a_relay_is_reached_through_the_filter(hostile: TestRegistry) -> None:
    """With a distance a relay stands in front of the registry: it is let through, the registry itself is not."""
    upstream = (hostile.address, hostile.port)
    with Machine(parse_shape("unlimited,first-byte=5ms"), registry_upstream=upstream) as machine:
        address, _, port = machine.registry.rpartition(":")
        assert address == machine.host_address
        request = hostile.request(
            "hostile", process=Process(args=(PROGRAM, "ask", "GET", address, port, "/v2/")), registry=machine.registry
        )
        with deployed(machine, request) as made:
            assert results(made.output(20.0)) == {f"GET:{address}:{port}": "200"}


def test_the_sessions_registry_only_reads(tmp_path: Path, hostile: TestRegistry) -> None:
    """From inside GET is answered and POST and DELETE are refused; what is pushed goes to the host's loopback, until
    the registry is sealed; its storage goes with the session."""
    with contextlib.ExitStack() as stack:
        endpoint = own_endpoint(stack, tmp_path)
        (storage,) = tmp_path.iterdir()
        assert storage.stat().st_mode & 0o777 == 0o700
        assert endpoint.host.startswith("127.0.0.1:")
        address, port = endpoint.upstream
        with Machine(parse_shape("unlimited"), registry_upstream=(hostile.address, hostile.port),
                     further_upstreams=[endpoint.upstream]) as machine:  # fmt: skip
            said = asks(
                machine, hostile,
                ("GET", address, port, "/v2/"),
                ("POST", address, port, "/v2/coldbench/x/blobs/uploads/"),
                ("DELETE", address, port, f"/v2/coldbench/x/manifests/sha256:{'0' * 64}"),
            )  # fmt: skip
        assert said[f"GET:{address}:{port}"] == "200"
        assert said[f"POST:{address}:{port}"] == said[f"DELETE:{address}:{port}"] == "405"
        writer = endpoint.host.split(":")
        for _round in range(2):
            socket.create_connection((writer[0], int(writer[1])), 5).close()
            endpoint.seal()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((writer[0], int(writer[1])), 5)
            endpoint.unseal()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_runs_table_is_removed() -> None:
    """A table of nftables outlives its interface; ``clean`` knows it by the record's ID."""
    record = Record.new("machine")
    record.owner = ProcessId(2**22 + 1, 1)
    record.save()
    network_filter._run_nft(f"table netdev {network_filter._table(record)} {{ }}")
    assert record.id in network_filter.tables()
    leftovers.sweep()
    assert record.id not in network_filter.tables()
    assert not record.path.exists()
