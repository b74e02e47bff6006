"""This module keeps the other hosts a registry leads to: its token server, and where it redirects blobs to.

A client inside a simulated machine reaches nothing but what a relay stands for. *Routes* say which:
``HOST:PORT:ADDRESS:PORT`` tells it to connect to the second where the first is meant (libcurl's
``CURLOPT_CONNECT_TO``), so that names, certificates and signed URLs stay what they are.

A registry elsewhere must not lead a client to services of the client's own machine or link (cloud metadata answers on
link-local addresses), so such places are refused unless the registry itself is that near.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from typing import TYPE_CHECKING

from harness.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PORTS = {"http": 80, "https": 443}


def host_and_port(url: str) -> tuple[str, int]:
    """Returns the host, in lower case and without brackets, and the port that a URL means."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def route(place: tuple[str, int], through: str) -> str:
    """Returns the route by which ``through`` (``address:port``) stands for a place."""
    host, port = place
    return f"{f'[{host}]' if ':' in host else host}:{port}:{through}"


def addresses_of(host: str) -> list[str]:
    """Returns the addresses of a name or address; none where it cannot be resolved, and whoever connects says so."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def nearness(host: str, resolve: Callable[[str], list[str]] = addresses_of) -> str:
    """Returns ``loopback`` or ``link-local`` if any address of ``host`` is one, else ''."""
    for text in resolve(host):
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_loopback or address.is_unspecified:
            return "loopback"
        if address.is_link_local:
            return "link-local"
    return ""


class Places:
    """Keeps the places a client was led to; refuses those it has no route to, and those too near for its registry.

    ``home`` is the registry's own host; '' for images that come from no registry.
    """

    def __init__(
        self,
        routes: Sequence[str] = (),
        home: str = "",
        resolve: Callable[[str], list[str]] = addresses_of,
    ) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._routed = {host_and_port(f"http://{text.rsplit(':', 2)[0]}") for text in routes}
        self._home = host_and_port(f"http://{home}")[0] if home else ""
        self._resolve = resolve

    @property
    def home_is_near(self) -> bool:
        """Says whether the registry runs on this machine or link, so that it may lead there."""
        return bool(self._home) and bool(nearness(self._home, self._resolve))

    def visit(self, url: str, what: str) -> None:
        """Notes where ``what`` leads. RegistryError when there is no route to it, or when it is too near."""
        place = host_and_port(url)
        if self._routed and place not in self._routed:
            raise RegistryError(
                f"{what} is at {place[0]}:{place[1]}; preparation was not led there, so the machine has no way to it: "
                "have the registry serve it itself (distribution: storage.redirect.disable), or leave --registry out"
            )
        if place in self.seen:
            return
        near = "" if self._routed else nearness(place[0], self._resolve)
        if near and not self.home_is_near:
            raise RegistryError(
                f"{what} is at {place[0]}, a {near} address of this machine; refused, since nothing elsewhere has "
                "business there"
            )
        self.seen.add(place)
