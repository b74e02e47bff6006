"""The other side of the daemon's sockets: used by the agent, the harness and the command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from harness.errors import ColdbenchError, MachineError, from_kind


class DaemonClient:
    """One end of a control socket. Calls are answered in any order by the daemon, one at a time here."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._buffer = b""
        self._id = 0
        self._up: dict[str, Any] | None = None

    def wait_up(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """The daemon's greeting (``pid``, ``root``); MachineError when it does not come."""
        if self._up is None:
            self._up = self._receive(time.monotonic() + timeout_s)
        return self._up

    def call(self, kind: str, timeout_s: float = 600.0, **fields: Any) -> dict[str, Any]:
        """One request and its answer. Raises what the daemon raised; MachineError when it is gone or late."""
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self.wait_up(timeout_s)
            self._id += 1
            data = json.dumps({"do": kind, "id": self._id, **fields}, separators=(",", ":")).encode() + b"\n"
            try:
                self._socket.settimeout(timeout_s)
                self._socket.sendall(data)
            except OSError as error:
                raise MachineError(f"the lazyfs daemon is gone ({error.strerror or error})") from None
            while True:
                answer = self._receive(deadline)
                if answer.get("id") == self._id:
                    break
            if "error" in answer:
                raise from_kind(answer["error"]["kind"], answer["error"]["message"])
            return answer

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError("the lazyfs daemon does not answer")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                raise MachineError("the lazyfs daemon does not answer") from None
            except OSError as error:
                raise MachineError(f"the lazyfs daemon is gone ({error.strerror or error})") from None
            if not data:
                raise MachineError("the lazyfs daemon is gone (it ended or was killed)")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Ask the daemon to end and close the socket; silent when it is gone."""
        try:
            self.call("end", timeout_s=10.0)
        except ColdbenchError:
            pass
        self._socket.close()


def spawn(mountpoint: str | None = None) -> tuple[subprocess.Popen[bytes], DaemonClient]:
    """Start a daemon as a child of this process (command line, tests); the engine starts its own in the machine."""
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-m", "harness.lazyfs.daemon", "--harness-fd", str(theirs.fileno())]
    if mountpoint is not None:
        arguments += ["--mountpoint", mountpoint]
    # In a session of its own, so that Ctrl-C reaches the parent alone, which then unmounts in the right order.
    process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
    theirs.close()
    client = DaemonClient(ours)
    client.wait_up()
    return process, client
