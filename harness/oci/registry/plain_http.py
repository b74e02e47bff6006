"""This module makes GETs over plain HTTP/1.1 on sockets of its own: a registry in the machine's network answers ranges
all day.

libcurl hands bodies on in pieces of 16 KiB, each through the interpreter; here a body whose length is known is one
``recv`` into its own bytes. It takes a third of the CPU seconds for ranges of a few hundred KB. Only what is usual is
answered here: anything else (no Content-Length, an interim answer, a transfer coding, an odd URL, a proxy) is left to
libcurl by ``Unusual``, before anybody has seen a byte of it. Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pycurl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STREAM_PIECE_BYTES = 256 << 10
"""A sink gets so many bytes at a time: enough for hashing and inflating, few enough for a core's cache."""
_HEAD_STEP_BYTES = 2048
_MAX_HEAD_BYTES = 64 << 10
_AT_ONCE_BYTES = 32 << 20
_SIMULATED = ipaddress.ip_network("198.18.0.0/15")
"""Simulated networks are made of these addresses (RFC 2544)."""
_TIMEVAL = struct.Struct("@ll")


class Unusual(Exception):
    """Tells that this client cannot serve it; the connection is closed, and asking libcurl instead is harmless."""


class Broken(Exception):
    """Tells that the transfer failed; ``code`` is libcurl's number for it. ``closed``: the other end closed the
    connection.
    """

    def __init__(self, code: int, message: str, closed: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.closed = closed

    @classmethod
    def of(cls, error: OSError, code: int) -> Broken:
        if isinstance(error, BlockingIOError | TimeoutError):
            return cls(pycurl.E_OPERATION_TIMEDOUT, "nothing came for too long")
        return cls(code, error.strerror or str(error), error.errno in _CLOSED)


_CLOSED = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})


def may_take(url: str) -> bool:
    """Says whether this client can ask for ``url``: plain HTTP, nothing to normalise, and no proxy that wants it."""
    if not url.startswith("http://") or not url.isascii() or not url.isprintable():
        return False
    if any(character in url for character in ' #@"<>\\^`{|}') or "/." in url:
        return False
    if any(os.environ.get(name) for name in ("http_proxy", "all_proxy", "ALL_PROXY")):
        return _never_proxied(url[7:].partition("/")[0].rpartition(":")[0])
    return True


