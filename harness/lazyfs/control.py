"""This module is the other side of the daemon's sockets, used by the agent, the harness and the command line."""

from __future__ import annotations

import os
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
    """Asks the daemon over a control socket. It answers in any order; here one call at a time waits.

    A daemon that took over from one that died says ``Up`` once more: what was not answered is asked again.
    """

    def __init__(self, end: socket.socket) -> None:
        self._channel = Channel(end, ANSWERS)
        self._lock = threading.Lock()
        self._number = 0
        self._up: Up | None = None
        self.gone = False
        """Says that neither a daemon nor anybody who would start one is there any more."""

    def wait_up(self, timeout_s: float = 30.0) -> Up:
        """Returns the daemon's greeting; raises MachineError when it does not come."""
        if self._up is None:
            greeting = self._receive(time.monotonic() + timeout_s).message
            if not isinstance(greeting, Up):
                raise MachineError(f"the lazyfs daemon began with {type(greeting).__name__}")
            self._up = greeting
        return self._up

    def call(self, request: Request[A], timeout_s: float = 600.0) -> A:
        """Sends one request and returns its answer.

        Raises what the daemon raised; MachineError when it is gone or late.
        """
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self.wait_up(timeout_s)
            self._number += 1
            self._ask(request, again=False)
            while (answer := self._receive(deadline)).number != self._number:
                if isinstance(answer.message, Up):
                    self._up = answer.message
                    self._ask(request, again=True)
                # else it is the answer to a call that was given up
        message = answer.message
        if isinstance(message, Refused):
            raise from_kind(message.kind, message.message)
        if not isinstance(message, request.answer):
            raise MachineError(f"the lazyfs daemon answered with {type(message).__name__}")
        return cast("A", message)

    def _ask(self, request: object, *, again: bool) -> None:
        if not self._channel.send(request, self._number, again=again):
            self.gone = True
            raise MachineError("the lazyfs daemon is gone (it ended or was killed)")

    def _receive(self, deadline: float) -> Received:
        try:
            received = self._channel.receive(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise MachineError("the lazyfs daemon does not answer") from None
        except (OSError, FormatError) as error:
            raise MachineError(f"the lazyfs daemon is gone ({error})") from None
        if received is None:
            self.gone = True
            raise MachineError("the lazyfs daemon is gone (it ended or was killed)")
        return received

    def close(self) -> None:
        """Ask the daemon to end and close the socket; silent when it is gone."""
        try:
            self.call(End(), timeout_s=END_TIMEOUT_S)
        except ColdbenchError:
            pass
        self._channel.close()


def end(holder: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for a holder whose daemon was asked to end; what is stuck is killed, the daemon before its holder."""
    try:
        holder.wait(timeout_s)
        return
    except subprocess.TimeoutExpired:
        holder.terminate()
    try:
        holder.wait(timeout_s)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()


def serving(holder: int) -> tuple[int, ...]:
    """Returns the pid of the daemon at the moment.

    That is the holder's own while it starts another one, and none when it has ended.
    """
    found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == holder]
    return tuple(found) or ((holder,) if _parent(holder) else ())


def _parent(pid: int) -> int:
    """Returns the parent of a process that runs; 0 for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state in {"Z", "X"} else int(parent)


def spawn(mountpoint: str | None = None, library: str = "") -> tuple[subprocess.Popen[bytes], DaemonClient]:
    """Start a daemon as a child of this process (command line, tests); the engine starts its own in the machine.

    The process is the holder's, which the daemon's end ends (``harness.lazyfs.holder``); ``Up`` names the daemon's.
    ``library`` names what speaks FUSE, where that is not our own session (``LazyPolicy.library``).
    """
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-m", "harness.lazyfs.holder", "--harness-fd", str(theirs.fileno())]
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
