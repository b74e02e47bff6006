"""A named registry: what its URL may be, and how machines get to its other hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import RegistryError, UsageError
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.places import host_and_port, route
from harness.session.registry import named_endpoint
from tests.engines.support import REPOSITORY, base_layer, run_registry
from tests.session.elsewhere import registry_with_parts_elsewhere

if TYPE_CHECKING:
    from pathlib import Path

MACHINE: Any = SimpleNamespace(registry="198.18.0.1:1", further=("198.18.0.1:2", "198.18.0.1:3"))


def port_of(host: str) -> int:
    return int(host.rpartition(":")[2])


@pytest.mark.files
def test_other_hosts_are_found_out(tmp_path: Path) -> None:
    """Pulling once tells where tokens and blobs are; the machine gets a way to each, and to the registry itself."""
    with run_registry("127.0.0.1", tmp_path) as real:
        real.push("v1", [base_layer()])
        with registry_with_parts_elsewhere(real.host) as servers:
            found = named_endpoint(f"http://{servers.registry.host}")
            found.explore(REPOSITORY, "v1")
    others = [port_of(servers.tokens.host), port_of(servers.blobs.host)]
    assert sorted(found.places()) == sorted(("127.0.0.1", port) for port in others)
    assert sorted(found.neighbours.values()) == sorted(found.places())
    ways = found.routes(MACHINE)
    assert ways[0] == f"{servers.registry.host}:198.18.0.1:1"
    assert set(ways[1:]) == {
        f"127.0.0.1:{found.places()[0][1]}:198.18.0.1:2",
        f"127.0.0.1:{found.places()[1][1]}:198.18.0.1:3",
    }


@pytest.mark.files
def test_a_registry_that_does_not_answer_is_left_to_trials() -> None:
    """Looking for its other hosts is no error."""
    found = named_endpoint("http://127.0.0.1:9")
    found.explore(REPOSITORY, "v1")
    assert found.places() == ()


@pytest.mark.files
def test_a_host_without_a_way_is_refused_at_once(tmp_path: Path) -> None:
    """A client with routes does not knock where none leads: it names the host and says how to mend it."""
    with run_registry("127.0.0.1", tmp_path) as real:
        (layer,) = real.push("v1", [base_layer()])
        with registry_with_parts_elsewhere(real.host) as servers:
            ways = [route(host_and_port(f"http://{it.host}"), it.host) for it in (servers.registry, servers.tokens)]
            client = RegistryClient(servers.registry.host, REPOSITORY, routes=ways)
            with pytest.raises(RegistryError, match=rf"redirects to is at {servers.blobs.host}.*redirect\.disable"):
                client.get_range(layer.digest, 0, 1)
            client.close()
            client = RegistryClient(servers.registry.host, REPOSITORY, routes=ways[:1])
            with pytest.raises(RegistryError, match=rf"token server is at {servers.tokens.host}"):
                client.get_range(layer.digest, 0, 1)
            client.close()
            assert not servers.blobs.requests


@pytest.mark.files
def test_names_keep_their_meaning(tmp_path: Path) -> None:
    """A route leads elsewhere than the name says, by its port, too; the name is what the server sees."""
    with run_registry("127.0.0.1", tmp_path) as real:
        real.push("v1", [base_layer()])
        ways = [route(("registry.test", 80), real.host), route(("::1", 81), real.host)]
        for host in ("registry.test", "[::1]:81"):
            client = RegistryClient(host, REPOSITORY, plain=True, routes=ways)
            client.manifest("v1")
            client.close()


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


def test_a_missing_credential_helper_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is public needs no login, so a session begins without one."""
    (tmp_path / "config.json").write_text('{"credsStore": "no-such-helper"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_endpoint("http://127.0.0.1:5000/team").credentials == {}
