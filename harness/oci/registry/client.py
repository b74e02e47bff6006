"""This is the one client for registries (OCI distribution spec 1.1), cheap enough in CPU for the timed path.

The agent and the lazy file system inside the simulated machine use it: no httpx, pydantic or rich is behind this
import. A client is bound to one repository and safe from any number of threads; each concurrent request has its own
connection. Transient faults (resets, timeouts, cut answers, 408, 429, 5xx) are retried with growing pauses; a redirect
to a blob store is remembered while its signature can be valid, and never carries the registry's Authorization.
"""

from __future__ import annotations

import ipaddress
import random
import time
import urllib.parse
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.errors import ContentError, DigestMismatch, FormatError, ImageNotFound, RegistryError
from harness.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    digest_bytes,
    is_digest,
)
from harness.oci.image import MAX_MANIFEST_BYTES
from harness.oci.registry.auth import Authenticator
from harness.oci.registry.curl_pool import ERROR_BODY_BYTES, CurlPool, Response, Timeouts, TransferError
from harness.oci.registry.failures import failure, hint
from harness.oci.registry.logins import Credentials, find_credentials
from harness.oci.registry.places import Places
from harness.oci.registry.referrers import Referrers
from harness.oci.store import RangeIgnored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.oci.descriptor import Descriptor
    from harness.oci.registry.curl_pool import Counters
    from harness.oci.registry.link import Link

_ACCEPT_MANIFEST = "Accept: " + ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_STALE_REDIRECT = frozenset({400, 401, 403, 404, 410})
_MAX_REDIRECTS = 5
_RANGE_TRIES = 3
_REDIRECT_LIFE_S = 60.0
_SIMULATED = ipaddress.ip_network("198.18.0.0/15")


@dataclass(frozen=True, slots=True)
class Retries:
    """Says how patiently to try: ``attempts`` in all, pauses doubling from ``first_s`` to ``longest_s`` with jitter."""

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 5.0
    longest_retry_after_s: float = 60.0


def plain_http(host: str) -> bool:
    """Says whether a registry is spoken to without TLS: loopback and the benchmarking range
    198.18.0.0/15 (RFC 2544).
    """
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or (address.version == 4 and address in _SIMULATED)


def address_of(host: str) -> str:
    """Returns where the registry that images name by ``host`` is reached: Docker's own has another name there."""
    return "registry-1.docker.io" if host == "docker.io" else host


