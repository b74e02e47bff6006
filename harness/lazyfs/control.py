"""The other side of the daemon's sockets: used by the agent, the harness and the command line."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeVar, cast

from harness.errors import ColdbenchError, FormatError, MachineError, from_kind
from harness.lazyfs.channel import Channel
from harness.lazyfs.messages import ANSWERS, End, Refused, Up

if TYPE_CHECKING:
    from harness.lazyfs.channel import Received
    from harness.lazyfs.messages import Request

A = TypeVar("A")

END_TIMEOUT_S = 5.0


class DaemonClient:
    """One end of a control socket. The daemon answers in any order; here one call at a time waits."""

    def __init__(self, end: socket.socket) -> None:
        self._channel = Channel(end, ANSWERS)
        self._lock = threading.Lock()
        self._number = 0
        self._up: Up | None = None

    def wait_up(self, timeout_s: float = 30.0) -> Up:
        """The daemon's greeting; MachineError when it does not come."""
        if self._up is None:
            greeting = self._receive(time.monotonic() + timeout_s).message
            if not isinstance(greeting, Up):
                raise MachineError(f"the lazyfs daemon began with {type(greeting).__name__}")
            self._up = greeting
        return self._up

    def call(self, request: Request[A], timeout_s: float = 600.0) -> A:
        """One request and its answer. Raises what the daemon raised; MachineError when it is gone or late."""
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self.wait_up(timeout_s)
            self._number += 1
            if not self._channel.send(request, self._number):
                raise MachineError("the lazyfs daemon is gone (it ended or was killed)")
            while (answer := self._receive(deadline)).number != self._number:
                pass  # the answer to a call that was given up
        message = answer.message
        if isinstance(message, Refused):
            raise from_kind(message.kind, message.message)
        if not isinstance(message, request.answer):
            raise MachineError(f"the lazyfs daemon answered with {type(message).__name__}")
        return cast("A", message)

    def _receive(self, deadline: float) -> Received:
        try:
            received = self._channel.receive(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise MachineError("the lazyfs daemon does not answer") from None
        except (OSError, FormatError) as error:
            raise MachineError(f"the lazyfs daemon is gone ({error})") from None
        if received is None:
            raise MachineError("the lazyfs daemon is gone (it ended or was killed)")
        return received

    def close(self) -> None:
        """Ask the daemon to end and close the socket; silent when it is gone."""
        try:
            self.call(End(), timeout_s=END_TIMEOUT_S)
        except ColdbenchError:
            pass
        self._channel.close()


def spawn(mountpoint: str | None = None, library: str = "") -> tuple[subprocess.Popen[bytes], DaemonClient]:
    """Start a daemon as a child of this process (command line, tests); the engine starts its own in the machine.

    ``library`` names what speaks FUSE, where that is not our own session (``LazyPolicy.library``).
    """
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-m", "harness.lazyfs.daemon", "--harness-fd", str(theirs.fileno())]
    if mountpoint is not None:
        arguments += ["--mountpoint", mountpoint]
    if library:
        arguments += ["--library", library]
    # In a session of its own, so that Ctrl-C reaches the parent alone, which then unmounts in the right order.
    process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
    theirs.close()
    client = DaemonClient(ours)
    client.wait_up()
    return process, client
