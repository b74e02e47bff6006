"""This module runs containerd and dockerd of the harness's own in the machine: all they keep is on its scratch disk.

Nothing of the host's Docker takes part: no ``/etc/docker/daemon.json``, no running containerd, no bridge and no
firewall rules. What either keeps at a fixed place of the host (``/run/containerd``: the shims' sockets) is hidden by a
file system of the machine's own. A dockerd with the rest left as it comes is what is to be measured.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.engines.docker.client import FAILURES, connect
from harness.errors import ColdbenchError, MachineError, OutOfMemory
from harness.kernel import syscalls
from harness.kernel.inside import in_mounts_of

if TYPE_CHECKING:
    import subprocess

    from harness.engines.docker.client import IsolatedClient
    from harness.engines.docker.programs import DockerPrograms
    from harness.machine.machine import Machine

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_BYTES = 4000
SHIM_SOCKETS = Path("/run/containerd")
"""Shims have their sockets here, whatever containerd's configuration says (containerd, defaults.DefaultStateDir)."""

_NO_TRUST_KEY = (24,)
"""From this version on dockerd keeps no key in /etc/docker, and does not know the option that moves it."""

_CONTAINERD_CONFIG = """\
version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
]
[grpc]
  address = {address}
"""


class Daemons:
    """Runs the two daemons of one trial. ``start`` brings them up; ``stop`` ends them and unmounts what they had
    mounted.
    """

    def __init__(self, programs: DockerPrograms) -> None:
        self._programs = programs
        self._machine: Machine | None = None
        self._before: frozenset[int] = frozenset()
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._containerd_log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._asked = (False, "")
        self.directory = Path()

    def start(self, machine: Machine, *, containerd_store: bool, insecure_registry: str) -> IsolatedClient:
        """Start both and wait until dockerd answers. Raises MachineError (or OutOfMemory) with its last words."""
        self._machine = machine
        self._before = frozenset(machine.pids())
        self.directory = machine.scratch / "docker"
        machine.outside(self.directory).mkdir()
        SHIM_SOCKETS.mkdir(mode=0o711, exist_ok=True)  # an empty mount point; the host's own is left as it is
        in_mounts_of(
            machine.namespace_pid,
            lambda: syscalls.mount("tmpfs", str(SHIM_SOCKETS), "tmpfs", syscalls.MS_NODEV | syscalls.MS_NOSUID),
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        self._asked = (containerd_store, insecure_registry)
        self._start_containerd(deadline)
        return self._start_dockerd(deadline, containerd_store, insecure_registry)

    def restart(self) -> None:
        """Starts again what has ended; what they keep is on the disk. Raises MachineError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        containerd, dockerd, self._containerd, self._dockerd = self._containerd, self._dockerd, None, None
        assert containerd is not None
        assert dockerd is not None
        if containerd.poll() is not None:
            self._machine_path(self._containerd_socket).unlink(missing_ok=True)
            self._start_containerd(deadline)
        else:
            self._containerd = containerd
        if dockerd.poll() is not None:
            self._machine_path(self.directory / "dockerd.pid").unlink(missing_ok=True)
            self._start_dockerd(deadline, *self._asked).close()
        else:
            self._dockerd = dockerd

    def _machine_path(self, path: Path) -> Path:
        assert self._machine is not None
        return self._machine.outside(path)

    def _start_containerd(self, deadline: float) -> None:
        assert self._machine is not None
        config = _CONTAINERD_CONFIG.format(
            root=json.dumps(str(self.directory / "containerd")),
            state=json.dumps(str(self.containerd_state)),
            address=json.dumps(str(self._containerd_socket)),
        )
        self._write("containerd.toml", config)
        self._containerd = self._machine.spawn(
            [self._programs.containerd.path, "--config", str(self.directory / "containerd.toml")],
            env=self._environment(),
            stdout=self._containerd_log,
            stderr=self._containerd_log,
        )
        while not self._machine.outside(self._containerd_socket).exists():
            self._check_up(deadline)

    def _start_dockerd(self, deadline: float, containerd_store: bool, insecure_registry: str) -> IsolatedClient:
        assert self._machine is not None
        config: dict[str, Any] = {
            "containerd": str(self._containerd_socket),
            "data-root": str(self.directory / "data"),
            "exec-root": str(self.directory / "exec"),
            "pidfile": str(self.directory / "dockerd.pid"),
            "hosts": [f"unix://{self._socket}"],
            "bridge": "none",
            "userland-proxy": False,  # on by default, it wants its program also where there is no bridge
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": self._machine.cgroup_parent,
            "insecure-registries": [insecure_registry] if insecure_registry else [],
        }
        if not containerd_store:
            config["storage-driver"] = "overlay2"
        if self._programs.version < _NO_TRUST_KEY:
            config["deprecated-key-path"] = str(self.directory / "key.json")
        else:
            config["features"] = {"containerd-snapshotter": containerd_store}
        self._write("daemon.json", json.dumps(config))
        arguments = [self._programs.dockerd.path, "--config-file", str(self.directory / "daemon.json")]
        self._dockerd = self._machine.spawn(arguments, env=self._environment(), stdout=self._log, stderr=self._log)
        outside = str(self._machine.outside(self._socket))
        while True:
            self._check_up(deadline)
            if os.path.exists(outside):
                with suppress(*FAILURES):
                    return connect(outside, timeout_s=None)

    def _check_up(self, deadline: float) -> None:
        """A pause while something comes up. Raises MachineError when a daemon has ended or takes too long."""
        dead = self.dead()
        if dead:
            raise self.why_dead(dead, "while it started")
        if time.monotonic() > deadline:
            raise MachineError(f"Docker did not come up within {START_TIMEOUT_S:.0f} s{self._last_words()}")
        time.sleep(0.01)

    # -- while it runs

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in (self._dockerd, self._containerd) if process is not None)

    @property
    def containerd_state(self) -> Path:
        """Returns where containerd keeps the state of running tasks, as seen inside the machine."""
        return self.directory / "containerd-state"

    def dead(self) -> str:
        """Names a daemon that has ended; empty while both live."""
        for name, process in (("containerd", self._containerd), ("dockerd", self._dockerd)):
            if process is not None and process.poll() is not None:
                return name
        return ""

    def why_dead(self, name: str, when: str) -> ColdbenchError:
        """Makes the error for a daemon that has ended: the machine's memory, if that ran out, else
        its own last words.
        """
        assert self._machine is not None
        with suppress(OSError, ColdbenchError):
            if self._machine.counters().oom_kills:
                return OutOfMemory(f"the machine ran out of memory, and {name} was killed; give the shape more")
        process = self._containerd if name == "containerd" else self._dockerd
        code = process.poll() if process is not None else None
        return MachineError(f"{name} ended {when} (exit {code}){self._last_words(name)}")

    def log_tail(self) -> str:
        """Returns the end of what dockerd, and before it containerd, has written."""
        return _tail(self._containerd_log, LOG_TAIL_BYTES // 4) + _tail(self._log, LOG_TAIL_BYTES)

    def _last_words(self, name: str = "dockerd") -> str:
        lines = _tail(self._containerd_log if name == "containerd" else self._log, LOG_TAIL_BYTES).splitlines()
        return f"; its last words: {lines[-1].strip()}" if lines else ""

    # -- the end

    def stop(self) -> None:
        """Switch it off, as a VM is: kill what was started, unmount what was mounted; idempotent, never raises."""
        machine, self._machine = self._machine, None
        for log in (self._log, self._containerd_log):
            if machine is None:
                log.close()
        if machine is None:
            return
        for process in (self._dockerd, self._containerd):
            if process is not None:
                process.kill()
                process.wait()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (left := set(machine.pids()) - self._before) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.01)
        with suppress(OSError):
            in_mounts_of(machine.namespace_pid, self._unmount)

    def _unmount(self) -> None:
        """Inside the machine: layers, namespaces and the tmpfs, the last mounted first."""
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as file:
            targets = [line.split()[4].encode().decode("unicode_escape") for line in file]
        for target in reversed(targets):
            if target == str(SHIM_SOCKETS) or target.startswith(f"{self.directory}/"):
                with suppress(OSError):
                    syscalls.umount(target, syscalls.MNT_DETACH)

    # -- small parts

    @property
    def _socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def _containerd_socket(self) -> Path:
        return self.directory / "containerd.sock"

    def _write(self, name: str, text: str) -> None:
        assert self._machine is not None
        self._machine.outside(self.directory / name).write_text(text, "utf-8")

    def _environment(self) -> dict[str, str]:
        """What the daemons get: nothing of the user's, who may have set proxies or Docker's own variables."""
        trusted = {name: os.environ[name] for name in ("SSL_CERT_FILE",) if name in os.environ}
        return {"PATH": self._programs.search_path, "HOME": str(self.directory), "LANG": "C.UTF-8", **trusted}


def _tail(file: IO[bytes], size: int) -> str:
    if file.closed:
        return ""
    end = file.seek(0, os.SEEK_END)
    return os.pread(file.fileno(), size, max(0, end - size)).decode("utf-8", "replace")
