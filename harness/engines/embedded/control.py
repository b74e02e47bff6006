"""JSON lines over a stream socket: how the harness and the processes inside the machine talk."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

from harness.errors import FormatError

MAX_LINE_BYTES = 16 << 20
"""A deploy request with a long prefetch list is the largest message there is."""


class Control:
    """One end. ``send`` may be called from any thread; ``receive`` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._messages: list[dict[str, Any]] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; silent when the other end is gone (it reads nothing any more)."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                pass

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None when the other end is gone. Raises TimeoutError after ``timeout_s``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._messages:
            if deadline is None:
                self._socket.settimeout(None)
            else:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self._take(data)
        return self._messages.pop(0)

    def _take(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > MAX_LINE_BYTES and b"\n" not in data:
            raise FormatError("control socket", f"a message is longer than {MAX_LINE_BYTES} bytes")
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise FormatError("control socket", "a message is not an object")
            self._messages.append(message)

    def shut_down(self) -> None:
        """End the conversation in both directions; the other end, and our own reader, see the end of the stream."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
