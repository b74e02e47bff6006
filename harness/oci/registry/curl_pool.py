"""This module speaks HTTP/1.1 over pooled libcurl handles, safe from many threads; plain HTTP has a way of its own
(plain_http).

A request takes an idle handle (the one used last, whose connection is the likeliest to live), and gives it back. The
GET path re-sets only what differs between requests, which is what keeps a small range request near 0.2 ms of CPU.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pycurl

from harness import __version__
from harness.oci.registry.link import Link
from harness.oci.registry.plain_http import Broken, PlainHttp, Unusual, may_take, read_body
from harness.oci.registry.rounds import KEPT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUFFER_BYTES = 512 << 10
ERROR_BODY_BYTES = 64 << 10
MAX_HEAD_BYTES = 256 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_IDLE = 32
_AGENT = f"coldbench/{__version__}"
_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits waits, in seconds. ``stall_s``: how long a transfer may move less than one byte per second before it
    counts as dead.
    """

    connect_s: float = 10.0
    stall_s: float = 60.0


@dataclass(slots=True)
class Counters:
    """Counts what went over the wire: requests sent (retries included), body bytes, retries, ranges refused."""

    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, received: int, sent: int = 0) -> None:
        with self._lock:
            self.requests += 1
            self.received_bytes += received
            self.sent_bytes += sent

    def add_retry(self) -> None:
        with self._lock:
            self.retries += 1


@dataclass(slots=True)
class Response:
    """Holds an answer. ``body`` is empty when a sink took it. ``too_long``: it was stopped at the limit, and ``body``
    is a part.
    """

    status: int
    header_lines: list[bytes]
    body: bytes
    too_long: bool = False

    @property
    def is_redirect(self) -> bool:
        """Says whether the answer is that the thing is somewhere else."""
        return self.status in _REDIRECTS

    def header(self, name: str) -> str:
        """Returns the value of the last header of this name, '' when absent."""
        wanted = name.lower().encode() + b":"
        size = len(wanted)
        for line in reversed(self.header_lines):
            if line[:size].lower() == wanted:
                return line[size:].strip().decode("latin-1")
        return ""

    def headers(self, name: str) -> list[str]:
        """Returns the values of all headers of this name."""
        wanted = name.lower().encode() + b":"
        size = len(wanted)
        return [line[size:].strip().decode("latin-1") for line in self.header_lines if line[:size].lower() == wanted]


class TransferError(Exception):
    """Tells that libcurl gave up; ``code`` is its number, ``received`` the body bytes that had arrived."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def may_pass(self) -> bool:
        """Says whether trying again can help: connection refused or reset, timeouts, truncated answers.

        A handshake of TLS that fails will fail again, unless the connection was lost under it.
        """
        if self.code == pycurl.E_SSL_CONNECT_ERROR:
            return any(words in str(self) for words in ("reset", "SSL_ERROR_SYSCALL", "unexpected eof"))
        return self.code in _PASSING

    @property
    def is_lookup(self) -> bool:
        """Says whether the host's name was not found."""
        return self.code == int(pycurl.E_COULDNT_RESOLVE_HOST)


_PASSING = frozenset(
    {
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_PARTIAL_FILE,
        pycurl.E_OPERATION_TIMEDOUT,
        pycurl.E_GOT_NOTHING,
        pycurl.E_SEND_ERROR,
        # An idle connection that the server closed just then, noticed with the body on its way: it is opened anew.
        pycurl.E_SEND_FAIL_REWIND,
        pycurl.E_RECV_ERROR,
    }
)


