"""This module makes the agent's registry client from a deploy request, and says where a daemon
finds the same registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lazyfs.messages import StoreAddress
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.logins import Credentials

if TYPE_CHECKING:
    from harness.engines.protocol import DeployRequest


def connect(request: DeployRequest) -> RegistryClient:
    """Makes a client for the request's repository; nothing is sent yet.

    The request's ``credentials`` are ``{"user", "secret"}`` or, for a refresh token, ``{"user", "secret", "identity":
    "1"}``; without them the machine's own Docker configuration is asked.
    """
    given = request.credentials
    credentials = None
    if given:
        credentials = Credentials(given.get("user", ""), given.get("secret", ""), bool(given.get("identity")))
    return RegistryClient(
        request.registry, request.repository, plain=request.scheme == "http", credentials=credentials,
        routes=request.routes,
    )  # fmt: skip


def store_address(request: DeployRequest) -> StoreAddress:
    """Says where a lazy mode's daemon finds the request's image."""
    return StoreAddress(
        registry=request.registry,
        repository=request.repository,
        plain=request.scheme == "http",
        credentials=request.credentials,
        routes=request.routes,
    )
