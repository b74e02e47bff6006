"""This module makes a session's registry: a server of its own on the simulated network, or one that the user names."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.errors import AuthError, ColdbenchError, RegistryError, UsageError
from harness.machine.relay_process import RelayProcess
from harness.model.shape import Distance
from harness.oci.registry.client import address_of
from harness.oci.registry.places import host_and_port, route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from harness.machine.machine import Machine


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Says where images are pushed to and pulled from.

    ``host`` is ``host[:port]`` as the harness names it, ``upstream`` where it listens; ``prefix`` goes before every
    repository's name.
    """

    host: str
    upstream: tuple[str, int]
    scheme: str = "http"
    prefix: str = ""
    credentials: dict[str, str] = field(default_factory=dict)
    requests: RequestCounter | None = None
    """Counts requests answered so far; None for a registry that is not ours, whose log cannot be read."""
    seal: Callable[[], None] = lambda: None
    """Is called when all that trials pull has been pushed: from then on our own server takes nothing, until ``unseal``.
    """
    unseal: Callable[[], None] = lambda: None
    neighbours: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    """Says where its other hosts listen (token server, blob store), by name and port, as far as they are known."""

    @property
    def own(self) -> bool:
        """Says whether this is the session's own server, which machines reach by its address; others keep their
        name.
        """
        return self.requests is not None

    @contextlib.contextmanager
    def behind(self, uplink_bytes_s: int | None) -> Iterator[Endpoint]:
        """Returns the same registry at the end of a line that all its clients share; itself where no rate is given.

        Raises:
            UsageError: it is not the session's own, whose line this cannot limit.
            MachineError: the relay in front of it did not start.
        """
        if uplink_bytes_s is None:
            yield self
            return
        if not self.own:
            raise UsageError("storm.uplink limits the line of the session's own registry; leave it or --registry out")
        address, _port = self.upstream
        relay = RelayProcess(address, self.upstream, Distance(), uplink_bytes_s=uplink_bytes_s)
        try:
            yield replace(self, upstream=(address, relay.port))
        finally:
            relay.stop()

    def explore(self, repository: str, reference: str) -> None:
        """Finds out which other hosts pulling an image leads to. What fails is left to the trials, which say why.

        Raises:
            RegistryError: a host's name cannot be resolved.
        """
        from harness.oci.registry.client import RegistryClient
        from harness.oci.store import ImageSource

        if self.own:
            return
        client = RegistryClient(self.host, repository)
        try:
            with contextlib.suppress(ColdbenchError):
                image = ImageSource(client, reference).resolve()
                for blob in image.layers:
                    # A registry that ignores ranges has led to its blob store all the same.
                    with contextlib.suppress(ColdbenchError):
                        client.get_range(blob.digest, 0, 1)
        finally:
            client.close()
        for host, port in client.places.seen:
            self.neighbours[host, port] = resolve(host, port)

    def places(self) -> tuple[tuple[str, int], ...]:
        """Returns the hosts beside the registry that a machine needs a way to, in the order of ``Machine.further``."""
        return tuple(self.neighbours)

    def inside(self, machine: Machine) -> str:
        """Returns ``host:port`` as clients inside a machine name it: a registry that is not ours keeps its name."""
        return machine.registry if self.own else self.host

    def routes(self, machine: Machine) -> tuple[str, ...]:
        """Says how clients inside get to the registry and its other hosts: through the relays of their machine."""
        if self.own:
            return ()
        itself = host_and_port(f"{self.scheme}://{address_of(self.host)}")
        through = zip((itself, *self.places()), (machine.registry, *machine.further), strict=True)
        return tuple(route(place, relay) for place, relay in through)


def resolve(host: str, port: int) -> tuple[str, int]:
    """Returns where a host listens; RegistryError when its name cannot be resolved."""
    try:
        return str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]), port
    except OSError as error:
        raise RegistryError(f"cannot find {host} ({error})") from None


class RequestCounter:
    """Counts the lines a registry adds to its access log; reads only what is new, since trials ask often."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0
        self._count = 0

    def so_far(self) -> int:
        """Returns how many requests there were until now; a line that is not finished yet counts next time."""
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
    """Starts a registry on an address of the simulated network; it ends with ``stack``, and what it stores goes.

    Two servers share the storage, a directory of its own below ``storage``: one takes what is pushed, on the host's
    loopback, which no machine reaches, until ``Endpoint.seal``; the other, which machines reach, only reads.

    Raises:
        NotRoot, MissingTool, RegistryError: it cannot be started here.
    """
    from harness.machine.network import SimulatedNetwork
    from harness.oci.registry.server import RegistryServer

    network = stack.enter_context(SimulatedNetwork("registry"))
    own = network.own_directory(storage)
    scratch, blobs = own / "servers", own / "storage"
    scratch.mkdir()
    writer = RegistryServer("127.0.0.1", storage=blobs, scratch=scratch)
    reader = RegistryServer(network.address, storage=blobs, scratch=scratch, read_only=True)
    for server in (writer, reader):
        stack.enter_context(server)
        network.add_process(server.pid)
    upstream = (network.address, reader.port)

    def unseal() -> None:
        if not writer.running:
            writer.start()
            network.add_process(writer.pid)

    requests = RequestCounter(reader.log)
    return Endpoint(writer.host, upstream, prefix="coldbench/", requests=requests, seal=writer.stop, unseal=unseal)


def named_endpoint(url: str) -> Endpoint:
    """Returns a registry given as ``https://HOST[:PORT][/PREFIX]`` (http for loopback addresses only).

    Raises:
        UsageError: not such a URL.
        RegistryError: the host's name cannot be resolved.
    """
    from harness.oci.registry.client import plain_http
    from harness.oci.registry.logins import find_credentials

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
    address, port = host_and_port(f"{parts.scheme}://{address_of(host)}")
    try:
        upstream = resolve(address, port)
    except RegistryError as error:
        raise RegistryError(f"--registry {url}: {error}") from None
    prefix = parts.path.strip("/")
    found = None
    with contextlib.suppress(AuthError):  # what is public needs no login; where one is needed, the clients say why not
        found = find_credentials(host)
    credentials = {}
    if found is not None:
        credentials = {"user": found.user, "secret": found.secret, **({"identity": "1"} if found.identity else {})}
    return Endpoint(host, upstream, parts.scheme, f"{prefix}/" if prefix else "", credentials)
