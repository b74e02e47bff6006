"""This module opens the store that a mount request names as the image's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.lazyfs.messages import StoreAddress
    from harness.model.policy import LazyPolicy
    from harness.oci.store import BlobStore


def connect(address: StoreAddress, policy: LazyPolicy) -> BlobStore:
    """Returns the store that holds the image."""
    if address.layout:
        from harness.oci.layout import LayoutStore

        return LayoutStore(address.layout)
    from harness.oci.registry.client import RegistryClient, Retries
    from harness.oci.registry.logins import Credentials

    given = address.credentials
    credentials = (
        Credentials(given.get("user", ""), given.get("secret", ""), bool(given.get("identity"))) if given else None
    )
    return RegistryClient(
        address.registry, address.repository, plain=address.plain, credentials=credentials, routes=address.routes,
        retries=Retries(attempts=max(1, policy.attempts), first_s=policy.retry_first_s),
    )  # fmt: skip
