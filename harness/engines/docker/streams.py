"""This module gives a container's output as two pipes: it takes apart what Docker sends over its attached connection.

Docker puts stdout and stderr on one connection, each piece behind a header of eight bytes (stream number, three zeros,
big-endian length); a probe wants a descriptor for each. A thread of the harness copies, outside the machine's quota.

Source: Docker Engine API, ContainerAttach, "Stream format".
"""

from __future__ import annotations

import os
import select
import struct
import threading
from typing import Protocol

_HEADER = struct.Struct(">BxxxL")
_STDERR = 2
_CHUNK = 1 << 16


class Connection(Protocol):
    """This is what the SDK gives: a socket, or a file of one."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class OutputStreams:
    """Copies from an attached connection into pipes until it ends or ``close``; ``stdout``/``stderr`` are read ends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.stdout, self._stdout_writer = _pipe()
        self.stderr, self._stderr_writer = _pipe()
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="docker-output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop copying and close everything but the read ends, which belong to the container; idempotent."""
        if self._stop_writer >= 0:
            os.close(self._stop_writer)
            self._stop_writer = -1
            self._thread.join()
            os.close(self._stop_reader)
            self._connection.close()

    def _run(self) -> None:
        try:
            while (header := self._read(_HEADER.size)) is not None:
                stream, left = _HEADER.unpack(header)
                target = self._stderr_writer if stream == _STDERR else self._stdout_writer
                while left:
                    piece = self._read(min(left, _CHUNK))
                    if piece is None or not self._write(target, piece):
                        return
                    left -= len(piece)
        except OSError:
            pass  # the daemon is gone, or nobody reads any more
        finally:
            os.close(self._stdout_writer)
            os.close(self._stderr_writer)

    def _read(self, size: int) -> bytes | None:
        """Exactly so many bytes; None at the end, or when told to stop."""
        data = b""
        while len(data) < size:
            ready, _, _ = select.select([self._connection.fileno(), self._stop_reader], [], [])
            if self._stop_reader in ready:
                return None
            piece = os.read(self._connection.fileno(), size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def _write(self, target: int, data: bytes) -> bool:
        """All of it into a pipe, waiting for its reader; False when told to stop."""
        view = memoryview(data)
        while view:
            stopped, ready, _ = select.select([self._stop_reader], [target], [])
            if stopped:
                return False
            if ready:
                try:
                    view = view[os.write(target, view[: select.PIPE_BUF]) :]
                except BlockingIOError:
                    continue
        return True


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return reader, writer
