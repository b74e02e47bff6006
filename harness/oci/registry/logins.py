"""This module finds logins: what ``docker login``, ``podman login`` and ``skopeo login`` left, and credential helpers.

Sources: docker docs "docker login" (config.json, credHelpers, credsStore, the helper protocol),
containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import AuthError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELPER_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """Holds a user and secret; with ``identity`` the secret is an OAuth2 refresh token."""

    user: str
    secret: str
    identity: bool = False

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


def find_credentials(host: str, repository: str = "", config_dir: str | None = None) -> Credentials | None:
    """Returns the login for ``host``: Docker's first, then the one of podman and skopeo; None when nobody logged in.

    A source that is damaged, or names a credential helper that is missing, is passed over for the next one.

    Raises:
        AuthError: a source is of no use and no other knows the host; what needs no login works without.
    """
    trouble = None
    for path in _files(config_dir):
        try:
            found = _look(path, _names(host, repository))
        except AuthError as error:
            trouble = trouble or error
            continue
        if found is not None:
            return found
    if trouble is not None:
        raise trouble
    return None


def _files(config_dir: str | None) -> Iterator[str]:
    yield os.path.join(config_dir or os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")
    if config_dir is not None:
        return
    named = os.environ.get("REGISTRY_AUTH_FILE")
    if named:
        yield named
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield os.path.join(runtime or f"/run/containers/{os.getuid()}", "containers" if runtime else "", "auth.json")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield os.path.join(base, "containers", "auth.json")


def _names(host: str, repository: str) -> list[str]:
    """Returns the keys a login for a repository may stand under, the most telling ones first."""
    parts = repository.split("/") if repository else []
    narrow = [f"{host}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)]
    hub = ["https://index.docker.io/v1/", "index.docker.io", "docker.io"] if host == "docker.io" else []
    return [*narrow, *hub, host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]


def _look(path: str, names: list[str]) -> Credentials | None:
    try:
        with open(path, "rb") as file:
            config: Any = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise AuthError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise AuthError(f"{path}: is not a JSON object")
    helpers = config.get("credHelpers") or {}
    auths = config.get("auths") or {}
    if not isinstance(helpers, dict) or not isinstance(auths, dict):
        raise AuthError(f"{path}: auths and credHelpers are not JSON objects")
    trouble = None
    for name in names:
        if name in helpers:
            try:
                return _ask_helper(str(helpers[name]), name)
            except AuthError as error:
                trouble = error
                break
    for name in names:
        entry = auths.get(name)
        if isinstance(entry, dict) and entry.get("identitytoken"):
            return Credentials("", str(entry["identitytoken"]), identity=True)
        if isinstance(entry, dict) and entry.get("auth"):
            return _decode(str(entry["auth"]), path, name)
        if isinstance(entry, dict) and entry.get("username"):
            return Credentials(str(entry["username"]), str(entry.get("password", "")))
    store = config.get("credsStore")
    if store and trouble is None:
        hosts = [name for name in names if "/" not in name or name.startswith("http")]
        for name in hosts[:2]:
            found = _ask_helper(str(store), name)
            if found is not None:
                return found
    if trouble is not None:
        raise trouble
    return None


def _decode(text: str, path: str, name: str) -> Credentials:
    try:
        user, _, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except ValueError:
        raise AuthError(f"{path}: auths[{name!r}].auth is not base64 of user:password") from None
    return Credentials(user, secret.rstrip("\0"))


def _ask_helper(helper: str, server: str) -> Credentials | None:
    command = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [command, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise AuthError(
            f"{command}: Docker's config.json names this credential helper, but it is not installed"
        ) from None
    except subprocess.TimeoutExpired:
        raise AuthError(f"{command}: no answer within {_HELPER_TIMEOUT_S} s") from None
    if done.returncode != 0:
        message = (done.stdout or done.stderr).decode(errors="replace").strip()
        if "credentials not found" in message:
            return None
        raise AuthError(f"{command}: failed for {server}: {message[:200]}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise AuthError(f"{command}: its answer is not the JSON of the helper protocol") from None
    return Credentials(user, secret, identity=user == "<token>")
