"""This module finds the container's process and root file system from outside, before the process runs.

Docker tells the pid only when the container has started, and unmounts the root file system when it has ended. A probe
wants the first sooner, and run-time workloads the second later. The shim writes the pid to a file before the process
runs. The mount shows in the machine's mount table before that, and is bound to a place where Docker leaves it alone.
"""

from __future__ import annotations

import select
import threading
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from harness.kernel import syscalls
from harness.kernel.inside import in_mounts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.machine.machine import Machine

_MS_BIND = 4096
_POLL_MS = 2
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
        # Read here and not by the thread, which may come to run late: what is mounted now is not the container's.
        self._table = open(f"/proc/{machine.namespace_pid}/mountinfo", "rb", buffering=0)  # noqa: SIM115 - closed by _run
        self._before = _overlays(_read_all(self._table))
        self._thread = threading.Thread(target=self._run, name="docker-early-look", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Ends the look when the start is over: what was not seen by now is not to be seen. Idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._table as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)
            last = False
            while not last and not (self.pid and self.held):
                last = self._stop.is_set()  # once more then: the start may be over before this thread came to run
                if changes.poll(_POLL_MS) and not self.held:
                    table.seek(0)
                    self._hold(_overlays(_read_all(table)) - self._before)
                if not self.pid:
                    self._look()

    def _hold(self, new: set[str]) -> None:
        """Bind the first overlay that was mounted since the start was asked for: it is the container's root."""
        for mounted in new:
            with suppress(OSError):
                in_mounts_of(self._machine.namespace_pid, lambda mounted=mounted: self._bind(mounted))  # type: ignore[misc]
                self.held = True
                return

    def _bind(self, mounted: str) -> None:
        self._root.mkdir(exist_ok=True)
        syscalls.mount(mounted, str(self._root), None, _MS_BIND)

    def _look(self) -> None:
        text = ""
        with suppress(OSError):
            text = self._file.read_text("ascii")
        if text.strip().isdigit():
            with suppress(ProcessLookupError):  # it has ended: the daemon's event says when
                self._found(int(text))
                self.pid = int(text)


def _read_all(file: IO[bytes]) -> bytes:
    return b"".join(iter(lambda: file.read(1 << 16), b""))


def _overlays(mountinfo: bytes) -> set[str]:
    """Mount points of all OverlayFS mounts (proc_pid_mountinfo(5))."""
    found = set()
    for line in mountinfo.decode("utf-8", "replace").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("overlay "):
            found.add(left.split()[4].encode().decode("unicode_escape"))
    return found
