"""This module drains a container's stdout and stderr so that it never blocks on them, searches them for a line, keeps
the end.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TAIL_BYTES = 4096
#: How many lines a message quotes, and how much of each.
_WORDS_LINES = 3
_WORDS_CHARACTERS = 200
MAX_LINE_BYTES = 1 << 16
"""A longer line is searched in pieces of this size: memory stays bounded whatever a container writes."""

_READ_BYTES = 1 << 16


class OutputReader:
    """Reads both streams on a thread until they end or ``close``.

    ``matched(time_ns)`` is called once, from that thread, when a line of ``stream`` (``stdout`` or ``stderr``)
    matches ``pattern`` (``re.search``; the newline is not part of the line); the last line counts without one, too.
    """

    def __init__(
        self,
        stdout: int,
        stderr: int,
        *,
        stream: str = "",
        pattern: str = "",
        matched: Callable[[int], object] | None = None,
    ) -> None:
        self._names = {stdout: "stdout", stderr: "stderr"}
        self._stream = stream
        self._pattern = re.compile(pattern.encode()) if stream else None
        self._matched = matched
        self._tail = bytearray()
        self._errors = bytearray()
        self._line = bytearray()
        self._lock = threading.Lock()
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="container-output", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """Returns the last ``TAIL_BYTES`` of both streams, in the order they were read."""
        with self._lock:
            return bytes(self._tail).decode(errors="replace")

    def last_words(self) -> str:
        """Returns the last lines that say something, in one line: of stderr, else of stdout.

        The order of what comes on both at once is not to be known; a program that fails says why on stderr. One line is
        not enough: many programs end what they have to say with a bracket or their version.
        """
        with self._lock:
            kept = bytes(self._errors), bytes(self._tail)
        for said in kept:
            lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
            if lines:
                return " | ".join(line[:_WORDS_CHARACTERS] for line in lines[-_WORDS_LINES:])
        return ""

    def await_end(self, timeout_s: float) -> bool:
        """Waits, and says whether both streams have ended (every process that held them is gone)
        within ``timeout_s``.
        """
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        """Stops reading; idempotent. The descriptors stay open: they are the container's."""
        if self._stop_writer >= 0:
            os.close(self._stop_writer)
            self._stop_writer = -1
            self._thread.join()
            os.close(self._stop_reader)

    def _run(self) -> None:
        poller = select.poll()
        open_streams = set(self._names)
        for descriptor in open_streams:
            poller.register(descriptor, select.POLLIN)
        poller.register(self._stop_reader, 0)  # its hang-up is the signal
        try:
            while open_streams:
                for descriptor, _event in poller.poll():
                    if descriptor == self._stop_reader:
                        return
                    if not self._read(descriptor):
                        poller.unregister(descriptor)
                        open_streams.discard(descriptor)
        finally:
            self._ended.set()

    def _read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end of the stream."""
        now_ns = time.monotonic_ns()
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        with self._lock:
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            if self._names[descriptor] == "stderr":
                self._errors += data
                del self._errors[:-TAIL_BYTES]
        if self._pattern is not None and self._names[descriptor] == self._stream:
            self._search(data, now_ns)
        return bool(data)

    def _search(self, data: bytes, now_ns: int) -> None:
        assert self._pattern is not None
        self._line += data
        *lines, rest = bytes(self._line).split(b"\n")
        if not data or len(rest) > MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._line = bytearray(rest)
        if any(self._pattern.search(line.rstrip(b"\r")) for line in lines):
            self._pattern = None
            if self._matched is not None:
                self._matched(now_ns)