class CurlPool:
    """Keeps handles for any number of threads and hosts."""

    def __init__(
        self, timeouts: Timeouts | None = None, ca_file: str | None = None, routes: Sequence[str] = ()
    ) -> None:
        """Takes ``routes`` as ``harness.oci.registry.places`` describes them."""
        self.timeouts = timeouts or Timeouts()
        self.counters = Counters()
        self.link = Link()
        chosen = ca_file or os.environ.get("SSL_CERT_FILE") or os.environ.get("CURL_CA_BUNDLE")
        self._ca_file = chosen or next((path for path in _CA_FILES if os.path.exists(path)), None)
        self._routes = list(routes)
        self._idle: list[Any] = []
        self.asked: list[tuple[int, int]] = []
        """Lists when the first requests began and ended (CLOCK_MONOTONIC, ns)."""
        self._plain = PlainHttp(_AGENT, self.timeouts.connect_s, self.timeouts.stall_s)

    def close(self) -> None:
        """Closes the idle handles and their connections."""
        self._plain.close()
        while self._idle:
            self._idle.pop().close()

    def connect(self, url: str, count: int) -> None:
        """Opens so many connections for the next requests, in threads beside. It does so for plain HTTP only: libcurl
        cannot.
        """
        if not self._routes and may_take(url):
            self._plain.connect(url, count)

    def get(
        self,
        url: str,
        headers: Sequence[str] = (),
        *,
        byte_range: str = "",
        limit: int = 0,
        sink: Callable[[bytes], object] | None = None,
        skip: int = 0,
    ) -> Response:
        """Calls ``_get``, and notes it where it is among the first requests."""
        if len(self.asked) >= KEPT:
            return self._get(url, headers, byte_range=byte_range, limit=limit, sink=sink, skip=skip)
        begun = time.monotonic_ns()
        try:
            return self._get(url, headers, byte_range=byte_range, limit=limit, sink=sink, skip=skip)
        finally:
            self.asked.append((begun, time.monotonic_ns()))

    def _get(
        self,
        url: str,
        headers: Sequence[str],
        *,
        byte_range: str,
        limit: int,
        sink: Callable[[bytes], object] | None,
        skip: int,
    ) -> Response:
        """Makes a GET; it stops once a body that is kept proves longer than ``limit`` bytes (0: ``ERROR_BODY_BYTES``).

        ``sink`` takes the body of a 200 or 206 in pieces (libcurl's have up to 16 KiB), however long, so that whoever
        gave it has to know when it is enough; other bodies are kept, ``ERROR_BODY_BYTES`` of them at most. ``skip``
        bytes of a 200 (not of a 206) are left out: what a resumed transfer has had already.
        """
        if not self._routes and may_take(url):
            try:
                return self._get_plain(url, headers, byte_range=byte_range, limit=limit, sink=sink, skip=skip)
            except Unusual:
                pass
        handle = self._take()
        limit = limit or ERROR_BODY_BYTES
        lines = _Lines()
        kept = _Kept(limit)
        handle.setopt(pycurl.URL, url)
        # Never an empty list: pycurl ignores one, and the last request's Authorization would go along.
        handle.setopt(pycurl.HTTPHEADER, list(headers) or ["Accept: */*"])
        if byte_range:
            handle.setopt(pycurl.RANGE, byte_range)
        else:
            handle.unsetopt(pycurl.RANGE)
        handle.setopt(pycurl.MAXFILESIZE_LARGE, limit if sink is None else 0)
        handle.setopt(pycurl.HEADERFUNCTION, lines.take)
        router = None if sink is None else _Router(lines, sink, kept, skip)
        handle.setopt(pycurl.WRITEFUNCTION, kept.take if router is None else router)
        too_long = False
        try:
            handle.perform()
        except pycurl.error as error:
            code = error.args[0]
            if router is not None and router.error is not None:
                handle.close()
                raise router.error from None
            if code != pycurl.E_FILESIZE_EXCEEDED and not kept.full:
                self.counters.add(sum(map(len, kept)) + (router.received if router else 0))
                self._discard(handle)
                raise TransferError(code, _reason(error)) from None
            too_long = True
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        began, first = handle.getinfo(pycurl.PRETRANSFER_TIME), handle.getinfo(pycurl.STARTTRANSFER_TIME)
        ended = handle.getinfo(pycurl.TOTAL_TIME)
        self._idle.append(handle)
        body = kept[0] if len(kept) == 1 else b"".join(kept)
        kept.clear()  # the idle handle keeps its callback, and with it the list
        received = len(body) + (router.received if router else 0)
        self.counters.add(received)
        self.link.note(first - began, received, ended - first)
        return Response(status, lines, body, too_long)

    def _get_plain(
        self,
        url: str,
        headers: Sequence[str],
        *,
        byte_range: str,
        limit: int,
        sink: Callable[[bytes], object] | None,
        skip: int,
    ) -> Response:
        """Does what ``get`` does, without libcurl; raises Unusual where only libcurl knows what to do."""
        try:
            answer = self._plain.get(url, headers, byte_range)
        except Broken as error:
            self.counters.add(0)
            raise TransferError(error.code, str(error)) from None
        began = time.perf_counter()
        announced = answer.left
        body = b""
        good = answer.status in {200, 206}
        too_long = (sink is None or not good) and announced > (limit or ERROR_BODY_BYTES)
        try:
            if not too_long:
                body = read_body(answer, sink if good else None, skip if answer.status == 200 else 0)
        except Broken as error:
            self.counters.add(announced - answer.left)
            raise TransferError(error.code, str(error)) from None
        finally:
            self._plain.done(answer)
        received = announced - answer.left
        self.counters.add(received)
        self.link.note(answer.waited_s, received, time.perf_counter() - began)
        return Response(answer.status, answer.lines, body, too_long)

    def send(
        self,
        method: str,
        url: str,
        headers: Sequence[str] = (),
        *,
        read: Callable[[int], bytes] | None = None,
        size: int = 0,
        limit: int = ERROR_BODY_BYTES,
    ) -> Response:
        """Makes a request of another method; ``read(n)`` gives the body's next at most n bytes, ``size`` bytes in all.

        At most ``limit`` bytes of the answer's body are kept; the transfer stops at more.
        """
        handle = self._take()
        lines = _Lines()
        kept = _Kept(limit)
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HEADERFUNCTION, lines.take)
        handle.setopt(pycurl.WRITEFUNCTION, kept.take)
        # No "Expect: 100-continue": it costs a round trip, and some servers never answer it.
        handle.setopt(pycurl.HTTPHEADER, [*headers, "Expect:"])
        # A GET before may have left its own of these.
        handle.unsetopt(pycurl.RANGE)
        handle.setopt(pycurl.MAXFILESIZE_LARGE, 0)
        if method == "HEAD":
            handle.setopt(pycurl.NOBODY, 1)
        elif read is not None:
            handle.setopt(pycurl.UPLOAD, 1)
            handle.setopt(pycurl.CUSTOMREQUEST, method)
            handle.setopt(pycurl.READFUNCTION, read)
            handle.setopt(pycurl.INFILESIZE_LARGE, size)
        elif method in {"POST", "PUT", "PATCH"}:
            handle.setopt(pycurl.POST, 1)
            handle.setopt(pycurl.POSTFIELDS, b"")
            handle.setopt(pycurl.CUSTOMREQUEST, method)
        else:
            handle.setopt(pycurl.CUSTOMREQUEST, method)
        try:
            handle.perform()
            status = handle.getinfo(pycurl.RESPONSE_CODE)
        except pycurl.error as error:
            if not kept.full:
                self.counters.add(0, size)
                self._discard(handle)
                raise TransferError(error.args[0], _reason(error)) from None
            status = handle.getinfo(pycurl.RESPONSE_CODE)
        handle.reset()
        self._prepare(handle)
        self._idle.append(handle)
        body = b"".join(kept)
        self.counters.add(len(body), size)
        return Response(status, lines, body, kept.full)

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            handle = pycurl.Curl()
            self._prepare(handle)
            return handle

    def _discard(self, handle: Any) -> None:
        # A failed transfer may leave its connection in any state, so it goes with the handle.
        handle.close()
        while len(self._idle) > _MAX_IDLE:
            self._idle.pop(0).close()

    def _prepare(self, handle: Any) -> None:
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.USERAGENT, _AGENT)
        handle.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
        handle.setopt(pycurl.UPLOAD_BUFFERSIZE, BUFFER_BYTES)
        handle.setopt(pycurl.TCP_KEEPALIVE, 1)
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, int(self.timeouts.connect_s * 1000))
        handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        handle.setopt(pycurl.LOW_SPEED_TIME, max(1, int(self.timeouts.stall_s)))
        # Loopback and simulated networks are never behind the proxy that the environment may name.
        handle.setopt(pycurl.NOPROXY, _no_proxy())
        if self._ca_file:
            handle.setopt(pycurl.CAINFO, self._ca_file)
        if self._routes:
            handle.setopt(pycurl.CONNECT_TO, self._routes)