@lru_cache(64)
def _never_proxied(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or (address.version == 4 and address in _SIMULATED)


class Answer:
    """Holds the head of one answer, and its body still to be read from ``connection``.

    ``waited_s``: seconds from the request to the first byte of its answer.
    """

    __slots__ = ("_fault", "connection", "keep", "left", "lines", "status", "waited_s")

    def __init__(self, connection: Connection, head: bytes, waited_s: float) -> None:
        self.waited_s = waited_s
        self.connection = connection
        self._fault: Broken | None = None
        self.lines = head.splitlines(keepends=True)
        words = self.lines[0].split(None, 2)
        if len(words) < 2 or words[0] != b"HTTP/1.1" or not words[1].isdigit() or len(words[1]) != 3:
            raise Unusual
        self.status = int(words[1])
        self.keep = True
        size = b"0" if self.status in {204, 304} else b""
        for line in self.lines[1:]:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if name == b"content-length" and colon:
                if not value.isdigit() or (size and size != value):
                    raise Unusual
                size = value
            elif name == b"transfer-encoding" or line[:1] in b" \t":
                raise Unusual
            elif name == b"connection" and value.lower() != b"keep-alive":
                self.keep = False
        if not size or self.status < 200:
            raise Unusual
        self.left = int(size)

    def take(self, most: int) -> bytes:
        """Takes the body's next bytes, at most so many; what has come before a fault is given first. Raises Broken."""
        if self._fault is not None:
            raise self._fault
        wanted = min(most, self.left)
        if not wanted:
            return b""
        data = self.connection.receive(wanted, socket.MSG_WAITALL)
        if len(data) < wanted:  # the end of the stream, a signal, or a time limit that passed while bytes came
            parts, have = [data], len(data)
            try:
                while have < wanted:
                    parts.append(self.connection.receive(wanted - have, socket.MSG_WAITALL))
                    have += len(parts[-1])
            except Broken as error:
                self._fault = error
            data = b"".join(parts)
        self.left -= len(data)
        return data


class Connection:
    """Holds one socket. ``used`` says that it has carried an answer, so that the other end may have closed it since."""

    __slots__ = ("_socket", "place", "used")

    def __init__(self, place: tuple[str, int], connect_s: float, stall_s: float) -> None:
        self.place = place
        self.used = False
        try:
            self._socket = socket.create_connection(place, connect_s)
        except socket.gaierror as error:
            raise Broken(pycurl.E_COULDNT_RESOLVE_HOST, f"{place[0]}: {error.strerror}") from None
        except OSError as error:
            raise Broken.of(error, pycurl.E_COULDNT_CONNECT) from None
        self._socket.settimeout(None)  # the kernel's own limits cost no further system call
        limit = _TIMEVAL.pack(int(stall_s), int(stall_s % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self, most: int, flags: int = 0) -> bytes:
        """Receives at least one byte; raises Broken, also at the end of the stream."""
        try:
            data = self._socket.recv(most, flags)
        except OSError as error:
            raise Broken.of(error, pycurl.E_RECV_ERROR) from None
        if not data:
            raise Broken(pycurl.E_PARTIAL_FILE, "the connection was closed before the answer was whole", closed=True)
        return data

    def ask(self, request: bytes) -> Answer:
        """Sends a request and reads the head of its answer."""
        asked = time.perf_counter()
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise Broken.of(error, pycurl.E_SEND_ERROR) from None
        # Looking first and taking exactly the head leaves the body to be received in one piece, without a copy.
        head, waited_s = b"", 0.0
        while True:
            seen = head + self.receive(_HEAD_STEP_BYTES, socket.MSG_PEEK)
            if not head:
                waited_s = time.perf_counter() - asked
            end = seen.find(b"\r\n\r\n", max(0, len(head) - 3))
            if end >= 0:
                self.receive(end + 4 - len(head))
                return Answer(self, seen[: end + 4], waited_s)
            head += self.receive(len(seen) - len(head))
            if len(head) > _MAX_HEAD_BYTES:
                raise Unusual

    def close(self) -> None:
        self._socket.close()


class PlainHttp:
    """Keeps connections that were used and can be used again, by place; safe from any number of threads."""

    def __init__(self, agent: str, connect_s: float, stall_s: float) -> None:
        self._agent = agent
        self._connect_s = connect_s
        self._stall_s = stall_s
        self._idle: dict[tuple[str, int], list[Connection]] = {}

    def close(self) -> None:
        """Closes the idle connections."""
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    def connect(self, url: str, count: int) -> None:
        """Opens so many connections beside the caller, for requests to come; what fails is left to them."""
        try:
            parts = urlsplit(url)
            place = (parts.hostname or "", parts.port or 80)
        except ValueError:
            return

        def open_one() -> None:
            try:
                connection = Connection(place, self._connect_s, self._stall_s)
            except Broken:
                return
            connection.used = True  # the other end may close it before it is needed
            self._idle.setdefault(place, []).append(connection)

        for _ in range(count if place[0] else 0):
            threading.Thread(target=open_one, daemon=True).start()

    def get(self, url: str, headers: Sequence[str], byte_range: str) -> Answer:
        """Returns the answer to a GET, its head read; give it back by ``done``. Raises Unusual or Broken."""
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            raise Unusual from None
        if not parts.hostname:
            raise Unusual
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", f"User-Agent: {self._agent}", "Accept: */*"]
        if any(line.lower().startswith("accept:") for line in headers):
            lines.pop()
        if byte_range:
            lines.append(f"Range: bytes={byte_range}")
        text = "\r\n".join((*lines, *headers))
        if text.count("\n") != len(lines) + len(headers) - 1 or not text.isascii():
            raise Unusual
        request = text.encode() + b"\r\n\r\n"
        place = (parts.hostname, port)
        idle = self._idle.setdefault(place, [])
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                connection = Connection(place, self._connect_s, self._stall_s)
            used = connection.used
            try:
                answer = connection.ask(request)
            except BaseException as error:
                connection.close()
                if used and isinstance(error, Broken) and error.closed:
                    continue  # it had been closed while it was idle
                raise
            return answer

    def done(self, answer: Answer) -> None:
        """Takes an answer back whose body was read or is not wanted."""
        connection = answer.connection
        if answer.keep and not answer.left:
            connection.used = True
            self._idle[connection.place].append(connection)
        else:
            connection.close()


def read_body(answer: Answer, sink: Callable[[bytes], object] | None, skip: int) -> bytes:
    """Reads the body; a sink gets it in pieces without its first ``skip`` bytes, and then b"" is returned."""
    if sink is None:
        parts = []
        while answer.left:  # room is made for what comes, not for what was announced
            parts.append(answer.take(_AT_ONCE_BYTES))
        return parts[0] if len(parts) == 1 else b"".join(parts)
    while answer.left:
        piece = answer.take(STREAM_PIECE_BYTES)
        if skip:
            skipped = min(skip, len(piece))
            skip -= skipped
            piece = piece[skipped:]
        if piece:
            sink(piece)
    return b""
