"""This module says what a registry's unexpected answer means to a user: the registry's own words,
and how to mend it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import AuthError, ContentError, RegistryError
from harness.oci.image import parse_json

if TYPE_CHECKING:
    from harness.oci.registry.curl_pool import Response

_MEND = {
    405: "it does not allow that: a mirror, a proxy cache or a read-only registry takes no pushes, so push elsewhere",
    413: "it or a proxy before it limits how much is sent at once (nginx: client_max_body_size)",
    429: "it wants fewer requests: wait, or log in, since limits are higher then",
    507: "its storage is full",
}
_SERVER_AT_FAULT = "the fault is the registry's: its log says more; try again later"


def failure(response: Response, what: str, host: str, trouble: str = "") -> RegistryError:
    """Makes the error for a status nobody expected; ``trouble`` is why no login was offered, where that matters."""
    words = ""
    try:
        errors = parse_json(response.body, what).get("errors") or []
        words = "; ".join(f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors)
    except (ContentError, AttributeError, TypeError):
        pass
    said = f" ({words[:400]})" if words else ""
    if response.status in {401, 403}:
        return AuthError(f"{what}: access denied{said}; run docker login {host}{trouble}")
    if response.status == 400 and b"HTTPS server" in response.body:
        return RegistryError(f"{what}: {host} wants TLS; coldbench speaks plain HTTP to loopback addresses")
    mend = _MEND.get(response.status, _SERVER_AT_FAULT if response.status >= 500 else "")
    return RegistryError(f"{what}: the registry answered {response.status}{said}{f'; {mend}' if mend else ''}")


def hint(message: str) -> str:
    """Says how to mend a failed transfer, told by what libcurl says of it."""
    lower = message.lower()
    if any(words in lower for words in ("wrong version number", "packet length too long", "record layer failure")):
        return (
            "; it speaks plain HTTP where TLS was expected, and coldbench does so with loopback addresses only: put "
            "TLS before it, or a tunnel to localhost"
        )
    if "http/0.9" in lower or "http version not supported" in lower:
        return "; it does not speak plain HTTP, which coldbench expects on loopback addresses"
    if "resolve" in lower or "not known" in lower or "name resolution" in lower:
        return "; check the name, and the name service of this machine"
    if "certificate" in lower:
        return ""
    return "; check that the registry is up and reachable from here"
