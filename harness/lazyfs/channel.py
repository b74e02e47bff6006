"""This module is the channel of all processes of a trial: it sends frozen dataclasses as JSON lines over a socket.

A line is ``{"say": class, "id": number, "body": fields}``, of limited length; an answer repeats its request's number.
The standard library writes the JSON, because names in it may hold bytes that are no UTF-8 (as lone surrogates), and
msgspec turns it into the class and checks every field on the way.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from harness.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_LINE_BYTES = 64 << 20
"""Limits a line: the largest message is a mount request with a long prefetch list, or the trace of a large image."""
CUT = b"\n\n"
"""Is sent first on a stream that another process has written to: an empty line says that the line before it may have
been cut off by its writer's death."""
_WHERE = "control socket"
_RECEIVE_BYTES = 1 << 18


class Received(NamedTuple):
    """Holds a message and its number; requests and answers have one above 0.

    ``descriptors`` came along; who reads the message closes them.
    """

    number: int
    message: object
    descriptors: tuple[int, ...] = ()


def encode(message: object, number: int = 0) -> bytes:
    """Returns the line that carries a message."""
    line = {"say": type(message).__name__, "id": number, "body": msgspec.to_builtins(message)}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Takes bytes as they come off a stream, and gives messages of the classes it was told of."""

    def __init__(self, types: Iterable[type]) -> None:
        self._types = {kind.__name__: kind for kind in types}
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Received]:
        """Returns the messages that ``data`` completes; raises FormatError for a line too long or no such message."""
        self._buffer += data
        if b"\n" not in data:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise FormatError(_WHERE, f"a message is longer than {MAX_LINE_BYTES} bytes")
            return []
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        messages: list[Received] = []
        for line, following in zip(lines, [*lines[1:], None], strict=True):
            if not line:
                continue
            try:
                messages.append(self._decode(line))
            except FormatError:
                if following != b"":
                    raise
        return messages

    def _decode(self, line: bytes) -> Received:
        try:
            value = json.loads(line)
            name, number = str(value["say"]), int(value["id"])
            kind = self._types[name]
            return Received(number, msgspec.convert(value["body"], kind))
        except KeyError as error:
            raise FormatError(_WHERE, f"a message without or with an unknown {error}") from None
        except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
            raise FormatError(_WHERE, f"a message that cannot be read: {error}") from None


class Channel:
    """Sends and receives, blocking, at one end. ``send`` may be called from any thread, ``receive`` from one."""

    def __init__(self, end: socket.socket, types: Iterable[type], *, descriptors: int = 0) -> None:
        """``types`` are the classes of what may arrive; one message brings ``descriptors`` at most.

        The kernel closes what comes beyond.
        """
        self._socket = end
        self._descriptors = descriptors
        self._lock = threading.Lock()
        self._lines = Lines(types)
        self._messages: list[Received] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: object, number: int = 0, descriptors: Sequence[int] = (), *, again: bool = False) -> bool:
        """Sends one message, with copies of open descriptors; returns False when the other end is gone.

        That end reads nothing any more then. A message that carries descriptors is short. ``again`` says that another
        process reads there now, which may have the end of what was sent before.
        """
        data = CUT + encode(message, number) if again else encode(message, number)
        with self._lock:
            try:
                self._socket.settimeout(None)
                if descriptors:
                    # They arrive with the first byte, and a reader is stopped after what was sent in the same call.
                    data = data[socket.send_fds(self._socket, [data], descriptors) :]
                self._socket.sendall(data)
            except OSError:
                return False
        return True

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """Returns the next message; None when the other end is gone.

        Raises TimeoutError after ``timeout_s``, and FormatError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._messages:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                data, came = self._take()
            except ConnectionError:
                return None
            if not data:
                return None
            read = self._lines.feed(data)
            if came and not read:
                for descriptor in came:
                    os.close(descriptor)
                raise FormatError(_WHERE, "descriptors without a whole message")
            if came:  # by the last of these, since the kernel ends a read after what carries descriptors
                read[-1] = read[-1]._replace(descriptors=came)
            self._messages += read
        return self._messages.pop(0)

    def _take(self) -> tuple[bytes, tuple[int, ...]]:
        if not self._descriptors:
            return self._socket.recv(_RECEIVE_BYTES), ()
        came = array.array("i")  # socket.recv_fds drops its flags, and with them close-on-exec
        room = socket.CMSG_LEN(self._descriptors * came.itemsize)
        data, ancillary, _flags, _sender = self._socket.recvmsg(_RECEIVE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for _level, _kind, body in ancillary:
            came.frombytes(body[: len(body) - len(body) % came.itemsize])
        return data, tuple(came)

    def shut_down(self) -> None:
        """End the conversation in both directions; the other end, and our own reader, see the end of the stream."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
