"""The registry of a session: its own server on the simulated network, or one the user names."""

from __future__ import annotations

import socket
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import MachineError, RegistryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from harness.machine.machine import Machine


MOUNT_TIMEOUT_S = 30.0
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where images are pushed to and pulled from.

    ``host`` is ``host[:port]`` as the harness names it, ``upstream`` where it listens; ``prefix`` goes before every
    repository's name.
    """

    host: str
    upstream: tuple[str, int]
    scheme: str = "http"
    prefix: str = ""
    credentials: dict[str, str] = field(default_factory=dict)
    requests: Callable[[], int] | None = None
    """Requests answered so far; None for a registry that is not ours, whose log cannot be read."""

    def inside(self, machine: Machine) -> str:
        """``host:port`` as reached from inside a machine (directly, or through the relay in front of the registry).

        A registry with TLS keeps its name there, since its certificate is for that: the machine's own /etc/hosts says
        that it is the relay.
        """
        if self.scheme == "http":
            return machine.registry
        name = self.host.rpartition(":")[0] or self.host
        address, _, port = machine.registry.rpartition(":")
        hosts = machine.scratch / "hosts"
        machine.outside(hosts).write_text(f"127.0.0.1 localhost\n{address} {name}\n", "utf-8")
        mounting = machine.spawn(["mount", "--bind", str(hosts), "/etc/hosts"])
        if mounting.wait(MOUNT_TIMEOUT_S) != 0:
            raise MachineError("cannot give the machine an /etc/hosts of its own")
        return f"{name}:{port}"


class RequestCounter:
    """Counts the lines a registry adds to its access log; reads only what is new, since trials ask often."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0
        self._count = 0

    def __call__(self) -> int:
        """Requests so far; a line that is not finished yet counts next time."""
        try:
            with open(self._log, "rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return self._count
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        self._count += sum(b" HTTP/" in line for line in whole.splitlines())
        return self._count


def own_endpoint(stack: ExitStack, storage: Path) -> Endpoint:
    """Start a registry on an address of the simulated network; it ends with ``stack``.

    Raises:
        NotRoot, MissingTool, RegistryError: it cannot be started here.
    """
    from harness.machine.network import SimulatedNetwork
    from harness.oci.registry_server import RegistryServer

    network = stack.enter_context(SimulatedNetwork("registry"))
    server = stack.enter_context(RegistryServer(network.address, storage=storage))
    network.add_process(server.pid)
    upstream = (network.address, server.port)
    return Endpoint(server.host, upstream, prefix="coldbench/", requests=RequestCounter(server.log))


def named_endpoint(url: str) -> Endpoint:
    """A registry given as ``https://HOST[:PORT][/PREFIX]`` (http for loopback addresses only).

    Raises:
        UsageError: not such a URL.
        RegistryError: the host's name cannot be resolved.
    """
    from harness.oci.registry_auth import find_credentials
    from harness.oci.registry_client import plain_http

    parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == -1 or parts.query or parts.username:
        raise UsageError(f"--registry {url}: expected https://HOST[:PORT][/PREFIX]")
    host = parts.netloc
    if plain_http(host) != (parts.scheme == "http"):
        wanted = "http" if plain_http(host) else "https"
        raise UsageError(
            f"--registry {url}: expected {wanted}; plain HTTP is for loopback addresses, and they have no TLS"
        )
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        address = str(socket.getaddrinfo(parts.hostname, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise RegistryError(f"--registry {url}: cannot find {parts.hostname} ({error})") from None
    prefix = parts.path.strip("/")
    found = find_credentials(host)
    credentials = {}
    if found is not None:
        credentials = {"user": found.user, "secret": found.secret, **({"identity": "1"} if found.identity else {})}
    return Endpoint(host, (address, port), parts.scheme, f"{prefix}/" if prefix else "", credentials)


def require_one_host(endpoint: Endpoint) -> None:
    """Refuse a registry that hands out its tokens on another host: a machine reaches the registry and nothing else.

    A registry that does not answer here is left to preparation, which says why.

    Raises:
        UsageError: its token server is another host.
    """
    from harness.oci.curl_pool import CurlPool, TransferError
    from harness.oci.registry_auth import parse_challenges

    pool = CurlPool()
    try:
        response = pool.get(f"{endpoint.scheme}://{endpoint.host}/v2/", limit=_ANSWER_BYTES)
    except TransferError:
        return
    finally:
        pool.close()
    realm = parse_challenges(response.headers("www-authenticate")).get("bearer", {}).get("realm", "")
    if realm and _host_and_port(realm) != _host_and_port(f"{endpoint.scheme}://{endpoint.host}"):
        raise UsageError(
            f"--registry {endpoint.host}: its token server {realm} is another host, which the simulated machine cannot "
            "reach; leave --registry out to use coldbench's own"
        )


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
