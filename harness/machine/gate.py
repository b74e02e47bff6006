"""This gate stands in front of the registry: it lets everything through until it is told to fail, and mends when told
to.

Run as a plain script, outside the machine: ``gate.py ADDRESS UPSTREAM-HOST UPSTREAM-PORT TOKENS`` (``tokens`` or
``open``). It prints the port it listens on, takes one word a line on stdin, answers ``ok`` when that is in force, and
ends when its stdin does. The words:

``pass``
    Requests are passed on. With ``tokens`` a request needs a bearer token (RFC 6750), which the gate gives itself, to
    anybody, at the realm that its challenge names.
``refuse``
    Nobody listens any more: connections are reset, and new ones are refused by the kernel.
``503``
    Every request is answered 503.
``401``
    All tokens are revoked, and the token server answers 401 as well.

It reads HTTP/1.1 requests without bodies, which is all that pulling takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import struct
import sys

_CHUNK_BYTES = 256 << 10
_HEAD_BYTES = 64 << 10
_REPOSITORY = re.compile(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/")
_RESET = struct.pack("ii", 1, 0)
STATES = {"pass", "refuse", "503", "401"}

Head = tuple[str, dict[str, str]]
"""This is a first line, and headers by lower-case name."""


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, Head] | None:
    """Reads a message's head, as it came and as it means; None at the end of the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return raw, (first, headers)


def without(raw: bytes, name: str) -> bytes:
    """Returns a head without the lines of one header."""
    lines = raw.split(b"\r\n")
    prefix = name.encode() + b":"
    return b"\r\n".join(line for line in lines if not line.lower().startswith(prefix))


class Gate:
    """Listens, and passes requests on or fails them, as ``state`` says."""

    def __init__(self, address: str, upstream: tuple[str, int], *, tokens: bool) -> None:
        self.state = "pass"
        self.port = 0
        self._address = address
        self._upstream = upstream
        self._tokens = tokens
        self._generation = 1
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Listens on the same port as before, or on a free one at first."""
        self._server = await asyncio.start_server(self._serve, self._address, self.port, limit=_HEAD_BYTES, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def become(self, state: str) -> None:
        """Goes over to another state; connections that are open see it with their next request."""
        self.state = state
        if state == "401":
            self._generation += 1
        if state == "refuse":
            if self._server is not None:
                self._server.close()
                self._server = None
            for writer in list(self._open):
                _reset(writer)
        elif self._server is None:
            await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (message := await read_head(reader)) is not None:
                raw, head = message
                own = self._own_answer(head)
                if own is not None:
                    writer.write(own)
                    await writer.drain()
                    continue
                if upstream is None:
                    upstream = await asyncio.open_connection(*self._upstream, limit=_HEAD_BYTES)
                upstream[1].write(without(raw, "authorization") if self._tokens else raw)
                await upstream[1].drain()
                if not await self._pass_answer(head, upstream[0], writer):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            for one in (writer, upstream[1] if upstream else None):
                if one is not None:
                    with contextlib.suppress(OSError):
                        one.close()

    async def _pass_answer(self, request: Head, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> bool:
        """Passes one answer on; False when its connection ends with it."""
        message = await read_head(source)
        if message is None:
            return False
        raw, (first, headers) = message
        sink.write(raw)
        status = first.split(" ")[1]
        if request[0].startswith("HEAD ") or status in {"204", "304"} or status.startswith("1"):
            await sink.drain()
        elif "content-length" in headers:
            await _copy(source, sink, int(headers["content-length"]))
        elif "chunked" in headers.get("transfer-encoding", ""):
            await _copy_chunks(source, sink)
        else:
            while data := await source.read(_CHUNK_BYTES):
                sink.write(data)
                await sink.drain()
            return False
        return headers.get("connection", "").lower() != "close"

    # -- what it says itself

    def _own_answer(self, head: Head) -> bytes | None:
        first, headers = head
        if self.state == "503":
            return _answer("503 Service Unavailable", b"")
        if not self._tokens:
            return None
        path = first.split(" ")[1]
        token = f"coldbench-{self._generation}"
        if path.partition("?")[0] == "/token":
            if self.state == "401":
                return _answer("401 Unauthorized", b'{"errors":[{"code":"UNAUTHORIZED"}]}')
            given = {"token": token, "access_token": token, "expires_in": 3600}
            return _answer("200 OK", json.dumps(given).encode())
        if self.state != "401" and headers.get("authorization") == f"Bearer {token}":
            return None
        realm = f"http://{self._address}:{self.port}/token"
        challenge = f'Bearer realm="{realm}",service="coldbench"'
        if (found := _REPOSITORY.match(path)) is not None:
            challenge += f',scope="repository:{found[1]}:pull"'
        return _answer("401 Unauthorized", b'{"errors":[{"code":"UNAUTHORIZED"}]}', f"WWW-Authenticate: {challenge}")


def _answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _reset(writer: asyncio.StreamWriter) -> None:
    plain = writer.get_extra_info("socket")
    if plain is not None:
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, size: int) -> None:
    while size:
        data = await source.read(min(size, _CHUNK_BYTES))
        if not data:
            raise ConnectionError("the registry ended in the middle of an answer")
        size -= len(data)
        sink.write(data)
        await sink.drain()


async def _copy_chunks(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while True:
        line = await source.readuntil(b"\r\n")
        sink.write(line)
        size = int(line.partition(b";")[0], 16)
        await _copy(source, sink, size + 2)
        if not size:
            return


async def main() -> None:
    address, host, port, tokens = sys.argv[1:]
    gate = Gate(address, (host, int(port)), tokens=tokens == "tokens")
    await gate.listen()
    os.write(1, f"{gate.port}\n".encode())
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        word = line.decode().strip()
        if word in STATES:
            await gate.become(word)
            os.write(1, b"ok\n")
        else:
            os.write(1, f"no such state: {word}\n".encode())


if __name__ == "__main__":
    asyncio.run(main())
