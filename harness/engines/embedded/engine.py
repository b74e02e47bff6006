"""This engine, harness side, starts the agent (and a mode's daemon) in the machine and relays what they say."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from harness.engines.confinement import Confinement
from harness.engines.container import RunningContainer
from harness.engines.embedded.messages import (
    FROM_AGENT,
    AgentUp,
    Created,
    Deploy,
    Entered,
    Exited,
    Failed,
    Prepare,
    Prepared,
    Started,
    Stop,
    Stopped,
)
from harness.engines.embedded.modes import Observer, load, parts_of
from harness.engines.embedded.runtime import find_runtime
from harness.engines.programs import find_program
from harness.engines.protocol import Availability, Report
from harness.errors import ColdbenchError, ContentError, MachineError, MissingTool, OutOfMemory, from_kind
from harness.kernel.namespaces import KINDS, Namespaces
from harness.lazyfs.channel import Channel
from harness.lazyfs.control import end, serving
from harness.lazyfs.messages import Span
from harness.model.details import EngineDetails
from harness.model.modes import EMBEDDED, engine_modes, find, lazy_policy, uses_library
from harness.model.policy import PYFUSE3

if TYPE_CHECKING:
    from harness.engines.protocol import Container, DeployRequest, Watch
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.machine.machine import Machine
    from harness.model.engine import EngineChoice
    from harness.model.modes import Mode
    from harness.model.observation import LazyUsage
    from harness.model.timeline import Recorder

START_TIMEOUT_S = 60.0
PREPARE_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 20.0
CHILDREN_TIMEOUT_S = 2.0
LOG_TAIL_BYTES = 4000
_AGENT = "harness.engines.embedded.agent"


class EmbeddedEngine:
    """Implements ``harness.engines.protocol.Engine`` for the modes of ``harness.engines.embedded.modes``.

    The report's ``phase`` is one of ``resolve``, ``pull``, ``mount``, ``create`` and ``start``; its ``details`` are
    what the mode had to say (numbers for the observation).
    """

    def __init__(self, _choice: EngineChoice) -> None:
        self._phase = ""
        self._details = EngineDetails()
        self._agent_requests: int | None = None
        self.image_digest = ""
        self._machine: Machine | None = None
        self._control: Channel | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._observer: Observer | None = None
        self._pipes: list[int] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by tear_down
        self._container: RunningContainer | None = None
        self._namespaces: Namespaces | None = None
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self._deploying = False
        self._system_calls = ""
        self._problems: list[str] = []
        """Whatever went wrong on the side, for the log: nothing of it is swallowed."""
        self._exit_code: int | None = None
        self._exited = threading.Event()
        self._stopped = threading.Event()

    def modes(self) -> tuple[Mode, ...]:
        return engine_modes(EMBEDDED)

    def available(self, mode: str = "", preset: str = "") -> Availability:
        """Says yes wherever crun or runc runs; what a mode needs of the kernel, ``coldbench doctor`` tries out."""
        try:
            program = find_runtime()
        except MissingTool as error:
            return Availability(reason=str(error))
        if mode and uses_library(mode, preset) and find_spec(PYFUSE3) is None:
            return Availability(
                reason=f"preset {preset} needs the library {PYFUSE3}: pip install 'coldbench[{PYFUSE3}]' (built with "
                "libfuse3-dev, pkg-config and gcc)"
            )
        return Availability((find_program(os.path.basename(program), program),))

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Start the processes and wait until they are up. Raises MissingTool, UsageError or MachineError."""
        parts = parts_of(request.mode, request.preset)
        self._machine = machine
        arguments = ["--mode", request.mode, "--cgroup", machine.cgroup_parent]
        inherited: list[socket.socket | int] = []
        try:
            if parts.daemon is not None:
                agent_end, daemon_agent_end = socket.socketpair()
                harness_end, daemon_end = socket.socketpair()
                inherited += [agent_end, daemon_agent_end, daemon_end]
                # On the machine's own disk, with which it goes, whatever becomes of the daemon.
                mountpoint = machine.scratch / "lazyfs"
                machine.outside(mountpoint).mkdir(exist_ok=True)
                ends = ["--agent-fd", str(daemon_agent_end.fileno()), "--harness-fd", str(daemon_end.fileno())]
                library = lazy_policy(request.mode, request.preset).library
                self._daemon = machine.exec_python(
                    parts.daemon,
                    [*ends, "--mountpoint", str(mountpoint), "--library", library],
                    pass_fds=(daemon_agent_end.fileno(), daemon_end.fileno()),
                    stderr=self._log,
                )
                arguments += ["--daemon-fd", str(agent_end.fileno())]
                assert parts.observer is not None
                self._observer = load(parts.observer)(harness_end)
            ours, theirs = socket.socketpair()
            self._control = Channel(ours, FROM_AGENT, descriptors=len(KINDS))
            inherited.append(theirs)
            writers = []
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(reader, False)
                self._pipes.append(reader)
                inherited.append(writer)
                writers.append(writer)
            arguments += ["--control-fd", str(theirs.fileno()), "--output-fds", *map(str, writers)]
            descriptors = [theirs.fileno(), *writers]
            if parts.daemon is not None:
                descriptors.append(agent_end.fileno())
            confinement = Confinement.of(request.process)
            with contextlib.suppress(MissingTool):  # the runtime then translates the profile at each start
                self._system_calls = base64.b64encode(confinement.seccomp_program()).decode()
            devices = confinement.device_rules()
            if devices is not None:
                arguments += ["--container-groups", *machine.confine(devices)]
            self._agent = machine.exec_python(_AGENT, arguments, pass_fds=descriptors, stderr=self._log)
        finally:
            for end in inherited:
                if isinstance(end, int):
                    os.close(end)
                else:
                    end.close()
        self._await_up()
        self._reader = threading.Thread(target=self._read, name="agent-events", daemon=True)
        self._reader.start()
        if find(request.mode).preset(request.preset).before_t0:
            self._prepare(machine, request)

    def _prepare(self, machine: Machine, request: DeployRequest) -> None:
        """Have the image brought before T0, and wait for it."""
        assert self._control is not None
        self._control.send(Prepare(request, self._scratch(machine)))
        try:
            message = self._events.get(timeout=PREPARE_TIMEOUT_S)
        except queue.Empty:
            raise MachineError(f"the image was not on the machine within {PREPARE_TIMEOUT_S:.0f} s") from None
        if isinstance(message, Failed):
            self._phase = message.phase
            raise self._explain(from_kind(message.kind, message.message))
        if not isinstance(message, Prepared):
            raise self._agent_died("while it brought the image")

    @staticmethod
    def _scratch(machine: Machine) -> str:
        return str(machine.scratch / "embedded")

    def _await_up(self) -> None:
        assert self._control is not None
        try:
            received = self._control.receive(START_TIMEOUT_S)
        except TimeoutError:
            raise MachineError(f"the agent did not come up within {START_TIMEOUT_S:.0f} s") from None
        if received is None:
            raise self._agent_died("while it started")
        if isinstance(received.message, Failed):
            raise from_kind(received.message.kind, received.message.message)
        if not isinstance(received.message, AgentUp):
            raise MachineError(f"the agent began with {type(received.message).__name__}")
        if self._observer is not None:
            self._observer.wait_up(START_TIMEOUT_S)

    def _read(self) -> None:
        """Take events off the socket as they come, so that nothing inside ever waits for the harness."""
        assert self._control is not None
        while True:
            try:
                received = self._control.receive()
            except (OSError, ColdbenchError) as error:
                self._problems.append(f"what the agent said could not be read ({error})")
                received = None
            if received is None:
                self._exited.set()
                self._stopped.set()
                self._events.put(None)
                return
            message = received.message
            if isinstance(message, Exited):
                self._exit_code = message.code
                self._exited.set()
            elif isinstance(message, Stopped):
                self._problems += message.problems
                self._stopped.set()
            else:
                if isinstance(message, Created):
                    self._hold(received.descriptors)
                self._events.put(message)

    def _hold(self, descriptors: tuple[int, ...]) -> None:
        """Keep the container's namespaces, which came with the message of its creation."""
        if len(descriptors) == len(KINDS):
            self._namespaces = Namespaces(descriptors)
            return
        for descriptor in descriptors:  # this process has too many open
            os.close(descriptor)
        self._problems.append(f"{len(descriptors)} of {len(KINDS)} of the container's namespaces could be held")

    def deploy(self, machine: Machine, request: DeployRequest, timeline: Recorder, watch: Watch) -> Container:
        """Does as ``protocol.Engine`` says. Spans reach ``timeline`` when they end, so a caller may sample counters
        then.
        """
        assert self._control is not None
        scratch = self._scratch(machine)
        self._phase = "resolve"
        self._deploying = True
        self._control.send(Deploy(request, scratch, timeline.t0_ns, self._system_calls))
        while True:
            message = self._events.get()
            if message is None:
                raise self._agent_died("during the deployment")
            if isinstance(message, Span):
                timeline.add(message.name, message.start_ns, message.end_ns, message.layer, message.detail)
            elif isinstance(message, Entered):
                watch.phase(message.phase)
            elif isinstance(message, Created):
                self._details = EngineDetails.model_validate(message.details.known())
                self._agent_requests = message.details.agent_requests
                output = (self._pipes[0], self._pipes[1])
                held, self._namespaces = self._namespaces, None
                self._container = RunningContainer(message.pid, output, message.root, self._wait_code, held)
                self._pipes = []
                watch.created(self._container)
            elif isinstance(message, Started):
                self.image_digest = message.image
                assert self._container is not None
                self._deploying = False
                return self._container
            elif isinstance(message, Failed):
                self._phase = message.phase
                self._deploying = False
                raise self._explain(from_kind(message.kind, message.message))

    def _wait_code(self, timeout_s: float) -> int | None:
        self._exited.wait(timeout_s)
        return self._exit_code

    def _explain(self, error: ColdbenchError) -> ColdbenchError:
        """What a failure inside really was: memory that ran out shows as anything, changed bytes as I/O errors."""
        return self._out_of_memory() or self._refused_content(error) or error

    def _refused_content(self, error: ColdbenchError) -> ContentError | None:
        """Whether reads failed because the daemon had no good bytes to give: the kernel tells the reader just EIO."""
        if self._observer is None or os.strerror(errno.EIO) not in str(error):
            return None
        try:
            usage = self.lazy_usage()
        except (OSError, ValueError, ColdbenchError) as unknown:
            self._problems.append(f"the daemon's counters: {unknown}")
            return None
        if usage is not None and usage.digest_mismatches:
            why = f"{usage.digest_mismatches} times, bytes of the image did not have the promised digest"
        else:
            why = "the registry did not give the bytes of the image that the index promises"
        return ContentError(f"{why}; the content was changed or cut on the way, and reads of it fail")

    def _out_of_memory(self) -> OutOfMemory | None:
        assert self._machine is not None
        try:
            kills = self._machine.counters().oom_kills
        except (OSError, ColdbenchError) as error:
            self._problems.append(f"the machine's counters: {error}")
            return None
        if not kills:
            return None
        return OutOfMemory(f"the machine ran out of memory ({kills} processes killed); give the shape more")

    def _agent_died(self, when: str) -> ColdbenchError:
        code: int | None = None
        if self._agent is not None:
            try:
                code = self._agent.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                code = None
        oom = self._out_of_memory()
        return oom or MachineError(f"the agent in the machine ended {when} (exit {code})")

    def mark_ready(self) -> None:
        if self._observer is not None:
            self._observer.mark_ready()

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        return True if self._observer is None else self._observer.finish_background(timeout_s, timeline)

    def lazy_usage(self) -> LazyUsage | None:
        return None if self._observer is None else self._observer.lazy_usage()

    def daemon_pids(self) -> tuple[int, ...]:
        return () if self._daemon is None else serving(self._daemon.pid)

    def restart_daemons(self) -> None:
        """Does nothing: a daemon that can be replaced is replaced without being told."""

    def first_touches(self) -> list[Touch]:
        return [] if self._observer is None else self._observer.first_touches()

    def read_ranges(self) -> list[ReadRange]:
        return [] if self._observer is None else self._observer.read_ranges()

    def report(self) -> Report:
        return Report(
            phase=self._phase, requests=self._agent_requests, details=self._details, log_tail=self._log_tail()
        )

    def _log_tail(self) -> str:
        """The end of what agent and daemon have written to stderr so far, and what went wrong out here."""
        return self._written() + "".join(f"engine: {problem}\n" for problem in self._problems)

    def _written(self) -> str:
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode("utf-8", "replace")

    def tear_down(self) -> None:
        """Takes away container, OverlayFS, the mode's mounts and the daemon, in that order, each with a time limit.

        An agent in the middle of a deployment (the user interrupted it) hears nothing: it is killed, and what it had
        mounted goes with the machine's mount namespace.
        """
        if self._agent is not None and self._deploying:
            self._kill(self._agent)
        elif self._control is not None and self._agent is not None and self._agent.poll() is None:
            self._control.send(Stop())
            if self._reader is not None and not self._stopped.wait(STOP_TIMEOUT_S):
                self._kill(self._agent)
        if self._control is not None:
            try:
                self._control.shut_down()
            except OSError:
                pass
        self._end(self._agent)
        if self._deploying:
            self._await_children()
        if self._observer is not None:
            try:
                self._observer.close()
            except Exception as error:
                self._problems.append(f"the daemon's end: {type(error).__name__}: {error}")
        if self._daemon is not None:
            end(self._daemon, STOP_TIMEOUT_S / 2)
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT_S)
        if self._control is not None:
            self._control.close()
        if self._namespaces is not None:  # it was interrupted before the container was made of them
            self._namespaces.close()
        if self._container is not None:
            self._container.close()
        for descriptor in self._pipes:
            os.close(descriptor)
        self._pipes = []
        self._log.close()
        self._control = self._agent = self._daemon = self._observer = self._reader = None

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        """Wait for a process that was told to end; kill it after a while."""
        if process is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill(process)
            process.wait()

    def _await_children(self) -> None:
        """A killed agent's children die with it, but a moment later."""
        deadline = time.monotonic() + CHILDREN_TIMEOUT_S
        ours = set() if self._daemon is None else {self._daemon.pid, *serving(self._daemon.pid)}
        while self._machine is not None and set(self._machine.pids()) - ours and time.monotonic() < deadline:
            time.sleep(0.01)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)


__all__ = ["EmbeddedEngine"]
