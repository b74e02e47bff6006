"""This module is the engine seam: what a container engine says, is told and reports, whichever it is.

An engine says what it can do and whether it can run here, before anything is planned. It brings its daemons up inside
the machine *before* T0 (a VM boots with them), is told at T0 what to deploy, says which phase it is in, reports spans
as they happen, and gives what counters it has. It never decides readiness: the probes do, from outside the machine's
CPU quota, so that watching costs the machine nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harness.lazyfs.messages import FileRange, Option  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from harness.kernel.namespaces import Namespaces
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.machine.machine import Machine
    from harness.model.details import EngineDetails
    from harness.model.modes import Mode
    from harness.model.observation import Invalidity, LazyUsage, Phase, WorkloadResult
    from harness.model.timeline import Recorder


@dataclass(frozen=True, slots=True)
class Program:
    """Names a program an engine runs: where it was found and its version; empty where it was not, or does not tell."""

    name: str
    path: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'of unknown version'}" if self.path else f"{self.name} (not found)"


@dataclass(frozen=True, slots=True)
class Availability:
    """Says whether an engine can run here.

    ``reason`` is empty when it can; else one line that says what is missing or wrong, with the version found, and how
    to install or build what is wanted.
    """

    programs: tuple[Program, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Holds what an engine has to say about its trial so far; None stands for what it cannot know.

    ``phase`` names what it was at when ``deploy`` raised (finer than the phases that are charged: ``resolve`` …).
    ``requests`` counts what its own clients sent to the registry. ``details`` are further facts for the
    observation, ``log_tail`` the end of what its processes wrote to stderr. ``invalid`` holds reasons of its own why
    the trial does not count, such as a snapshotter that unpacked what it should have served.
    """

    details: EngineDetails
    phase: str = ""
    requests: int | None = None
    log_tail: str = ""
    invalid: tuple[Invalidity, ...] = ()


class Watch(Protocol):
    """Whoever watches a deployment is told of it as it happens, from the thread that runs ``deploy``."""

    def phase(self, name: Phase) -> None:
        """Tells that this phase begins now (``pull`` has begun at T0); counters are read at this moment."""
        ...

    def created(self, container: Container) -> None:
        """Tells that the container exists and its process does not run yet: watchers are there from
        the first instant.
        """
        ...


class Unwatched:
    """This ``Watch`` serves deployments that nobody measures."""

    def phase(self, name: Phase) -> None: ...

    def created(self, container: Container) -> None: ...


@dataclass(frozen=True, slots=True)
class Process:
    """Overrides the image's own config; None or empty means "as the image says"."""

    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    capabilities: tuple[str, ...] = ()
    """Lists full names (``CAP_…``), beyond Docker's default set."""
    devices: tuple[str, ...] = ()
    """Lists device nodes of the host that the container finds at the same paths, and may use."""
    privileged: bool = False
    """It is True for a container without any confinement of ``harness.engines.confinement``."""


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """Says what the machine is told at T0.

    ``registry`` is ``host:port`` as reached from inside the machine, ``repository`` and ``digest`` (or tag in
    ``reference``) name the image there. ``options`` are the mode's policies (see ``harness.model.policy``), by name.
    ``prefetch`` is an ordered list of paths, ``reads`` what an earlier trial recorded: it goes before the list.
    """

    registry: str
    repository: str
    reference: str
    mode: str
    preset: str
    process: Process
    scheme: str = "http"
    platform: str = "linux/amd64"
    options: dict[str, Option] = field(default_factory=dict)
    prefetch: tuple[str, ...] = ()
    reads: tuple[FileRange, ...] = ()
    trace: bool = False
    credentials: dict[str, str] = field(default_factory=dict)
    index: str = ""
    """Names the index that preparation made, by its digest, for a mode whose index stands beside the image; empty for
    any.
    """
    routes: tuple[str, ...] = ()
    """Says how the machine reaches the registry and its other hosts
    (``harness.oci.registry.places``); empty: as named.
    """
    layers: tuple[str, ...] = ()
    """Lists digests of the image's layers, the lowest first, for engines that name layers by them; empty: not known."""


