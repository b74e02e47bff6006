"""This module authenticates by Basic and Bearer (RFC 9110, 7617, 6750; the distribution project's "Token Authentication
Specification").

A login goes to the registry it is for, and to the token server that this registry names; over https, if the registry is
spoken to over https.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

import pycurl

from harness.errors import AuthError, RegistryError
from harness.oci.registry.curl_pool import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.oci.registry.curl_pool import CurlPool, Response
    from harness.oci.registry.logins import Credentials
    from harness.oci.registry.places import Places

_PART = re.compile(
    r"""(?P<name>[A-Za-z_-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s,"]+))"""
    r"""|(?P<scheme>[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*)(?=\s|,|$)"""
)
"""It matches a parameter, or the name of a scheme, which no equals sign follows."""
_MAX_TOKEN_BYTES = 1 << 20
_PASSING = frozenset({429, 500, 502, 503, 504})
_RENEW_BEFORE_S = 5.0


def parse_challenges(values: list[str]) -> dict[str, dict[str, str]]:
    """Reads WWW-Authenticate headers by lower-case scheme: ``{"bearer": {"realm": …, "service": …, "scope": …}}``.

    One header may hold several challenges, in any order (RFC 9110, section 11.6.1). The first of a scheme counts.
    """
    found: dict[str, dict[str, str]] = {}
    for value in values:
        parameters: dict[str, str] = {}
        for match in _PART.finditer(value):
            scheme, name, quoted, token = match.group("scheme", "name", "quoted", "token")
            if scheme is not None:
                parameters = found.setdefault(scheme.lower(), {})
                if parameters:
                    parameters = {}  # a second challenge of this scheme
            elif name is not None:
                parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
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
        *,
        secure: bool = False,
    ) -> None:
        """Takes ``secure`` where the registry is spoken to over https, so that its login never travels over http."""
        self._pool = pool
        self._host = host
        self._find = credentials
        self._clock = clock
        self._places = places
        self._secure = secure
        self._lock = threading.Lock()
        self._found = False
        self._credentials: Credentials | None = None
        self._challenge: dict[str, str] | None = None
        self._header = ""
        self._proven = False
        self._expires = float("inf")
        self.trouble = ""
        """Says why no login was offered though there may be one, as the end of a message."""

    def header(self) -> str:
        """Returns the header line to send now, '' for none; renews a token that is about to expire."""
        if self._header and self._clock() > self._expires:
            with self._lock:
                if self._challenge is not None and self._clock() > self._expires:
                    self._fetch_token(self._challenge)
        return self._header

    def accepted(self, line: str) -> None:
        """Notes that the registry did what was asked with this header line."""
        if line and line == self._header:
            self._proven = True

    def renew(self, refused: str) -> bool:
        """Gets another token after a 400 or 403; False where that cannot help.

        Some registries answer so, and not 401, when a token has ended: a token that was accepted before is replaced
        once.
        """
        with self._lock:
            if not refused or self._challenge is None:
                return False
            if self._header != refused:
                return True  # another thread has renewed it meanwhile
            if not self._proven:
                return False
            self._fetch_token(self._challenge)
            return True

    def answer(self, challenges: list[str], refused: str) -> None:
        """Reacts to a 401 that ``refused`` the given header line; AuthError when there is nothing left to offer."""
        with self._lock:
            if self._header != refused:
                return  # another thread has renewed it meanwhile
            offered = parse_challenges(challenges)
            unproven = bool(refused) and not self._proven
            if "bearer" in offered and not ("basic" in offered and unproven and self._known() is not None):
                try:
                    self._answer_bearer(offered["bearer"], refused)
                except (AuthError, RegistryError):
                    if "basic" not in offered or self._known() is None:
                        raise
                else:
                    return
            if "basic" not in offered:
                raise AuthError(f"{self._host}: refuses access and offers neither Basic nor Bearer authentication")
            self._answer_basic(refused)

    def _answer_bearer(self, challenge: dict[str, str], refused: str) -> None:
        if self._challenge == challenge and refused and self._clock() < self._expires:
            # A token that was just accepted may have been revoked: one new token, then give up.
            self._expires = 0.0
        self._challenge = challenge
        self._fetch_token(challenge)

    def _answer_basic(self, refused: str) -> None:
        credentials = self._known()
        if credentials is None:
            raise AuthError(f"{self._host}: needs a login; run docker login {self._host}{self.trouble}")
        header = f"Authorization: {credentials.basic}"
        if refused == header or credentials.identity:
            raise AuthError(f"{self._host}: refused the login of {credentials.user or 'the token'}; run docker login")
        self._set(header, float("inf"))
        self._challenge = None

    def _set(self, header: str, expires: float) -> None:
        self._header, self._expires, self._proven = header, expires, False

    def _known(self) -> Credentials | None:
        if not self._found:
            try:
                self._credentials = self._find()
            except AuthError as error:
                # What is public needs no login, so this stops nobody yet.
                self.trouble = f"; no login was offered: {error}"
            self._found = True
        return self._credentials

    def _fetch_token(self, challenge: dict[str, str]) -> None:
        realm = challenge.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            raise AuthError(f"{self._host}: its token realm {realm!r} is not a URL")
        if self._places is not None:
            self._places.visit(realm, f"{self._host}: its token server")
        credentials = self._known()
        if credentials is not None and self._secure and not realm.startswith("https://"):
            raise AuthError(
                f"{self._host}: its token server {realm.split('?')[0]!r} is spoken to without TLS; the login is not "
                "sent there"
            )
        response = self._ask_for_token(realm, challenge, credentials)
        if response.status in _PASSING:
            raise TransferError(pycurl.E_OPERATION_TIMEDOUT, f"the token server answered {response.status}")
        if response.status in {400, 401, 403}:
            hint = f"run docker login {self._host}" if credentials is None else "the login was refused; log in again"
            raise AuthError(
                f"{self._host}: no token for {challenge.get('scope') or 'this access'}: {hint}{self.trouble}"
            )
        if response.status != 200 or response.too_long:
            raise RegistryError(
                f"{self._host}: the token server answered {response.status}"
                + (f" with more than {_MAX_TOKEN_BYTES} bytes" if response.too_long else "")
            )
        try:
            answer = json.loads(response.body)
            token = str(answer.get("token") or answer["access_token"])
            lifetime_s = float(answer.get("expires_in") or 60)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise AuthError(f"{self._host}: the token server's answer holds no token") from None
        if not token.isascii() or not token.isprintable():
            raise AuthError(f"{self._host}: the token server's token cannot be sent in a header")
        expires = self._clock() + max(lifetime_s - min(_RENEW_BEFORE_S, lifetime_s / 4), 0.0)
        self._set(f"Authorization: Bearer {token}", expires)

    def _ask_for_token(self, realm: str, challenge: dict[str, str], credentials: Credentials | None) -> Response:
        fields = {key: challenge[key] for key in ("service", "scope") if challenge.get(key)}
        if credentials is not None and credentials.identity:
            fields |= {"grant_type": "refresh_token", "refresh_token": credentials.secret, "client_id": "coldbench"}
            body = urllib.parse.urlencode(fields).encode()
            pieces = [body]
            return self._pool.send(
                "POST",
                realm,
                ["Content-Type: application/x-www-form-urlencoded"],
                read=lambda _: pieces.pop() if pieces else b"",
                size=len(body),
                limit=_MAX_TOKEN_BYTES,
            )
        headers = [] if credentials is None else [f"Authorization: {credentials.basic}"]
        joint = "&" if "?" in realm else "?"
        return self._pool.get(realm + joint + urllib.parse.urlencode(fields), headers, limit=_MAX_TOKEN_BYTES)
