"""Other hosts a registry leads to: its token server, and where it redirects blobs to.

A client inside a simulated machine reaches nothing but what a relay stands for. *Routes* say which: each is
``HOST:PORT:ADDRESS:PORT``, connect to the second where the first is meant (libcurl's ``CURLOPT_CONNECT_TO``), so that
names, certificates and signed URLs stay what they are.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

from harness.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PORTS = {"http": 80, "https": 443}


def host_and_port(url: str) -> tuple[str, int]:
    """The host, in lower case and without brackets, and the port that a URL means."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def route(place: tuple[str, int], through: str) -> str:
    """The route by which ``through`` (``address:port``) stands for a place."""
    host, port = place
    return f"{f'[{host}]' if ':' in host else host}:{port}:{through}"


class Places:
    """Keeps the places a client was led to; with routes, refuses those it has no way to."""

    def __init__(self, routes: Sequence[str] = ()) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._routed = {host_and_port(f"http://{text.rsplit(':', 2)[0]}") for text in routes}

    def visit(self, url: str, what: str) -> None:
        """Note where ``what`` leads. RegistryError when there are routes and none of them goes there."""
        place = host_and_port(url)
        if self._routed and place not in self._routed:
            raise RegistryError(
                f"{what} is at {place[0]}:{place[1]}; preparation was not led there, so the machine has no way to it: "
                "have the registry serve it itself (distribution: storage.redirect.disable), or leave --registry out"
            )
        self.seen.add(place)
