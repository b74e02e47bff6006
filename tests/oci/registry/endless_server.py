"""A server whose answers do not end: bodies with and without length, and heads."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

PIECE = b"x" * (64 << 10)
MOST_BYTES = 64 << 20
"""Where the server stops after all, so that a client without a bound fails a test and not the machine."""


class EndlessServer:
    """Answers every request with ``status`` and a body of ``MOST_BYTES``, framed as it is told.

    ``framing``: ``length`` announces it, ``chunked`` and ``close`` do not, ``headers`` never comes to the body.
    """

    def __init__(self, status: int, framing: str) -> None:
        self._status = status
        self._framing = framing
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="endless")

    def __enter__(self) -> EndlessServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(20)
                while b"\r\n\r\n" not in connection.recv(64 << 10):
                    pass
                connection.sendall(self._head())
                if self._framing == "headers":
                    self._repeat(connection, b"X-More: " + b"y" * 1000 + b"\r\n", 20_000)
                elif self._framing == "chunked":
                    self._repeat(connection, b"%x\r\n%s\r\n" % (len(PIECE), PIECE), MOST_BYTES // len(PIECE))
                else:
                    self._repeat(connection, PIECE, MOST_BYTES // len(PIECE))
            except OSError:
                pass

    def _head(self) -> bytes:
        lines = f"HTTP/1.1 {self._status} Endless\r\nContent-Type: application/octet-stream\r\n"
        if self._framing == "length":
            lines += f"Content-Length: {MOST_BYTES}\r\n"
        elif self._framing == "chunked":
            lines += "Transfer-Encoding: chunked\r\n"
        return (lines if self._framing == "headers" else f"{lines}\r\n").encode()

    @staticmethod
    def _repeat(connection: socket.socket, data: bytes, times: int) -> None:
        for _ in range(times):
            connection.sendall(data)
