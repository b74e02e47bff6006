"""This module tells crun or runc what to do through an OCI bundle: create, start, kill, delete.

With crun the container stays in the caller's control group (``--cgroup-manager=disabled``); runc cannot be told that
and makes a group below the machine's, which is charged just so. The network namespace is the machine's either way.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import MachineError, MissingTool, WorkloadError
from harness.kernel.overlay import unmount

if TYPE_CHECKING:
    from harness.engines.embedded.launcher import Launcher

_TIMEOUT_S = 120.0


def find_runtime() -> str:
    """Returns the path of crun, else of runc; MissingTool with the line that installs the former."""
    found = shutil.which("crun") or shutil.which("runc")
    if found is None:
        raise MissingTool("neither crun nor runc is installed; install one with: apt-get install crun")
    return found


def makes_groups(program: str) -> bool:
    """Says whether this runtime insists on a control group of the container's own (``linux.cgroupsPath``)."""
    return os.path.basename(program) == "runc"


def prepare_cgroup_view(root: str = "/sys/fs/cgroup") -> None:
    """Let crun run on a hybrid host: it refuses one whose version 2 hierarchy holds a controller (hugetlb, often).

    Takes that hierarchy out of *this mount namespace*, where nobody uses it; does nothing in the parent's own.
    """
    unified = os.path.join(root, "unified")
    try:
        with open(os.path.join(unified, "cgroup.controllers")) as file:
            controllers = file.read().strip()
    except OSError:
        return
    if controllers and os.readlink("/proc/self/ns/mnt") != os.readlink(f"/proc/{os.getppid()}/ns/mnt"):
        unmount(unified)


@dataclass(slots=True)
class Runtime:
    """Runs one container of one bundle; its state lies below ``state`` (on the machine's scratch disk)."""

    program: str
    state: str
    cgroup: str = ""
    """Names the control group of the container within each hierarchy, where the runtime makes one."""
    name: str = "coldbench"
    launcher: Launcher | None = None
    """This launcher starts the runtime in the group whose device list is the container's."""
    pid: int = 0
    _alive: bool = field(default=False, init=False)

    def create(self, bundle: str, stdout: int, stderr: int) -> int:
        """Creates the container with these descriptors as its output; returns the pid of its init, which waits for
        ``start``.
        """
        os.makedirs(self.state, exist_ok=True)
        pid_file = os.path.join(self.state, "pid")
        self._alive = True
        self._call("create", "--bundle", bundle, "--pid-file", pid_file, self.name, stdout=stdout, stderr=stderr)
        with open(pid_file) as file:
            self.pid = int(file.read())
        return self.pid

    def start(self) -> None:
        """Let the container's process run."""
        self._call("start", self.name)

    def delete(self) -> None:
        """Kills and deletes; idempotent, quiet about a container that is gone."""
        if not self._alive:
            return
        self._alive = False
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            self._call("delete", "--force", self.name)
        except MachineError:
            pass
        if self.cgroup:
            # runc also makes the group's parent, in the hierarchies that the machine is not in, and leaves it there.
            # Where the machine is, this process is, too, and the kernel refuses.
            for directory in glob.glob(f"/sys/fs/cgroup/*{os.path.dirname(self.cgroup)}"):
                try:
                    os.rmdir(directory)
                except OSError:
                    pass

    def _call(self, *arguments: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL) -> None:
        log = os.path.join(self.state, "log")
        name = os.path.basename(self.program)
        command = [self.program, "--root", os.path.join(self.state, "root"), "--log", log]
        if not makes_groups(self.program):
            command.append("--cgroup-manager=disabled")
        try:
            code = self._run([*command, *arguments], stdout, stderr)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise MachineError(f"{name} {arguments[0]} did not end within {_TIMEOUT_S:.0f} s") from None
        if code:
            reason = self._last_line(log)
            text = f"{name} {arguments[0]} failed (exit {code}): {reason or 'no reason given'}"
            raise (WorkloadError if arguments[0] in ("create", "start") else MachineError)(text)

    def _run(self, argv: list[str], stdout: int, stderr: int) -> int:
        if self.launcher is None or stdout == subprocess.DEVNULL:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=_TIMEOUT_S, check=False
            )
            return done.returncode
        return self.launcher.run(argv, stdout, stderr, _TIMEOUT_S)

    @staticmethod
    def _last_line(path: str) -> str:
        try:
            with open(path, errors="replace") as file:
                lines = [line.strip() for line in file if line.strip()]
        except OSError:
            return ""
        return lines[-1] if lines else ""
