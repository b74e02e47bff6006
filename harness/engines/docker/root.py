"""The container's process and root file system, found from outside before the process runs.

Docker tells the pid only when the container has started, and unmounts the root file system when it has ended. A probe
wants the first sooner, and run-time workloads the second later. The shim writes the pid to a file before the process
runs; by it the mount is found in the machine's mount table, and bound to a place where Docker leaves it alone.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from harness.kernel import syscalls
from harness.kernel.inside import in_mounts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.machine.machine import Machine

_MS_BIND = 4096
_POLL_S = 0.002
_NAMESPACE = "moby"


class EarlyLook:
    """Waits for the pid of a container about to start, holds its root, and hands the pid to ``found``.

    ``state`` is where containerd keeps its tasks, ``root`` where the root file system is to be bound, both as seen
    inside the machine.
    """

    def __init__(
        self, machine: Machine, container: str, *, state: Path, root: Path, found: Callable[[int], None]
    ) -> None:
        self._machine = machine
        self._file = machine.outside(state / "io.containerd.runtime.v2.task" / _NAMESPACE / container / "init.pid")
        self._root = root
        self._found = found
        self.pid = 0
        self.held = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="docker-early-look", daemon=True)
        self._thread.start()

    def finish(self, pid: int = 0) -> None:
        """The start is over: with the pid that Docker tells, if nothing was seen before. Idempotent."""
        self._stop.set()
        self._thread.join()
        if not self.pid and pid:
            self._look(pid)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            text = ""
            with suppress(OSError):
                text = self._file.read_text("ascii")
            if text.strip().isdigit():
                self._look(int(text))
                return

    def _look(self, pid: int) -> None:
        with suppress(ProcessLookupError):  # it has ended: the daemon's event says when
            self._found(pid)
            self.pid = pid
        with suppress(OSError):
            device = os.stat(f"/proc/{pid}/root").st_dev
            self.held = in_mounts_of(self._machine.namespace_pid, lambda: self._bind(device))

    def _bind(self, device: int) -> bool:
        """Inside the machine: bind the mount of that device to the place of ours. False when there is none."""
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = [line.split() for line in file]
        for fields in mounts:
            if fields[2] == wanted and fields[3] == "/":
                self._root.mkdir(exist_ok=True)
                syscalls.mount(fields[4].encode().decode("unicode_escape"), str(self._root), None, _MS_BIND)
                return True
        return False