class Container(Protocol):
    """Stands for a container, from its creation on. File descriptors and pids are valid in the harness's own
    namespaces.
    """

    @property
    def pid(self) -> int:
        """Returns the pid of the container's init process; 0 where an engine does not know it
        before the process runs.
        """
        ...

    @property
    def root(self) -> str:
        """Returns the container's root file system in the machine's mount namespace; it outlives the process."""
        ...

    @property
    def namespaces(self) -> Namespaces | None:
        """Returns its process's namespaces, held since that was seen, also when it has ended. None if it never was."""
        ...

    @property
    def own_network(self) -> bool:
        """Says whether its network namespace is its own, and not the machine's."""
        ...

    @property
    def stdout(self) -> int:
        """Returns the read end of the container's stdout (non-blocking); the caller drains it."""
        ...

    @property
    def stderr(self) -> int: ...

    def exit_code(self, timeout_s: float) -> int | None:
        """Returns the exit code once the init process has ended, None if it has not within ``timeout_s``."""
        ...

    def exited_at_ns(self) -> int | None:
        """Returns the CLOCK_MONOTONIC time at which the exit was seen (pidfd, outside the quota),
        None while it runs.
        """
        ...


class Engine(Protocol):
    """Implements modes. One object serves one trial; every method may raise ``harness.errors.ColdbenchError``."""

    def modes(self) -> tuple[Mode, ...]:
        """Returns the modes it implements, its full pull first (``harness.model.modes``)."""
        ...

    def available(self, mode: str = "", preset: str = "") -> Availability:
        """Says whether it can run here at all, or this mode and preset of it; quick, and asked before anything is
        planned.

        An empty ``preset`` stands for the mode's default one.
        """
        ...

    def start(self, machine: Machine, request: DeployRequest) -> None:
        """Brings the daemons up inside and waits until they can be told to deploy; it touches
        nothing of the image yet.
        """
        ...

    def deploy(self, machine: Machine, request: DeployRequest, timeline: Recorder, watch: Watch) -> Container:
        """Deploys, for T0 is now: gets the root file system there and starts the container; returns once its process
        runs.

        ``watch`` hears when the phases ``create`` and ``start`` begin, and of the container when it exists.
        """
        ...

    def mark_ready(self) -> None:
        """Hears of readiness, so that counters 'before ready' are frozen and background fetch may begin."""
        ...

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        """Waits for the background fetch to end; True if it did (True at once where there is none)."""
        ...

    def lazy_usage(self) -> LazyUsage | None:
        """Returns counters of the lazy-pulling daemon, as far as it tells; None for a mode that has none."""
        ...

    def daemon_pids(self) -> tuple[int, ...]:
        """Returns the pids (harness's namespace) of the daemons that serve the root file system now; empty for a full
        pull.

        Where one has died and another takes its place, the pid is the other's, or that of who starts it.
        """
        ...

    def restart_daemons(self) -> None:
        """Starts the daemons again that were killed, as an init system would; raises MachineError where it cannot.

        An engine that looks after its daemons itself has nothing to do, nor has one without.
        """
        ...

    def first_touches(self) -> list[Touch]:
        """Returns reads in first-touch order, if the request asked for them."""
        ...

    def read_ranges(self) -> list[ReadRange]:
        """Returns what the kernel asked for of the layers' bytes, if the request asked for a trace and the mode has
        them.
        """
        ...

    def report(self) -> Report:
        """Says what there is to say so far; it is asked after a failure, too, and never raises."""
        ...

    def tear_down(self) -> None:
        """Stops the container and the daemons and unmounts in the right order; idempotent; never raises."""
        ...


class WorkloadRunner(Protocol):
    """Runs the run-time workloads of a scenario in a container that is ready."""

    def run(self, machine: Machine, engine: Engine, container: Container, *, evicted: bool) -> list[WorkloadResult]:
        """Runs them; it is called right after readiness, and (``evicted``) when the background fetch has ended."""
        ...
