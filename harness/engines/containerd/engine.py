"""This engine brings containerd and a snapshotter up before T0, then pulls one image and starts one container, all
counted.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.engines.confinement import Confinement
from harness.engines.container import RunningContainer
from harness.engines.containerd import configuration as config
from harness.engines.containerd import daemons, fallback, metrics, programs
from harness.engines.containerd.failures import explain
from harness.engines.containerd.messages import Deploy, Stop
from harness.engines.protocol import Report
from harness.errors import ColdbenchError, MachineError, MissingTool, OutOfMemory, UsageError
from harness.kernel.namespaces import Namespaces
from harness.model import modes
from harness.model.details import EngineDetails
from harness.model.engine import ContainerdChoice
from harness.model.observation import LazyUsage
from harness.model.policy import Snapshotter, SnapshotterPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engines.containerd.daemons import Daemon, Helper
    from harness.engines.protocol import Availability, DeployRequest, Watch
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.machine.machine import Machine
    from harness.model.modes import Mode
    from harness.model.observation import Invalidity
    from harness.model.timeline import Recorder

NAME = "containerd"
NAMESPACE = "coldbench"
CONTAINER = "c1"
#: Background fetch has ended when so long no byte came. stargz begins 5 s after the last read (the silence period of
#: its task manager), SOCI 30 s after it (silence_period_msec).
_QUIET_S = {Snapshotter.STARGZ: 10.0, Snapshotter.SOCI: 35.0}
_QUIET_BYTES = 20_000
_WATCH_S = 0.5


def _policy(mode: str, preset: str) -> SnapshotterPolicy:
    policy = modes.find(mode, NAME).preset(preset).snapshotter
    assert policy is not None, "containerd's presets all have one"
    return policy


@dataclass
class _Pulled:
    """What the helper said of the pull."""

    layers: fallback.Layers = field(default_factory=lambda: fallback.Layers((), frozenset()))
    known: bool = False


class ContainerdEngine:
    """Implements ``harness.engines.protocol.Engine`` with the real programs."""

    def __init__(self, choice: ContainerdChoice | None = None) -> None:
        self._choice = choice or ContainerdChoice()
        self._machine: Machine | None = None
        self._policy: SnapshotterPolicy
        self._snapshotter = Snapshotter.OVERLAYFS
        self._lazy = False
        self._phase = ""
        self._daemons: list[Daemon] = []
        self._served: Daemon | None = None
        self._helper: Helper | None = None
        self._container: RunningContainer | None = None
        self._readers: list[int] = []
        self._writers: list[int] = []
        self._pulled = _Pulled()
        self._deploying = False
        self._at_ready: dict[str, float] = {}
        self._versions: dict[str, str] = {}

    # -- what it can do

    def modes(self) -> tuple[Mode, ...]:
        return modes.engine_modes(NAME)

    def available(self, mode: str = "", preset: str = "") -> Availability:
        return programs.check(self._choice, _policy(mode or self.modes()[0].name, preset).snapshotter)

    # -- before T0

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Bring containerd, the snapshotter's daemon and the helper up.

        Raises:
            MissingTool, UsageError, MachineError: a program is missing, the registry is not ours, a daemon fails.
        """
        self._machine = machine
        policy = self._policy = _policy(request.mode, request.preset)
        snapshotter = self._snapshotter = policy.snapshotter
        self._lazy = policy.lazy
        found = programs.locate(self._choice, snapshotter)
        available = programs.check(self._choice, snapshotter)
        if available.reason:
            raise MissingTool(f"engine containerd: {available.reason}")
        self._versions = {program.name: program.version for program in available.programs}
        if request.routes or request.credentials:
            raise UsageError("engine containerd pulls from the session's own registry only; leave --registry out")
        places = self._places(machine)
        self._write_configuration(machine, request)
        environment = {"PATH": found.path, "HOME": str(places.home), "LANG": "C.UTF-8", "TMPDIR": str(places.home)}
        environment["XDG_RUNTIME_DIR"] = str(places.home)
        if snapshotter in programs.DAEMONS:
            argv = [found.daemon, "--address", str(places.snapshotter_socket)]
            argv += ["--root", str(places.snapshotter_root), "--config", str(places.snapshotter_config)]
            self._served = self._launch(machine, found.daemon_name.rpartition("/")[2], argv, environment)
            daemons.await_socket(machine, self._served, places.snapshotter_socket)
        containerd = [found.containerd, "--config", str(places.containerd_config)]
        daemon = self._launch(machine, "containerd", containerd, environment)
        daemons.await_socket(machine, daemon, places.containerd_socket)
        self._helper = daemons.Helper.start(machine, found.helper, places.containerd_socket, environment)
        for name in ("stdout", "stderr"):
            self._open_output(machine, places.root / name)
        self._runtime = found.runtime
        daemons.settle(machine)

    def _launch(self, machine: Machine, name: str, argv: list[str], environment: dict[str, str]) -> Daemon:
        daemon = daemons.start(machine, name, argv, environment)
        self._daemons.append(daemon)
        return daemon

    @staticmethod
    def _places(machine: Machine) -> config.Places:
        return config.Places(machine.scratch / "ctd")

    def _write_configuration(self, machine: Machine, request: DeployRequest) -> None:
        places, snapshotter = self._places(machine), self._snapshotter
        plain = request.scheme == "http"
        for directory in (places.root, places.home, places.root / "s"):
            machine.outside(directory).mkdir(mode=0o700)
        text = config.containerd_config(
            places, snapshotter, proxied=snapshotter in programs.DAEMONS, parallel=self._policy.parallel,
            platform=request.platform, labels=self._labels,
        )  # fmt: skip
        machine.outside(places.containerd_config).write_text(text, "utf-8")
        if snapshotter is Snapshotter.STARGZ:
            text = config.stargz_config(request.registry, plain_http=plain)
        else:
            text = config.soci_config(
                places, request.registry, plain_http=plain, parallel_pull=self._policy.parallel_pull
            )
        machine.outside(places.snapshotter_config).write_text(text, "utf-8")
        machine.outside(places.root / "hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost\n", "ascii")
        machine.outside(places.root / "resolv.conf").write_text("", "ascii")

    #: Whether containerd tells the snapshotter image and layers by labels; a test leaves them out.
    _labels = True

    def _open_output(self, machine: Machine, path: Path) -> None:
        """A named pipe that the shim writes to and we read; without a writer a reader would see its end at once."""
        outside = machine.outside(path)
        os.mkfifo(outside, 0o600)
        self._readers.append(os.open(outside, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        self._writers.append(os.open(outside, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    # -- T0

    def deploy(self, machine: Machine, request: DeployRequest, timeline: Recorder, watch: Watch) -> RunningContainer:
        """Does as ``protocol.Engine`` says. Times of spans are containerd's own, from its events."""
        assert self._helper is not None
        places = self._places(machine)
        self._phase = "pull"
        self._deploying = True
        joint = "@" if ":" in request.reference else ":"
        process = request.process
        self._helper.send(
            Deploy(
                reference=f"{request.registry}/{request.repository}{joint}{request.reference}",
                scheme=request.scheme, platform=request.platform, snapshotter=self._snapshotter, id=CONTAINER,
                cgroup=f"/{machine.cgroup_parent.strip('/')}/{CONTAINER}", args=process.args,
                env=tuple(f"{key}={value}" for key, value in process.env.items()), cwd=process.cwd or "",
                user=process.user or "", hosts=str(places.root / "hosts"), resolv=str(places.root / "resolv.conf"),
                stdout=str(places.root / "stdout"), stderr=str(places.root / "stderr"), runtime=self._runtime,
                runtime_root=str(places.root / "runc"),
                capabilities=process.capabilities, devices=process.devices, privileged=process.privileged,
                seccomp=Confinement.of(process).seccomp(),
            )
        )  # fmt: skip
        while (message := self._helper.messages.get()) is not None:
            if message.event == "span":
                timeline.add(message.name, message.start_ns, message.end_ns, message.layer, message.detail)
            elif message.event == "pulled":
                self._pulled = _Pulled(fallback.Layers(message.sizes, frozenset(message.unpacked)), known=True)
            elif message.event == "phase":
                self._phase = message.name
                watch.phase("create" if message.name == "create" else "start")
            elif message.event == "created":
                output = (self._readers[0], self._readers[1])
                root = str(places.rootfs(NAMESPACE, CONTAINER))
                held = self._held(message.namespaces)
                self._container = RunningContainer(0, output, root, self._helper.wait_code, held)
                self._readers = []
                self._helper.tell_exit(self._container.ended)
                with suppress(ProcessLookupError):  # the helper does not wait for us: it may have run and ended
                    self._container.watch(message.pid)
                watch.created(self._container)
            elif message.event == "started":
                self._deploying = False
                self._close_writers()
                assert self._container is not None
                return self._container
            elif message.event == "failed":
                self._deploying = False
                self._phase = message.phase
                error = explain(message.phase, message.kind, message.message)
                raise self._out_of_memory() or self._died() or error
        raise self._out_of_memory() or self._died() or MachineError("the helper for containerd ended in a deployment")

    def _held(self, descriptors: tuple[int, ...]) -> Namespaces | None:
        """The container's namespaces, which the helper opened before its process ran."""
        assert self._helper is not None
        pid, opened = self._helper.daemon.pid, []
        try:
            for descriptor in descriptors:
                opened.append(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC))
            return Namespaces(opened) if opened else None
        except OSError:  # the helper has ended, as its next message will not say
            for descriptor in opened:
                os.close(descriptor)
            return None

    def _close_writers(self) -> None:
        for descriptor in self._writers:
            os.close(descriptor)
        self._writers = []

    def _died(self) -> MachineError | None:
        for daemon in self._daemons:
            if daemon.process.poll() is not None:
                code = daemon.process.returncode
                how = f"killed by signal {-code}" if code < 0 else f"exit {code}"
                return MachineError(f"{daemon.name} ended in the deployment ({how}): {daemon.last_line()}")
        return None

    def _out_of_memory(self) -> OutOfMemory | None:
        assert self._machine is not None
        try:
            kills = self._machine.counters().oom_kills
        except (OSError, ColdbenchError):
            return None
        what = f"the machine ran out of memory ({kills} processes killed); give the shape more"
        return OutOfMemory(what) if kills else None

    # -- afterwards

    def mark_ready(self) -> None:
        """Does nothing: the snapshotter's background fetch needs no word from us."""

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        """Waits until no byte came for so long that nothing will: the snapshotters do not tell when they are done."""
        quiet_s = _QUIET_S.get(self._snapshotter)
        if quiet_s is None or not self._lazy:
            return True
        assert self._machine is not None
        begun = last = time.monotonic()
        received = self._machine.wire().received_bytes
        while (now := time.monotonic()) - last < quiet_s:
            if now - begun > timeout_s:
                return False
            time.sleep(_WATCH_S)
            seen = self._machine.wire().received_bytes
            if seen - received > _QUIET_BYTES:
                received, last = seen, time.monotonic()
        timeline.add("background", int(begun * 1e9), int(last * 1e9))
        return True

    def lazy_usage(self) -> LazyUsage | None:
        """Says what became of the layers; None for a full pull. The rest only the daemons know, see ``report``.

        Asked first at readiness: what the snapshotter's counters say then is kept.
        """
        if not self._lazy or not self._pulled.known:
            return None
        if not self._at_ready:
            self._at_ready = self._read_metrics()
        layers = self._pulled.layers
        return LazyUsage(
            layers_lazy=layers.lazy, layers_unpacked=len(layers.unpacked), fuse=None, memory_peak_bytes=None, cpu_s=None
        )

    def daemon_pids(self) -> tuple[int, ...]:
        return (self._served.pid,) if self._served is not None and self._lazy else ()

    def restart_daemons(self) -> None:
        """Starts the snapshotter's daemon with the same arguments over the same directories. Raises MachineError."""
        assert self._machine is not None
        dead = self._served
        if dead is None or dead.process.poll() is None:
            return
        self._machine.outside(self._places(self._machine).snapshotter_socket).unlink(missing_ok=True)
        self._served = dead.again(self._machine)
        self._daemons[self._daemons.index(dead)] = self._served
        daemons.await_socket(self._machine, self._served, self._places(self._machine).snapshotter_socket)

    def first_touches(self) -> list[Touch]:
        return []

    def read_ranges(self) -> list[ReadRange]:
        return []

    def report(self) -> Report:
        """Reports versions, the snapshotter's counters, the end of the logs, and whether it fell
        back to a full pull.
        """
        details = EngineDetails(versions=self._versions)
        counted = {"snapshotter_metrics_at_ready": self._at_ready, "snapshotter_metrics": self._read_metrics()}
        details = details.model_copy(update={name: found for name, found in counted.items() if found})
        invalid: tuple[Invalidity, ...] = ()
        if self._lazy and self._pulled.known:
            log = self._served.text(1 << 20) if self._served is not None else ""
            invalid = fallback.found(self._snapshotter, self._pulled.layers, log)
        tail = "\n".join(text for daemon in self._processes() if (text := daemon.text().strip()))
        return Report(phase=self._phase, details=details, log_tail=tail[-daemons.LOG_TAIL_BYTES :], invalid=invalid)

    def _read_metrics(self) -> dict[str, float]:
        if self._served is None or self._machine is None or self._served.process.poll() is not None:
            return {}
        return metrics.read(self._machine.namespace_pid, config.METRICS_PORTS[self._snapshotter])

    def _processes(self) -> list[Daemon]:
        return [*self._daemons, *([self._helper.daemon] if self._helper is not None else [])]

    def tear_down(self) -> None:
        """Has containerd itself remove container, snapshots and shim; then ends helper, containerd and the
        snapshotter's daemon.

        In the middle of a deployment nobody listens: all are ended, and what they mounted goes with the machine's
        mount namespace.
        """
        helper = self._helper
        if helper is not None and not self._deploying and helper.daemon.process.poll() is None:
            try:
                helper.send(Stop())
                helper.stopped.wait(2 * daemons.STOP_TIMEOUT_S)
            except MachineError:
                pass
        if helper is not None:
            helper.end()
        for daemon in reversed(self._daemons):
            daemon.end()
        if self._machine is not None:
            daemons.unmount_below(self._machine, self._places(self._machine).root)
        if self._container is not None:
            self._container.close()
        self._close_writers()
        for descriptor in self._readers:
            os.close(descriptor)
        self._readers = []
        self._daemons, self._helper, self._container, self._served = [], None, None, None


__all__ = ["ContainerdEngine"]
