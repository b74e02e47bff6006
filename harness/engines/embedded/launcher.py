"""This process starts the container runtime inside the group with the container's device list.

The agent itself stays outside of that group: mounting an image may take a loop device, which no container may have. The
launcher is forked and moved before T0, because moving costs a grace period of the kernel (0.2 to 16 ms, measured), and
a runtime's container stays in the group it was started in. Its children's orphans are the agent's, who is a subreaper.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from harness.errors import MachineError
from harness.kernel.syscalls import set_parent_death_signal

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_BYTES = 1 << 16
_TIMED_OUT = "timed out"


class Launcher:
    """Holds one child. Fork it while the process has one thread only, and after it became a subreaper."""

    def __init__(self, entry_files: Sequence[str]) -> None:
        """Moves the child into a group by its ``entry_files``. MachineError when that is refused."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(theirs, entry_files, parent)
        theirs.close()
        said = self._socket.recv(_MAX_BYTES).decode()
        if said != "up":
            raise MachineError(f"cannot enter the group of confined processes: {said or 'the launcher ended'}")

    def close(self) -> None:
        """Ends the child and waits for it, so that nothing of it is left when the agent has ended."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):  # the agent, a subreaper, has waited for it
            os.waitpid(self._pid, 0)

    def run(self, argv: Sequence[str], stdout: int, stderr: int, timeout_s: float) -> int:
        """Runs a program to its end with these outputs and returns its exit code.

        Raises TimeoutError after ``timeout_s``, when it is killed; MachineError when the launcher is gone.
        """
        request = json.dumps({"argv": list(argv), "timeout_s": timeout_s}).encode()
        try:
            socket.send_fds(self._socket, [request], [stdout, stderr])
            answer = self._socket.recv(_MAX_BYTES).decode()
        except OSError as error:
            raise MachineError(f"the process that starts containers is gone ({error.strerror})") from None
        if answer == _TIMED_OUT:
            raise TimeoutError
        if not answer.removeprefix("-").isdigit():
            raise MachineError(answer or "the process that starts containers is gone")
        return int(answer)


def _serve(end: socket.socket, entry_files: Sequence[str], parent: int) -> None:
    """The child's life: one request after the other, until the agent closes its end or dies."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        # The agent's descriptors are not its own: a container's output would never end as long as it held them.
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != end.fileno():
                with contextlib.suppress(OSError):  # the one that listed them
                    os.close(int(name))
        try:
            for path in entry_files:
                with open(path, "w", encoding="ascii") as file:
                    file.write("0")
        except OSError as error:
            end.send(f"{error.strerror}: {error.filename}".encode())
            os._exit(1)
        end.send(b"up")
        while True:
            data, descriptors, _flags, _address = socket.recv_fds(end, _MAX_BYTES, 2)
            if not data:
                os._exit(0)
            end.send(_run(json.loads(data), descriptors).encode())
            for descriptor in descriptors:
                os.close(descriptor)
    finally:
        os._exit(1)


def _run(request: dict[str, object], descriptors: Sequence[int]) -> str:
    argv, timeout_s = request["argv"], request["timeout_s"]
    assert isinstance(argv, list)
    assert isinstance(timeout_s, float)
    stdout, stderr = descriptors
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return _TIMED_OUT
    except OSError as error:
        return f"cannot run {argv[0]}: {error.strerror}"
    return str(done.returncode)
