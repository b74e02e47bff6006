"""This module speaks Docker's API without the user's own settings, and tells its failures in this program's words.

The SDK reads ``~/.docker/config.json`` (or ``DOCKER_CONFIG``) for credentials, proxies and headers, and follows proxy
variables. None of that may reach a measurement: a proxy would end up in the container's environment. Contexts
(``DOCKER_HOST``, ``DOCKER_CONTEXT``) matter to ``docker.from_env`` alone, which nobody calls here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import docker
from docker.auth import AuthConfig
from docker.errors import APIError, DockerException
from docker.utils.proxy import ProxyConfig
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from harness.errors import (
    AuthError,
    ColdbenchError,
    ContentError,
    DiskFull,
    ImageNotFound,
    MachineError,
    RegistryError,
    UnsupportedMediaType,
    WorkloadError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILURES = (DockerException, RequestException, HTTPError, OSError, ValueError)
"""The SDK raises these when the daemon says no, ends, or answers nonsense."""


class IsolatedClient(docker.APIClient):  # type: ignore[misc] # the SDK has no annotations
    """This low-level client speaks to one daemon at one socket; it knows nothing of the user."""

    def _retrieve_server_version(self) -> str:
        """Called by the constructor before its first request: forget what it has read of the user's settings."""
        self.trust_env = False
        self._general_configs: dict[str, Any] = {}
        self._proxy_configs = ProxyConfig()
        self._auth_configs = AuthConfig({})
        return str(super()._retrieve_server_version())

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The SDK lets pulls and event streams wait for ever; here they wait as long as this client does."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return kwargs


def connect(socket_path: str, timeout_s: float | None) -> IsolatedClient:
    """Connects a client to the daemon that listens at this socket; raises one of ``FAILURES`` when
    it does not answer.
    """
    return IsolatedClient(base_url=f"unix://{socket_path}", version="auto", timeout=timeout_s)


def auth_config(credentials: Mapping[str, str]) -> dict[str, str]:
    """Returns credentials of a deploy request as the API wants them; empty, not None, so that the SDK looks nowhere
    else.
    """
    if not credentials:
        return {}
    if credentials.get("identity"):
        return {"identitytoken": credentials["secret"]}
    return {"username": credentials["user"], "password": credentials["secret"]}


_PULL_WORDS: tuple[tuple[str, type[ColdbenchError]], ...] = (
    ("no space left on device", DiskFull),
    ("manifest unknown", ImageNotFound),
    ("not found", ImageNotFound),
    ("name unknown", ImageNotFound),
    ("unauthorized", AuthError),
    ("authentication required", AuthError),
    ("access denied", AuthError),
    ("unsupported media type", UnsupportedMediaType),
    ("filesystem layer verification failed", ContentError),
    ("unexpected eof", ContentError),
    ("verification failed", ContentError),
    ("commit failed", ContentError),
    ("digest", ContentError),
)
_START_WORDS: tuple[tuple[str, type[ColdbenchError]], ...] = (("no space left on device", DiskFull),)


def pull_failure(text: str) -> ColdbenchError:
    """Turns what Docker said about a pull into the error it stands for: the registry's, unless it
    names something else.
    """
    return _kind(text, _PULL_WORDS, RegistryError)(f"Docker's pull failed: {_line(text)}")


def start_failure(what: str, text: str) -> ColdbenchError:
    """Turns what Docker said when it could not create or start the container into the error it stands for."""
    return _kind(text, _START_WORDS, WorkloadError)(f"Docker could not {what} the container: {_line(text)}")


def explain(error: Exception) -> str:
    """Returns the daemon's own words where it answered, else what happened to the connection."""
    if isinstance(error, APIError):
        return str(error.explanation or error)
    return str(error) or type(error).__name__


def daemon_failure(what: str, error: Exception) -> MachineError:
    """Makes the error for a daemon that did not answer a question that is no part of pulling or starting."""
    return MachineError(f"dockerd does not answer ({what}): {_line(explain(error))}")


def _kind(
    text: str, words: tuple[tuple[str, type[ColdbenchError]], ...], otherwise: type[ColdbenchError]
) -> type[ColdbenchError]:
    low = text.lower()
    return next((kind for word, kind in words if word in low), otherwise)


def _line(text: str) -> str:
    return " ".join(text.split())
