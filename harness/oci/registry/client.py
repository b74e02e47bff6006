"""The one client for registries (OCI distribution spec 1.1), cheap enough in CPU for the timed path.

Used by the agent and the lazy file system inside the simulated machine: no httpx, pydantic or rich behind this import.
A client is bound to one repository and safe from any number of threads; each concurrent request has its own connection.
Transient faults (resets, timeouts, cut answers, 408, 429, 5xx) are retried with growing pauses; a redirect to a blob
store is remembered while its signature can be valid, and never carries the registry's Authorization.
"""

from __future__ import annotations

import ipaddress
import random
import re
import time
import urllib.parse
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.errors import AuthError, ContentError, DigestMismatch, FormatError, ImageNotFound, RegistryError
from harness.oci.aside import Aside
from harness.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    digest_bytes,
    is_digest,
)
from harness.oci.image import MAX_MANIFEST_BYTES, parse_json
from harness.oci.registry.auth import Authenticator, Credentials, find_credentials
from harness.oci.registry.curl_pool import ERROR_BODY_BYTES, CurlPool, Response, Timeouts, TransferError
from harness.oci.registry.places import Places
from harness.oci.store import RangeIgnored, referrers_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.oci.registry.curl_pool import Counters
    from harness.oci.registry.link import Link

_ACCEPT_MANIFEST = "Accept: " + ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_STALE_REDIRECT = frozenset({400, 401, 403, 404, 410})
_MAX_REDIRECTS = 5
_REDIRECT_LIFE_S = 60.0
_SIMULATED = ipaddress.ip_network("198.18.0.0/15")


@dataclass(frozen=True, slots=True)
class Retries:
    """How patiently: ``attempts`` in all, pauses doubling from ``first_s`` to ``longest_s`` with jitter."""

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 5.0
    longest_retry_after_s: float = 60.0


def plain_http(host: str) -> bool:
    """Whether a registry is spoken to without TLS: loopback and the benchmarking range 198.18.0.0/15 (RFC 2544)."""
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
    """Where the registry that images name by ``host`` is reached: Docker's own has another name there."""
    return "registry-1.docker.io" if host == "docker.io" else host