class RegistryClient:
    """Speaks to one repository of one registry; it is also the `BlobStore` of images named ``docker://``."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        plain: bool | None = None,
        credentials: Credentials | None = None,
        anonymous: bool = False,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        ca_file: str | None = None,
        routes: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.host = host
        self.repository = repository
        self.retries = retries or Retries()
        self.pool = CurlPool(timeouts, ca_file, routes)
        self.places = Places(routes, address_of(host))
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()
        self._scheme = "http" if (plain_http(host) if plain is None else plain) else "https"
        self._base = f"{self._scheme}://{address_of(host)}"
        self._root = f"{self._base}/v2/{repository}"
        self._auth = Authenticator(
            self.pool,
            host,
            (lambda: None) if anonymous else lambda: credentials or find_credentials(host, repository),
            clock,
            self.places,
            secure=self._scheme == "https",
        )
        self.remarks: list[str] = []
        self._redirects: dict[str, tuple[str, float]] = {}
        self._referrers = Referrers(self)
        self._has_answered = False

    @property
    def where(self) -> str:
        return f"docker://{self.host}/{self.repository}"

    @property
    def repository_url(self) -> str:
        """Returns the repository's root in the distribution API."""
        return self._root

    @property
    def counters(self) -> Counters:
        """Returns requests and bytes so far."""
        return self.pool.counters

    @property
    def link(self) -> Link:
        """Returns what the requests so far say of the way to the registry."""
        return self.pool.link

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Returns when the first requests began and ended (``harness.oci.registry.rounds``)."""
        return self.pool.asked

    def connect(self, count: int) -> None:
        """Opens connections to the registry for the next requests, while the caller goes on."""
        self.pool.connect(self._base + "/", count)

    def close(self) -> None:
        """Closes the idle connections."""
        self.pool.close()

    # reads

    def ping(self) -> None:
        """Checks that a registry answers on ``/v2/``; raises RegistryError or AuthError otherwise."""
        response = self.get(f"{self._base}/v2/", limit=ERROR_BODY_BYTES)
        if response.status != 200:
            raise self.failure(response, f"{self.host}: GET /v2/")

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Gets bytes and Content-Type of a manifest or index; a digest the registry states or was
        asked for is checked.
        """
        reference = reference or "latest"
        what = f"{self.where}{'@' if is_digest(reference) else ':'}{reference}"
        response = self.get(f"{self._root}/manifests/{reference}", [_ACCEPT_MANIFEST], limit=MAX_MANIFEST_BYTES)
        if response.too_long:
            raise FormatError(what, f"manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        if response.status == 404:
            raise ImageNotFound(f"{what}: no such image in the registry")
        if response.status != 200:
            raise self.failure(response, what)
        stated = reference if is_digest(reference) else response.header("Docker-Content-Digest")
        if stated.startswith("sha256:"):
            actual = digest_bytes(response.body)
            if actual != stated:
                raise DigestMismatch(f"{what}: manifest", stated, actual)
        return response.body, response.header("Content-Type")

    def blob_size(self, digest: str) -> int | None:
        """Returns the Content-Length of a HEAD request, None when the blob is absent."""
        response = self.send("HEAD", f"{self._root}/blobs/{digest}")
        for _ in range(_MAX_REDIRECTS):
            if not response.is_redirect:
                break
            response = self.send("HEAD", self.redirect_target(self._base, response))
        if response.status == 404:
            return None
        if response.status != 200:
            raise self.failure(response, f"{self.where}: blob {digest}")
        length = response.header("Content-Length")
        return int(length) if length.isdigit() else None

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        """Gets exactly ``size`` bytes at ``offset``; the answer must be a 206 for just this range, else it raises
        RangeIgnored.
        """
        if size <= 0:
            return b""
        last = offset + size - 1
        limit = max(size, ERROR_BODY_BYTES)
        # Some caches in front of a store answer the first range with all they have, and later ones as asked.
        for _ in range(_RANGE_TRIES):
            response = self._retrying(lambda: self._get_blob(digest, f"{offset}-{last}", limit, None))
            if response.status != 200:
                break
            if offset == 0 and len(response.body) == size and not response.too_long:
                return response.body
        if response.status == 206 and not response.too_long:
            stated = response.header("Content-Range")
            if not stated.startswith(f"bytes {offset}-{last}/"):
                if stated.startswith(f"bytes {offset}-"):
                    raise FormatError(f"{self.where}: blob {digest}", f"ends before byte {last + 1} ({stated})")
                raise RangeIgnored(
                    f"{self.where}: asked for bytes {offset}-{last} of {digest}, got {stated or 'others'}"
                )
            if len(response.body) != size:
                raise ContentError(f"{self.where}: range of {digest} is cut: {len(response.body)} of {size} bytes")
            return response.body
        if response.status in {200, 206}:
            raise RangeIgnored(f"{self.where}: the registry ignores range requests, lazy pulling cannot work with it")
        if response.status == 416:
            raise FormatError(f"{self.where}: blob {digest}", f"ends before byte {last + 1}")
        if response.status == 404:
            raise ImageNotFound(f"{self.where}: blob {digest} is not in the registry")
        raise self.failure(response, f"{self.where}: blob {digest}")

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        """Hands the whole blob to ``sink``, each byte once and in order; a broken transfer resumes where it broke.

        The bytes are unverified: whoever consumes them hashes them (`Blob` does). Returns the number of bytes.
        """
        done = attempt = 0

        def count(piece: bytes) -> None:
            nonlocal done
            sink(piece)
            done += len(piece)

        while True:
            start = done
            try:
                response = self._get_blob(digest, f"{start}-" if start else "", 0, count, skip=start)
            except TransferError as error:
                attempt = self._failed(0 if done > start else attempt, error)
                continue
            if response.status in _PASSING:
                attempt = self._refused(attempt, response)
                continue
            if response.status == 206 and start and not response.header("Content-Range").startswith(f"bytes {start}-"):
                raise RangeIgnored(f"{self.where}: resumed {digest} at {start}, got {response.header('Content-Range')}")
            if response.status in {200, 206} or (start and response.status == 416):
                return done
            if response.status == 404:
                raise ImageNotFound(f"{self.where}: blob {digest} is not in the registry")
            raise self.failure(response, f"{self.where}: blob {digest}")

    def blob_path(self, digest: str) -> Path | None:
        """Returns None: nothing of a registry is a local file."""
        return None

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Asks the referrers API where the registry has it, else the fallback tag (distribution spec 1.1)."""
        return self._referrers.find(digest, artifact_type)

    def tagged_referrers(self, digest: str) -> list[Descriptor]:
        """Returns what the fallback tag lists; empty when it is absent or somebody's own."""
        return self._referrers.by_tag(digest)

    # requests

    def get(self, url: str, headers: Sequence[str] = (), *, limit: int = 0, follow: bool = True) -> Response:
        """Makes a GET on the registry itself, with authentication, redirects (with ``follow``) and retries."""
        if not follow:
            return self._retrying(lambda: self._get(url, headers, limit))
        return self._retrying(lambda: self._follow(self._get(url, headers, limit), headers, limit))

    def send(
        self,
        method: str,
        url: str,
        headers: Sequence[str] = (),
        body: Callable[[], tuple[Callable[[int], bytes], int]] | None = None,
    ) -> Response:
        """Makes a request of another method, with authentication and retries; ``body()`` opens the body anew: (read,
        size in bytes).
        """

        def once(sent: Sequence[str]) -> Response:
            read, size = body() if body is not None else (None, 0)
            return self.pool.send(method, url, sent, read=read, size=size)

        return self._retrying(lambda: self._authorised(url, headers, once))

    def _authorised(self, url: str, headers: Sequence[str], once: Callable[[Sequence[str]], Response]) -> Response:
        """Returns what ``once`` answers, given the headers to send. Only our registry gets our login, and only its
        challenges are answered: another host's may name any place to send the login to.
        """
        if not self.is_ours(url):
            return once(headers)
        response = Response(401, [], b"")
        for _ in range(3):
            line = self._auth.header()
            response = once([*headers, line] if line else headers)
            if response.status == 401:
                self._auth.answer(response.headers("WWW-Authenticate"), line)
            elif response.status not in {400, 403} or not self._auth.renew(line):
                break
        self._has_answered = True
        if response.status < 400:
            self._auth.accepted(line)
        return response

    def _get(self, url: str, headers: Sequence[str] = (), limit: int = 0) -> Response:
        return self._authorised(url, headers, lambda sent: self.pool.get(url, sent, limit=limit))

    def _get_blob(
        self, digest: str, byte_range: str, limit: int, sink: Callable[[bytes], object] | None, skip: int = 0
    ) -> Response:
        """Tries once: the remembered place of the blob first, then the registry and where it redirects to."""

        def once(url: str, sent: Sequence[str] = ()) -> Response:
            return self.pool.get(url, sent, byte_range=byte_range, limit=limit, sink=sink, skip=skip)

        remembered = self._redirects.get(digest)
        if remembered is not None:
            url, until = remembered
            if self._clock() < until:
                response = once(url)
                if response.status not in _STALE_REDIRECT:
                    return response
            self._redirects.pop(digest, None)
        url = self.blob_url(digest)
        response = self._authorised(url, (), partial(once, url))
        for _ in range(_MAX_REDIRECTS):
            if not response.is_redirect:
                return response
            url = self.redirect_target(url, response)
            asked_at = self._clock()
            response = self._authorised(url, (), partial(once, url))
            if response.status in {200, 206}:
                self._redirects[digest] = (url, asked_at + _life_s(url))
        if response.is_redirect:
            raise RegistryError(f"{self.where}: blob {digest} is redirected more than {_MAX_REDIRECTS} times")
        return response

    def _follow(self, response: Response, headers: Sequence[str], limit: int) -> Response:
        url = self._base
        for _ in range(_MAX_REDIRECTS):
            if not response.is_redirect:
                return response
            url = self.redirect_target(url, response)
            response = self._get(url, headers, limit)
        return response

    def redirect_target(self, url: str, response: Response) -> str:
        """Returns where an answer for ``url`` leads; raises RegistryError for places that nobody follows it to."""
        target = urllib.parse.urljoin(url, response.header("Location"))
        if not target.startswith(("http://", "https://")) or (self._scheme == "https" and target.startswith("http://")):
            raise RegistryError(f"{self.where}: refuses to follow a redirect to {target.split('?')[0]!r}")
        if not self.is_ours(target):
            self.places.visit(target, f"{self.where}: what it redirects to")
        return target

    def is_ours(self, url: str) -> bool:
        """Says whether a URL is the registry's own, so that its login goes there."""
        return url.startswith(self._base + "/")

    def blob_url(self, digest: str) -> str:
        """Returns where a blob is asked for first."""
        return f"{self._root}/blobs/{digest}"

    def _retrying(self, once: Callable[[], Response]) -> Response:
        attempt = 0
        while True:
            try:
                response = once()
            except TransferError as error:
                attempt = self._failed(attempt, error)
                continue
            if response.status not in _PASSING:
                return response
            attempt = self._refused(attempt, response)

    def _failed(self, attempt: int, error: TransferError) -> int:
        """Pauses after a transfer that failed; RegistryError when another try is of no use, or was the last."""
        # A name that was never found stays unknown; one that was found before may be found again.
        if (error.may_pass or (error.is_lookup and self._has_answered)) and attempt + 1 < self.retries.attempts:
            return self._pause(attempt)
        tries = f" after {attempt + 1} attempts" if attempt else ""
        raise RegistryError(f"{self._base}: {error}{tries}{hint(str(error))}")

    def _refused(self, attempt: int, response: Response) -> int:
        """Pauses after an answer that may be another one later; RegistryError when it was the last try."""
        if attempt + 1 < self.retries.attempts:
            return self._pause(attempt, response.header("Retry-After"))
        raise self.failure(response, f"{self._base} after {attempt + 1} attempts")

    def _pause(self, attempt: int, retry_after: str = "") -> int:
        """Sleeps before the next attempt and returns its number."""
        pause_s = min(self.retries.first_s * 2**attempt, self.retries.longest_s) * (0.5 + self._random.random())
        if retry_after.isdigit():
            pause_s = min(float(retry_after), self.retries.longest_retry_after_s)
        self.counters.add_retry()
        self._sleep(pause_s)
        return attempt + 1

    def failure(self, response: Response, what: str) -> RegistryError:
        """Makes the error for a status nobody expected, with the registry's own words and how to mend it."""
        return failure(response, what, self.host, self._auth.trouble)


def _life_s(url: str) -> float:
    """Returns the seconds for which a signed URL can be used again; it guesses a minute where the URL does not say."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    for name in ("X-Amz-Expires", "X-Goog-Expires"):
        if name in query and query[name][0].isdigit():
            return max(0.0, float(query[name][0]) * 0.8)
    return _REDIRECT_LIFE_S
