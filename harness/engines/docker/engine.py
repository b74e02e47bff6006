"""This engine starts Docker in the machine before T0, pulls and runs at T0, and tells what it saw.

The client is the harness, outside the machine's quota: what it costs is not Docker's. The daemon is told what
``docker run`` tells it: pull, create, attach, start.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from harness.engines.container import RunningContainer
from harness.engines.docker import client as api
from harness.engines.docker import programs
from harness.engines.docker.daemon import Daemons
from harness.engines.docker.events import EventListener
from harness.engines.docker.pull import PullProgress
from harness.engines.docker.root import EarlyLook
from harness.engines.docker.streams import OutputStreams
from harness.engines.protocol import Availability, Report
from harness.errors import ColdbenchError, HostUnfit, MachineError, UsageError
from harness.model.details import EngineDetails
from harness.model.modes import DOCKER, containerd_store, engine_modes

if TYPE_CHECKING:
    from harness.engines.protocol import Container, DeployRequest, Process, Watch
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.machine.machine import Machine
    from harness.model.engine import EngineChoice
    from harness.model.modes import Mode
    from harness.model.observation import LazyUsage
    from harness.model.timeline import Recorder

EVENT_TIMEOUT_S = 30.0
_CODE_WAIT_S = 10.0


class DockerEngine:
    """Implements ``harness.engines.protocol.Engine`` with a dockerd of the harness's own."""

    def __init__(self, choice: EngineChoice) -> None:
        assert choice.engine == "docker"
        self._choice = choice
        self._programs = programs.find(choice)
        self._daemons = Daemons(self._programs)
        self._client: api.IsolatedClient | None = None
        self._events: EventListener | None = None
        self._streams: OutputStreams | None = None
        self._look: EarlyLook | None = None
        self._container: RunningContainer | None = None
        self._id = ""
        self._phase = ""
        self._details = EngineDetails()

    def modes(self) -> tuple[Mode, ...]:
        return engine_modes(DOCKER)

    def available(self, mode: str = "", preset: str = "") -> Availability:
        store = bool(mode) and containerd_store(preset)
        return programs.availability(self._programs, self._choice, containerd_store=store)

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Does as ``protocol.Engine`` says. Raises HostUnfit where Docker cannot run here, MachineError when it does
        not.
        """
        found = self.available(request.mode, request.preset)
        if found.reason:
            raise HostUnfit(f"engine docker: {found.reason}")
        if request.routes:
            raise UsageError(
                "engine docker pulls from the session's own registry only: dockerd cannot be led through the relays "
                "that stand for a registry elsewhere; leave --registry out"
            )
        self._phase = "boot"
        store = containerd_store(request.preset)
        insecure = request.registry if request.scheme == "http" else ""
        self._client = self._daemons.start(machine, containerd_store=store, insecure_registry=insecure)
        try:
            self._events = EventListener(self._client)
            self._check_store(self._client.info(), store)
        except api.FAILURES as error:
            raise api.daemon_failure("info", error) from error

    def _check_store(self, told: dict[str, Any], store: bool) -> None:
        """Docker may fall back to another way of storing images without an error: then it is not what was asked."""
        if self._stored_otherwise(told, store):
            raise MachineError(
                f"dockerd keeps images with {storage(told)}, not with "
                f"{'overlayfs of containerd' if store else 'overlay2'}"
            )
        self._note(told)

    @staticmethod
    def _stored_otherwise(told: dict[str, Any], store: bool) -> bool:
        return storage(told) != ("overlayfs of containerd" if store else "overlay2")

    def _note(self, told: dict[str, Any]) -> None:
        version = str(told.get("ServerVersion", ""))
        self._details = EngineDetails(
            docker_version=version,
            versions={**self._own_versions(), "docker": version},
            storage_driver=str(told.get("Driver", "")),
        )

    def _own_versions(self) -> dict[str, str]:
        """Returns the versions of the programs it starts itself."""
        return {program.name: program.version for program in self._programs.all if program.version}

    def deploy(self, machine: Machine, request: DeployRequest, timeline: Recorder, watch: Watch) -> Container:
        """Does as ``protocol.Engine`` says."""
        assert self._client is not None
        self._phase = "pull"
        image = self._pull(self._client, request, timeline)
        self._enter("create", watch)
        began_ns = time.monotonic_ns()
        self._create(self._client, image, request, machine)
        self._span(timeline, "create", began_ns)
        container = self._container = self._attach(self._client, machine)
        watch.created(container)
        self._enter("start", watch)
        self._start(self._client, machine, container)
        self._span(timeline, "start", self._started_ns)
        return container

    def _enter(self, phase: Any, watch: Watch) -> None:
        self._phase = phase
        watch.phase(phase)

    def _pull(self, client: api.IsolatedClient, request: DeployRequest, timeline: Recorder) -> str:
        """Pull and follow its progress; the name under which the image can be run."""
        repository = f"{request.registry}/{request.repository}"
        separator = "@" if ":" in request.reference else ":"
        progress = PullProgress(timeline, request.layers)
        try:
            stream = client.pull(
                repository,
                tag=request.reference,
                stream=True,
                decode=True,
                auth_config=api.auth_config(request.credentials),
            )
            for line in stream:
                progress.feed(line)
        except api.FAILURES as error:
            progress.finish()
            raise self._death("in the pull") or api.pull_failure(api.explain(error)) from error
        progress.finish()
        if progress.error:
            raise self._death("in the pull") or api.pull_failure(progress.error)
        if progress.existing:
            self._details = self._details.model_copy(update={"layers_existing": progress.existing})
        return f"{repository}{separator}{request.reference}"

    def _host_options(self, _machine: Machine) -> dict[str, Any]:
        """Options of the container that are not the image's or the scenario's."""
        return {"network_mode": "host"}

    def _create(self, client: api.IsolatedClient, image: str, request: DeployRequest, machine: Machine) -> None:
        process = request.process
        options: dict[str, Any] = {}
        if process.args:
            # As the embedded engine has it: the arguments replace the image's whole command line.
            options |= {"entrypoint": [process.args[0]], "command": list(process.args[1:])}
        try:
            made = client.create_container(
                image,
                environment=[f"{name}={value}" for name, value in process.env.items()],
                working_dir=process.cwd,
                user=process.user,
                host_config=client.create_host_config(**self._host_options(machine), **_asked(process)),
                use_config_proxy=False,
                **options,
            )
        except api.FAILURES as error:
            raise self._death("while it made the container") or api.start_failure(
                "create", api.explain(error)
            ) from error
        self._id = str(made["Id"])

    def _attach(self, client: api.IsolatedClient, machine: Machine) -> RunningContainer:
        try:
            connection = client.attach_socket(self._id, params={"stdout": 1, "stderr": 1, "stream": 1})
        except api.FAILURES as error:
            raise self._death("while it made the container") or api.daemon_failure("attach", error) from error
        self._streams = OutputStreams(connection)
        root = self._daemons.directory / "root"
        output = (self._streams.stdout, self._streams.stderr)
        container = RunningContainer(0, output, str(root), self._exit_code)
        self._look = EarlyLook(
            machine, self._id, state=self._daemons.containerd_state, root=root, found=container.watch
        )
        return container

    def _start(self, client: api.IsolatedClient, machine: Machine, container: RunningContainer) -> None:
        assert self._look is not None
        self._started_ns = time.monotonic_ns()
        try:
            client.start(self._id)
        except api.FAILURES as error:
            self._look.finish()
            raise self._death("while it started the container") or api.start_failure(
                "start", api.explain(error)
            ) from error
        self._look.finish()
        if not self._look.pid:
            self._ended_unseen(container)

    def _ended_unseen(self, container: RunningContainer) -> None:
        """No pid was to be had while the process ran: Docker's word for when it ended has to do."""
        assert self._events is not None
        ended_ns = self._events.await_time("die", self._id, EVENT_TIMEOUT_S)
        if ended_ns is None:
            raise MachineError("the container's process is not to be found, and Docker has not told of its end")
        container.ended(ended_ns)

    def _span(self, timeline: Recorder, name: str, began_ns: int) -> None:
        """A span that ends when Docker says so, in its event."""
        assert self._events is not None
        at_ns = self._events.await_time(name, self._id, EVENT_TIMEOUT_S)
        timeline.add(name, began_ns, max(began_ns, at_ns or time.monotonic_ns()))

    def _exit_code(self, timeout_s: float) -> int | None:
        assert self._events is not None
        self._events.await_time("die", self._id, min(timeout_s, _CODE_WAIT_S))
        return self._events.exit_code(self._id)

    def _death(self, when: str) -> ColdbenchError | None:
        """The error for a daemon that has ended, None while they live: then Docker's own words count."""
        time.sleep(0.05)  # the connection breaks a moment before the process can be waited for
        name = self._daemons.dead()
        return self._daemons.why_dead(name, when) if name else None

    def mark_ready(self) -> None:
        """Does nothing: nothing goes on in the background."""

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        return True

    def lazy_usage(self) -> LazyUsage | None:
        return None

    def daemon_pids(self) -> tuple[int, ...]:
        return self._daemons.pids

    def restart_daemons(self) -> None:
        """Starts containerd and dockerd again, with the same configuration. Raises MachineError."""
        self._daemons.restart()

    def first_touches(self) -> list[Touch]:
        return []

    def read_ranges(self) -> list[ReadRange]:
        return []

    def report(self) -> Report:
        return Report(phase=self._phase, details=self._details, log_tail=self._daemons.log_tail())

    def tear_down(self) -> None:
        """Kills it all, then lets go of what the harness holds; see ``Daemons.stop``."""
        if self._look is not None:
            self._look.finish()
        self._daemons.stop()
        self._let_go()
        if self._client is not None:
            self._client.close()
        self._client = None

    def _let_go(self) -> None:
        """Closes what the harness holds of events, output and container."""
        if self._events is not None:
            self._events.close()
        if self._streams is not None:
            self._streams.close()
        if self._container is not None:
            self._container.close()


def storage(told: dict[str, Any]) -> str:
    """Says how a daemon keeps images, by what it says of itself."""
    status = {str(key): str(value) for key, value in told.get("DriverStatus") or ()}
    whose = " of containerd" if "containerd" in status.get("driver-type", "") else ""
    return f"{told.get('Driver') or 'an unknown driver'}{whose}"


def _asked(process: Process) -> dict[str, Any]:
    """What the container may do that differs from Docker's default, as its options."""
    # As under every other engine: a program of the image gains no rights by set-user-ID bits.
    asked: dict[str, Any] = {"privileged": True} if process.privileged else {"security_opt": ["no-new-privileges"]}
    if process.capabilities:
        asked["cap_add"] = list(process.capabilities)
    if process.devices:
        asked["devices"] = [f"{path}:{path}:rwm" for path in process.devices]
    return asked
