"""This module knocks on a port from inside the machine's network, by a thread that entered its namespace.

The thread belongs to the harness: what it costs is not the machine's. Network namespaces are per thread (setns(2)).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from harness.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERVAL_S = 0.002
"""A knocker pauses for so long between two tries: with the try itself, readiness is seen well within 5 ms."""

ANSWER_TIMEOUT_S = 10.0
"""A server that took a connection but does not answer is asked anew after this long."""

_STATUS_LINE_BYTES = 512


class Knocker:
    """Tries a port until it answers as wanted, then calls ``ready(time_ns)`` once from its thread.

    ``namespace_pid`` gives a process in the network to knock from, 0 as long as there is none.
    ``status`` None: a connection that is taken is enough. Else: ``GET path`` has to be answered with that status.
    ``failed(error)`` is called when the namespace cannot be entered.
    """

    def __init__(
        self,
        namespace_pid: Callable[[], int],
        addresses: Sequence[str],
        port: int,
        ready: Callable[[int], object],
        failed: Callable[[OSError], object],
        *,
        path: str = "/",
        status: int | None = None,
    ) -> None:
        self.last_answer = ""
        """Holds what the port said last, for the message when it never was the right thing."""
        self._namespace_pid = namespace_pid
        self._addresses = tuple(addresses)
        self._port = port
        self._ready = ready
        self._failed = failed
        self._path = path
        self._status = status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="knocker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops knocking; idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import os

        while not (pid := self._namespace_pid()):
            if self._stop.wait(INTERVAL_S):
                return
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWNET)
            finally:
                os.close(namespace)
        except OSError as error:
            self._failed(error)
            return
        while True:
            for address in self._addresses:
                if self._knock(address):
                    self._ready(time.monotonic_ns())
                    return
            if self._stop.wait(INTERVAL_S):
                return

    def _knock(self, address: str) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as peer:
            peer.setblocking(False)
            try:
                peer.connect((address, self._port))
            except BlockingIOError:
                if not self._wait(peer, select.POLLOUT, 1.0):
                    return False
            except OSError:
                return False
            number = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                return False
            # The next try begins here: what the last one was answered says more.
            self.last_answer = self.last_answer or "a connection"
            if self._status is None:
                return True
            try:
                return self._ask(peer, address)
            except OSError:
                return False

    def _ask(self, peer: socket.socket, address: str) -> bool:
        host = f"[{address}]" if ":" in address else address
        peer.sendall(
            f"GET {self._path} HTTP/1.1\r\nHost: {host}:{self._port}\r\nUser-Agent: coldbench\r\n"
            f"Accept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        line = b""
        while b"\n" not in line and len(line) < _STATUS_LINE_BYTES:
            if not self._wait(peer, select.POLLIN, ANSWER_TIMEOUT_S):
                return False
            data = peer.recv(_STATUS_LINE_BYTES)
            if not data:
                return False
            line += data
        words = line.split(b"\n")[0].split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            self.last_answer = "something that is not HTTP"
            return False
        self.last_answer = f"status {int(words[1])}"
        return int(words[1]) == self._status

    def _wait(self, peer: socket.socket, event: int, timeout_s: float) -> bool:
        """Waits for ``event`` on the socket, but no longer than until ``close``."""
        poller = select.poll()
        poller.register(peer, event)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if poller.poll(50):
                return True
            if self._stop.is_set():
                return False
        return False
