"""The engine seam: deploy(machine, request) -> a running container, and tear-down.

An engine brings its daemons up inside the machine *before* T0 (a VM boots with them), is told at T0 what to deploy,
reports spans as they happen, and gives its counters. It never decides readiness: the probes do, from outside the
machine's CPU quota, so that watching costs the machine nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.machine.machine import Machine
    from harness.model.observation import LazyUsage, WorkloadResult
    from harness.model.timeline import Recorder


@dataclass(frozen=True, slots=True)
class Process:
    """Overrides of the image's own config; None or empty means "as the image says"."""

    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """What the machine is told at T0.

    ``registry`` is ``host:port`` as reached from inside the machine, ``repository`` and ``digest`` (or tag in
    ``reference``) name the image there. ``options`` are the mode's policies (see ``harness.model.policy``), by name.
    ``prefetch`` is an ordered list of paths recorded by an earlier trial.
    """

    registry: str
    repository: str
    reference: str
    mode: str
    preset: str
    process: Process
    scheme: str = "http"
    platform: str = "linux/amd64"
    options: dict[str, Any] = field(default_factory=dict)
    prefetch: tuple[str, ...] = ()
    trace: bool = False
    credentials: dict[str, str] = field(default_factory=dict)
    routes: tuple[str, ...] = ()
    """How the machine reaches the registry and its other hosts (``harness.oci.registry.places``); empty: as named."""


class Container(Protocol):
    """A started container. File descriptors and pids are valid in the harness's own namespaces."""

    @property
    def pid(self) -> int:
        """Pid of the container's init process."""
        ...

    @property
    def root(self) -> str:
        """The container's root file system in the machine's mount namespace; it outlives the process."""
        ...

    @property
    def stdout(self) -> int:
        """Read end of the container's stdout (non-blocking); the caller drains it."""
        ...

    @property
    def stderr(self) -> int: ...

    def exit_code(self, timeout_s: float) -> int | None:
        """The exit code once the init process has ended, None if it has not within ``timeout_s``."""
        ...

    def exited_at_ns(self) -> int | None:
        """CLOCK_MONOTONIC time at which the exit was seen (pidfd, outside the quota), None while it runs."""
        ...


class Engine(Protocol):
    """Implements modes. One object serves one trial; every method may raise ``harness.errors.ColdbenchError``."""

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Bring the daemons up inside and wait until they can be told to deploy; nothing of the image yet."""
        ...

    def deploy(
        self,
        machine: Machine,
        request: DeployRequest,
        timeline: Recorder,
        created: Callable[[Container], None] = lambda _container: None,
    ) -> Container:
        """T0 is now: get the root file system there and start the container; returns once its process runs.

        ``created`` is told when the container exists and its process does not run yet, so that whoever watches it is
        there from the first instant.
        """
        ...

    def mark_ready(self) -> None:
        """Told at readiness, so that counters 'before ready' are frozen and background fetch may begin."""
        ...

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        """Wait for the background fetch to end; True if it did (True at once where there is none)."""
        ...

    def lazy_usage(self) -> LazyUsage | None:
        """Counters of the lazy-pulling daemon; None for a mode that has none."""
        ...

    def daemon_pids(self) -> tuple[int, ...]:
        """Pids (harness's namespace) of the daemons that serve the root file system; empty for overlay2."""
        ...

    def first_touches(self) -> list[dict[str, Any]]:
        """Reads in first-touch order, ``{"path", "layer", "offset", "size", "t_s"}``, if the request asked for them."""
        ...

    def tear_down(self) -> None:
        """Stop the container and the daemons, unmount in the right order; idempotent; never raises."""
        ...


class WorkloadRunner(Protocol):
    """Runs the run-time workloads of a scenario in a container that is ready."""

    def run(self, machine: Machine, engine: Engine, container: Container, *, evicted: bool) -> list[WorkloadResult]:
        """Called twice: right after readiness, and (``evicted``) when the background fetch has ended."""
        ...
