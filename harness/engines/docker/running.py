"""This engine tells a Docker that runs already, the user's own, to pull and start one container in the machine's group.

The daemon is outside of the machine, so the shape's CPU, memory and process limits hold for the container alone, and
nothing that the daemon uses is counted. Everything that is made in it is taken away again: the image before and after
each trial, the container by Docker itself when its process ends (``--rm``), also after a kill of the harness.

The container has no network of the host's: none but its loopback, where readiness is knocked at. The image comes from a
relay on the host's loopback, which Docker takes for a registry without TLS whatever its configuration says.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.engines.container import RunningContainer
from harness.engines.docker import client as api
from harness.engines.docker.engine import DockerEngine, storage
from harness.engines.docker.events import EventListener
from harness.engines.docker.streams import OutputStreams
from harness.engines.programs import version_numbers
from harness.engines.protocol import Availability, Program, Report
from harness.errors import ColdbenchError, HostUnfit, MachineError, UsageError
from harness.machine.relay_process import RelayProcess
from harness.machine.shaping import has_netem
from harness.model.modes import DOCKER_OVERLAY2, containerd_store
from harness.model.observation import Invalidity
from harness.model.shape import Distance

if TYPE_CHECKING:
    from harness.engines.protocol import Container, DeployRequest, Watch
    from harness.machine.machine import Machine
    from harness.model.engine import EngineChoice
    from harness.model.timeline import Recorder

_LEAST = (20, 10)
_ANSWER_S = 20.0
_HANG_S = 300.0
"""A pull tells of its progress every few seconds; a daemon that is silent for so long hangs."""
_LOOPBACK = "127.0.0.1:"
_UNCOUNTED = "the container's CPU, memory and processes; not the daemon, bandwidth, disk"


class RunningDocker(DockerEngine):
    """Implements ``harness.engines.protocol.Engine`` with the Docker at ``[engines.docker] host``."""

    def __init__(self, choice: EngineChoice) -> None:
        super().__init__(choice)
        assert choice.engine == "docker"
        self._host = choice.host
        self._address = choice.host.removeprefix("unix://")
        self._listening: api.IsolatedClient | None = None
        self._relay: RelayProcess | None = None
        self._name = ""

    def available(self, mode: str = "", preset: str = "") -> Availability:
        """Says whether it answers, confines containers as the harness can follow, and stores images
        as the preset says.
        """
        try:
            client = api.connect(self._address, _ANSWER_S)
        except api.FAILURES as error:
            found = Program("dockerd", self._host)
            return Availability((found,), f"no Docker answers at {self._host} ({_line(error)}); start it, or mend host")
        try:
            told: dict[str, Any] = client.info()
        except api.FAILURES as error:
            return Availability((), f"Docker at {self._host} does not answer: {_line(error)}")
        finally:
            client.close()
        version = str(told.get("ServerVersion", ""))
        return Availability((Program("dockerd", self._host, version),), self._reason(told, version, mode, preset))

    def _reason(self, told: dict[str, Any], version: str, mode: str, preset: str) -> str:
        who = f"Docker {version} at {self._host}"
        security = " ".join(map(str, told.get("SecurityOptions") or ()))
        if version_numbers(version) < _LEAST:
            return f"{who} is too old: 20.10 or newer is wanted"
        if told.get("CgroupDriver") != "cgroupfs":
            return (
                f"{who} makes control groups through {told.get('CgroupDriver') or 'nobody'}, and no limit of a shape "
                'can hold for those; start it with "exec-opts": ["native.cgroupdriver=cgroupfs"], or leave host out'
            )
        if "rootless" in security or "userns" in security:
            return f"{who} maps users (rootless or userns-remap); its containers cannot be entered. Leave host out"
        wanted = containerd_store(preset)
        if mode and self._stored_otherwise(told, wanted):
            other = next(p.name for p in DOCKER_OVERLAY2.presets if containerd_store(p.name) != wanted)
            return f"{who} keeps images with {storage(told)}; take preset {other}, or another Docker"
        return ""

    # -- before T0

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Connects and removes the image. Raises HostUnfit, UsageError or MachineError, as ``DockerEngine.start``."""
        found = self.available(request.mode, request.preset)
        if found.reason:
            raise HostUnfit(f"engine docker: {found.reason}")
        self._phase = "boot"
        try:
            self._client = api.connect(self._address, _HANG_S)
            self._listening = api.connect(self._address, None)  # nothing may happen for as long as a trial takes
            self._events = EventListener(self._listening)
            self._remove_image(self._client, request)
            self._note(self._client.info())
        except api.FAILURES as error:
            raise api.daemon_failure("info", error) from error
        self._details = self._details.model_copy(update={"limits": _UNCOUNTED})
        address, _, port = machine.registry.rpartition(":")
        # What stands in front of the registry delays already; netem does it on the machine's link, which is not used.
        distance = Distance(rtt_ms=machine.distance.rtt_ms) if has_netem() else Distance()
        self._relay = RelayProcess(_LOOPBACK.rstrip(":"), (address, int(port)), distance)

    def _own_versions(self) -> dict[str, str]:
        return {}

    def _remove_image(self, client: api.IsolatedClient, request: DeployRequest) -> None:
        """Remove what a trial (one that was killed, perhaps) pulled; the user's own copy of the image is an error."""
        for image in client.images():
            for name in image.get("RepoDigests") or ():
                repository, _, digest = str(name).partition("@")
                if digest != request.reference:
                    continue
                if not (repository.startswith(_LOOPBACK) and repository.partition("/")[2] == request.repository):
                    raise UsageError(
                        f"engine docker: the image is in the Docker at {self._host} already, as {repository}; "
                        f"remove it there (docker rmi {repository}) or leave host out: a start would not be cold"
                    )
                client.remove_image(name, force=True)

    # -- T0

    def deploy(self, machine: Machine, request: DeployRequest, timeline: Recorder, watch: Watch) -> Container:
        """Does as ``protocol.Engine`` says."""
        assert self._relay is not None
        registry = f"{_LOOPBACK}{self._relay.port}"
        self._name = f"{registry}/{request.repository}@{request.reference}"
        container = super().deploy(machine, replace(request, registry=registry), timeline, watch)
        if container.pid and container.exited_at_ns() is None and container.pid not in machine.pids():
            raise MachineError(
                f"the Docker at {self._host} did not put the container into the machine's control group, so that no "
                "limit holds for it; leave host out"
            )
        return container

    def _host_options(self, machine: Machine) -> dict[str, Any]:
        return {"network_mode": "none", "cgroup_parent": machine.cgroup_parent, "auto_remove": True}

    def _attach(self, client: api.IsolatedClient, machine: Machine) -> RunningContainer:
        try:
            connection = client.attach_socket(self._id, params={"stdout": 1, "stderr": 1, "stream": 1})
        except api.FAILURES as error:
            raise api.daemon_failure("attach", error) from error
        self._streams = OutputStreams(connection)
        output = (self._streams.stdout, self._streams.stderr)
        return RunningContainer(0, output, "/", self._exit_code, own_network=True)

    def _start(self, client: api.IsolatedClient, machine: Machine, container: RunningContainer) -> None:
        self._started_ns = time.monotonic_ns()
        try:
            client.start(self._id)
        except api.FAILURES as error:
            raise api.start_failure("start", api.explain(error)) from error
        pid = 0
        with suppress(*api.FAILURES):  # a process that has ended: its container has gone with it
            pid = int(client.inspect_container(self._id)["State"]["Pid"])
        try:
            container.watch(pid)
        except (ProcessLookupError, OSError):
            self._ended_unseen(container)

    def _death(self, when: str) -> ColdbenchError | None:
        return None  # whether it lives, its own words say

    def daemon_pids(self) -> tuple[int, ...]:
        return ()

    def report(self) -> Report:
        """Reports; layers that were there already make the start a warm one, so that it does not count."""
        invalid: tuple[Invalidity, ...] = ()
        if existing := self._details.layers_existing:
            reason = f"{existing} layer(s) were in the Docker at {self._host} already, from another image"
            invalid = (Invalidity(rule="cache-not-cold", reason=reason),)
        return Report(phase=self._phase, details=self._details, invalid=invalid)

    def tear_down(self) -> None:
        """Take the container and the image away; a daemon that does not answer is left alone after a while."""
        client, self._client = self._client, None
        if client is not None:
            client.timeout = _ANSWER_S
            if self._id:
                with suppress(*api.FAILURES):
                    client.remove_container(self._id, force=True)
            if self._name:
                self._await_gone(client)
                with suppress(*api.FAILURES):
                    client.remove_image(self._name, force=True)
        self._let_go()
        for each in (client, self._listening):
            if each is not None:
                each.close()
        self._listening = None
        if self._relay is not None:
            self._relay.stop()

    def _await_gone(self, client: api.IsolatedClient) -> None:
        """Docker removes an ended container by itself, and refuses for so long to remove its image."""
        deadline = time.monotonic() + _ANSWER_S
        while self._id and time.monotonic() < deadline:
            try:
                client.inspect_container(self._id)
            except api.FAILURES:
                return
            time.sleep(0.02)


def _line(error: Exception) -> str:
    return " ".join(api.explain(error).split())