class _Lines(list[bytes]):
    """Collects the lines of an answer's head, up to a bound that no honest answer comes near."""

    _left = MAX_HEAD_BYTES

    def take(self, line: bytes) -> int:
        self._left -= len(line)
        if self._left < 0:
            return -1
        self.append(line)
        return len(line)


class _Kept(list[bytes]):
    """Collects the pieces of a body that is kept; ``full`` once they are more than ``limit`` bytes, which ends the
    transfer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit
        self.full = False

    def take(self, piece: bytes) -> int:
        self._left -= len(piece)
        if self._left < 0:
            self.full = True
            return -1
        self.append(piece)
        return len(piece)


class _Router:
    """Hands a good answer's body to the sink, keeps any other, and remembers what the sink raised."""

    __slots__ = ("_good", "_kept", "_lines", "_sink", "_skip", "error", "received")

    def __init__(self, lines: list[bytes], sink: Callable[[bytes], object], kept: _Kept, skip: int) -> None:
        self._lines = lines
        self._sink = sink
        self._kept = kept
        self._skip = skip
        self._good: bool | None = None
        self.error: BaseException | None = None
        self.received = 0

    def __call__(self, piece: bytes) -> int:
        good = self._good
        if good is None:
            status = next(line.split(None, 2)[1] for line in reversed(self._lines) if line.startswith(b"HTTP/"))
            good = self._good = status in {b"200", b"206"}
            if status != b"200":
                self._skip = 0
        if good:
            self.received += len(piece)
            size = len(piece)
            if self._skip:
                skipped = min(self._skip, size)
                self._skip -= skipped
                if skipped == size:
                    return size
                piece = piece[skipped:]
            try:
                self._sink(piece)
            except BaseException as error:  # carried across libcurl, raised again by the caller
                self.error = error
                return 0
            return size
        return self._kept.take(piece)


def _no_proxy() -> str:
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return ",".join(part for part in (named, "localhost", "127.0.0.0/8", "::1", "198.18.0.0/15") if part)


def _reason(error: pycurl.error) -> str:
    code, message = error.args[0], error.args[1] if len(error.args) > 1 else ""
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        message = f"{message.rstrip('.')} (a CA of your own is named by SSL_CERT_FILE)"
    return message or f"libcurl error {code}"
