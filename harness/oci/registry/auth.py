"""Credentials of registries: Docker's config.json and credential helpers, Basic and Bearer authentication.

Sources: docker docs "docker login" (config.json, credHelpers, credsStore, the helper protocol) and the distribution
project's "Token Authentication Specification".
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import AuthError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.oci.registry.curl_pool import CurlPool
    from harness.oci.registry.places import Places

_PARAMETER = re.compile(r'([A-Za-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_HELPER_TIMEOUT_S = 30
_RENEW_BEFORE_S = 5.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and secret; with ``identity`` the secret is an OAuth2 refresh token."""

    user: str
    secret: str
    identity: bool = False

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


def find_credentials(host: str, config_dir: str | None = None) -> Credentials | None:
    """What ``docker login`` left for ``host``: its credential helper, the default store, or config.json itself."""
    directory = config_dir or os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    path = os.path.join(directory, "config.json")
    try:
        with open(path, "rb") as file:
            config: Any = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AuthError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise AuthError(f"{path}: is not a JSON object")
    names = ["https://index.docker.io/v1/", "index.docker.io", "docker.io"] if host == "docker.io" else []
    names += [host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    helpers = config.get("credHelpers") or {}
    for name in names:
        if name in helpers:
            return _ask_helper(str(helpers[name]), name)
    auths = config.get("auths") or {}
    for name in names:
        entry = auths.get(name)
        if isinstance(entry, dict) and entry.get("identitytoken"):
            return Credentials("", str(entry["identitytoken"]), identity=True)
        if isinstance(entry, dict) and entry.get("auth"):
            return _decode(str(entry["auth"]), path, name)
        if isinstance(entry, dict) and entry.get("username"):
            return Credentials(str(entry["username"]), str(entry.get("password", "")))
    store = config.get("credsStore")
    if store:
        for name in names[:2]:
            found = _ask_helper(str(store), name)
            if found is not None:
                return found
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


def parse_challenges(values: list[str]) -> dict[str, dict[str, str]]:
    """WWW-Authenticate headers by lower-case scheme: ``{"bearer": {"realm": …, "service": …, "scope": …}}``."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        scheme, _, rest = value.strip().partition(" ")
        parameters = {
            match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
            for match in _PARAMETER.finditer(rest)
        }
        found.setdefault(scheme.lower(), parameters)
    return found


class Authenticator:
    """Keeps the Authorization header of one repository, and gets a new one when it is refused or about to expire."""

    def __init__(
        self,
        pool: CurlPool,
        host: str,
        credentials: Callable[[], Credentials | None],
        clock: Callable[[], float] = time.monotonic,
        places: Places | None = None,
    ) -> None:
        self._pool = pool
        self._host = host
        self._find = credentials
        self._clock = clock
        self._places = places
        self._lock = threading.Lock()
        self._found = False
        self._credentials: Credentials | None = None
        self._challenge: dict[str, str] | None = None
        self._header = ""
        self._expires = float("inf")

    def header(self) -> str:
        """The header line to send now, '' for none; renews a token that is about to expire."""
        if self._header and self._clock() > self._expires:
            with self._lock:
                if self._challenge is not None and self._clock() > self._expires:
                    self._fetch_token(self._challenge)
        return self._header

    def answer(self, challenges: list[str], refused: str) -> None:
        """React to a 401 that ``refused`` the given header line; AuthError when there is nothing left to offer."""
        with self._lock:
            if self._header != refused:
                return  # another thread has renewed it meanwhile
            offered = parse_challenges(challenges)
            if "bearer" in offered:
                if self._challenge == offered["bearer"] and refused and self._clock() < self._expires:
                    # A token that was just accepted may have been revoked: one new token, then give up.
                    self._expires = 0.0
                self._challenge = offered["bearer"]
                self._fetch_token(offered["bearer"])
                return
            if "basic" in offered:
                credentials = self._known()
                if credentials is None:
                    raise AuthError(f"{self._host}: needs a login; run docker login {self._host}")
                if refused:
                    raise AuthError(
                        f"{self._host}: refused the login of {credentials.user or 'the token'}; run docker login"
                    )
                self._header = f"Authorization: {credentials.basic}"
                return
            raise AuthError(f"{self._host}: refuses access and offers neither Basic nor Bearer authentication")

    def _known(self) -> Credentials | None:
        if not self._found:
            self._credentials = self._find()
            self._found = True
        return self._credentials

    def _fetch_token(self, challenge: dict[str, str]) -> None:
        realm = challenge.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            raise AuthError(f"{self._host}: its token realm {realm!r} is not a URL")
        if self._places is not None:
            self._places.visit(realm, f"{self._host}: its token server")
        credentials = self._known()
        fields = {key: challenge[key] for key in ("service", "scope") if challenge.get(key)}
        if credentials is not None and credentials.identity:
            fields |= {"grant_type": "refresh_token", "refresh_token": credentials.secret, "client_id": "coldbench"}
            body = urllib.parse.urlencode(fields).encode()
            pieces = [body]
            response = self._pool.send(
                "POST",
                realm,
                ["Content-Type: application/x-www-form-urlencoded"],
                read=lambda _: pieces.pop() if pieces else b"",
                size=len(body),
            )
        else:
            headers = [] if credentials is None else [f"Authorization: {credentials.basic}"]
            joint = "&" if "?" in realm else "?"
            response = self._pool.get(realm + joint + urllib.parse.urlencode(fields), headers, limit=1 << 20)
        if response.status in {401, 403}:
            hint = "run docker login" if credentials is None else "the login was refused; run docker login again"
            raise AuthError(f"{self._host}: no token for {challenge.get('scope') or 'this access'}: {hint}")
        if response.status != 200:
            raise RegistryError(f"{self._host}: the token server answered {response.status}")
        try:
            answer = json.loads(response.body)
            token = answer.get("token") or answer["access_token"]
            lifetime_s = float(answer.get("expires_in") or 60)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AuthError(f"{self._host}: the token server's answer holds no token") from None
        self._header = f"Authorization: Bearer {token}"
        self._expires = self._clock() + max(lifetime_s - min(_RENEW_BEFORE_S, lifetime_s / 4), 0.0)