class RegistryClient:
    """One repository of one registry; also the `BlobStore` of images named ``docker://``."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        plain: bool | None = None,
        credentials: Credentials | None = None,
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
        self.places = Places(routes)
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()
        self._scheme = "http" if (plain_http(host) if plain is None else plain) else "https"
        self._base = f"{self._scheme}://{address_of(host)}"
        self._root = f"{self._base}/v2/{repository}"
        self._auth = Authenticator(self.pool, host, lambda: credentials or find_credentials(host), clock, self.places)
        self._redirects: dict[str, tuple[str, float]] = {}
        self._referrers_api: bool | None = None

    @property
    def where(self) -> str:
        return f"docker://{self.host}/{self.repository}"

    @property
    def repository_url(self) -> str:
        """The repository's root in the distribution API."""
        return self._root

    @property
    def counters(self) -> Counters:
        """Requests and bytes so far."""
        return self.pool.counters

    @property
    def link(self) -> Link:
        """What the requests so far say of the way to the registry."""
        return self.pool.link

    def close(self) -> None:
        """Close the idle connections."""
        self.pool.close()

    # reads

    def ping(self) -> None:
        """Check that a registry answers on ``/v2/``; RegistryError or AuthError otherwise."""
        response = self.get(f"{self._base}/v2/", limit=ERROR_BODY_BYTES)
        if response.status != 200:
            raise self.failure(response, f"{self.host}: GET /v2/")

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Bytes and Content-Type of a manifest or index; a digest the registry states or was asked for is checked."""
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
        """Content-Length of a HEAD request, None when the blob is absent."""
        response = self.send("HEAD", f"{self._root}/blobs/{digest}")
        for _ in range(_MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                break
            response = self.send("HEAD", self._target(self._base, response))
        if response.status == 404:
            return None
        if response.status != 200:
            raise self.failure(response, f"{self.where}: blob {digest}")
        length = response.header("Content-Length")
        return int(length) if length.isdigit() else None

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; the answer must be a 206 for just this range, else RangeIgnored."""
        if size <= 0:
            return b""
        last = offset + size - 1
        limit = max(size, ERROR_BODY_BYTES)
        response = self._retrying(lambda: self._get_blob(digest, f"{offset}-{last}", limit, None))
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
        """Hand the whole blob to ``sink``, each byte once and in order; a broken transfer resumes where it broke.

        Unverified: whoever consumes the bytes hashes them (`Blob` does). Returns the number of bytes.
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
                attempt = self._pause(0 if done > start else attempt, str(error), error.may_pass)
                continue
            if response.status in _PASSING:
                attempt = self._pause(attempt, f"status {response.status}", True, response.header("Retry-After"))
                continue
            if response.status == 206 and start and not response.header("Content-Range").startswith(f"bytes {start}-"):
                raise RangeIgnored(f"{self.where}: resumed {digest} at {start}, got {response.header('Content-Range')}")
            if response.status in {200, 206} or (start and response.status == 416):
                return done
            if response.status == 404:
                raise ImageNotFound(f"{self.where}: blob {digest} is not in the registry")
            raise self.failure(response, f"{self.where}: blob {digest}")

    def blob_path(self, digest: str) -> Path | None:
        """None: nothing of a registry is a local file."""
        return None

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """From the referrers API where the registry has it, else from the fallback tag (distribution spec 1.1).

        Far from a registry of which it is not known which of the two it has, both are asked at once.
        """
        entries: list[Descriptor] = []
        response = None
        fallback = None
        if self._referrers_api is None and self.link.far:
            fallback = Aside(lambda: self._fallback_referrers(digest))
        if self._referrers_api is not False:
            query = f"?artifactType={urllib.parse.quote(artifact_type, safe='')}" if artifact_type else ""
            response = self.get(f"{self._root}/referrers/{digest}{query}", limit=MAX_MANIFEST_BYTES)
            if response.status == 200 and response.header("Content-Type").startswith(OCI_INDEX):
                self._referrers_api = True
            elif response.status in {200, 400, 404, 405, 406, 415, 501}:
                self._referrers_api, response = False, None
            else:
                raise self.failure(response, f"{self.where}: referrers of {digest}")
        pages = 0
        while response is not None:
            entries += self._index_entries(response.body)
            link = response.header("Link")
            pages += 1
            more = re.match(r'\s*<([^>]+)>.*rel="?next\b', link)
            if more is None or pages == 64:
                break
            url = urllib.parse.urljoin(self._base, more[1])
            response = self.get(url, limit=MAX_MANIFEST_BYTES)
        if not self._referrers_api:
            entries = self._fallback_referrers(digest) if fallback is None else fallback.result()
        return [entry for entry in entries if artifact_type in {None, entry.artifact_type}]

    def _fallback_referrers(self, digest: str) -> list[Descriptor]:
        try:
            data, _ = self.manifest(referrers_tag(digest))
        except ImageNotFound:
            return []
        return self._index_entries(data)

    def _index_entries(self, data: bytes) -> list[Descriptor]:
        where = f"{self.where}: referrers"
        return Descriptor.list_from_json(parse_json(data, where).get("manifests"), where)

    # requests

    def get(self, url: str, headers: Sequence[str] = (), *, limit: int = 0) -> Response:
        """GET on the registry itself, with authentication, redirects and retries."""
        return self._retrying(lambda: self._follow(self._get(url, headers, limit), headers, limit))

    def send(
        self,
        method: str,
        url: str,
        headers: Sequence[str] = (),
        body: Callable[[], tuple[Callable[[int], bytes], int]] | None = None,
    ) -> Response:
        """Any other method, with authentication and retries; ``body()`` opens the body anew: (read, size in bytes)."""

        def once(sent: Sequence[str]) -> Response:
            read, size = body() if body is not None else (None, 0)
            return self.pool.send(method, url, sent, read=read, size=size)

        return self._retrying(lambda: self._authorised(url, headers, once))

    def _authorised(self, url: str, headers: Sequence[str], once: Callable[[Sequence[str]], Response]) -> Response:
        """What ``once`` answers given the headers to send. Only our registry gets our login, and only its challenges
        are answered: another host's may name any place to send the login to."""
        ours = self._is_ours(url)
        response = Response(401, [], b"")
        for _ in range(3):
            line = self._auth.header() if ours else ""
            response = once([*headers, line] if line else headers)
            if response.status != 401 or not ours:
                break
            self._auth.answer(response.headers("WWW-Authenticate"), line)
        return response

    def _get(self, url: str, headers: Sequence[str] = (), limit: int = 0) -> Response:
        return self._authorised(url, headers, lambda sent: self.pool.get(url, sent, limit=limit))

    def _get_blob(
        self, digest: str, byte_range: str, limit: int, sink: Callable[[bytes], object] | None, skip: int = 0
    ) -> Response:
        """One try: the remembered place of the blob first, then the registry and where it redirects to."""

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
        url = f"{self._root}/blobs/{digest}"
        response = self._authorised(url, (), partial(once, url))
        for _ in range(_MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            url = self._target(url, response)
            asked_at = self._clock()
            response = self._authorised(url, (), partial(once, url))
            if response.status in {200, 206}:
                self._redirects[digest] = (url, asked_at + _life_s(url))
        if response.status in _REDIRECTS:
            raise RegistryError(f"{self.where}: blob {digest} is redirected more than {_MAX_REDIRECTS} times")
        return response

    def _follow(self, response: Response, headers: Sequence[str], limit: int) -> Response:
        url = self._base
        for _ in range(_MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            url = self._target(url, response)
            response = self._get(url, headers, limit)
        return response

    def _target(self, url: str, response: Response) -> str:
        target = urllib.parse.urljoin(url, response.header("Location"))
        if not target.startswith(("http://", "https://")) or (self._scheme == "https" and target.startswith("http://")):
            raise RegistryError(f"{self.where}: refuses to follow a redirect to {target.split('?')[0]!r}")
        if not self._is_ours(target):
            self.places.visit(target, f"{self.where}: what it redirects to")
        return target

    def _is_ours(self, url: str) -> bool:
        return url.startswith(self._base + "/")

    def _retrying(self, once: Callable[[], Response]) -> Response:
        attempt = 0
        while True:
            try:
                response = once()
            except TransferError as error:
                attempt = self._pause(attempt, str(error), error.may_pass)
                continue
            if response.status not in _PASSING:
                return response
            attempt = self._pause(attempt, f"status {response.status}", True, response.header("Retry-After"))

    def _pause(self, attempt: int, reason: str, may_pass: bool, retry_after: str = "") -> int:
        """Sleep before the next attempt and return its number; RegistryError when there is none left."""
        if not may_pass or attempt + 1 >= self.retries.attempts:
            tries = f" after {attempt + 1} attempts" if attempt else ""
            hint = "; check that the registry is up and reachable from here" if may_pass else ""
            raise RegistryError(f"{self._base}: {reason}{tries}{hint}")
        pause_s = min(self.retries.first_s * 2**attempt, self.retries.longest_s) * (0.5 + self._random.random())
        if retry_after.isdigit():
            pause_s = min(float(retry_after), self.retries.longest_retry_after_s)
        self.counters.add_retry()
        self._sleep(pause_s)
        return attempt + 1

    def failure(self, response: Response, what: str) -> RegistryError:
        """The error for a status nobody expected, with the registry's own words."""
        words = ""
        try:
            errors = parse_json(response.body, what).get("errors") or []
            words = "; ".join(f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors)
        except (ContentError, AttributeError):
            pass
        if response.status in {401, 403}:
            return AuthError(f"{what}: access denied{f' ({words})' if words else ''}; run docker login {self.host}")
        return RegistryError(f"{what}: the registry answered {response.status}{f' ({words})' if words else ''}")


def _life_s(url: str) -> float:
    """Seconds for which a signed URL can be used again; a guess of a minute where it does not say."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    for name in ("X-Amz-Expires", "X-Goog-Expires"):
        if name in query and query[name][0].isdigit():
            return max(0.0, float(query[name][0]) * 0.8)
    return _REDIRECT_LIFE_S
