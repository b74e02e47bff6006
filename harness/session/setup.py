"""This module says what a trial is made from: the case, what touches the system, and what is asked of it.

A trial touches the system through a *scene* alone, so that its course can be read, and tested, without one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.model.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from harness.engines.protocol import Container, DeployRequest, Engine, WorkloadRunner
    from harness.lazyfs.messages import ReadRange, Touch
    from harness.machine.machine import Machine
    from harness.model.details import StormUse
    from harness.model.observation import Bound
    from harness.model.plan import PlannedCase, PlannedTrial
    from harness.model.scenario import Timeouts
    from harness.session.bounds import Moved
    from harness.session.interrupts import Interrupts
    from harness.session.progress import Progress


class ReadinessProbe(Protocol):
    """Watches a container from outside its machine's CPU quota."""

    def wait(self) -> int:
        """Waits for readiness; returns its CLOCK_MONOTONIC time. Raises ``WorkloadError`` when it does not come."""
        ...

    def output_tail(self) -> str:
        """Returns the end of what the container has written so far."""
        ...

    def close(self) -> None:
        """Stops watching; idempotent."""
        ...


class Scene(Protocol):
    """Makes everything that a trial needs from the system: machine, engine, request and probe."""

    def machine(self) -> AbstractContextManager[Machine]:
        """Makes a fresh machine of the case's shape; it is there while the context is entered."""
        ...

    def engine(self) -> Engine:
        """Makes a fresh engine of the case."""
        ...

    def request(self, machine: Machine) -> DeployRequest:
        """Makes what the engine is told at T0."""
        ...

    def probe(self, container: Container, machine: Machine, daemons_alive: Callable[[], bool]) -> ReadinessProbe:
        """Makes the probe that watches the container until it is ready."""
        ...


class LowerBound(Protocol):
    """Says what physics allows a trial of this case."""

    def given(self, moved: Moved, *, anew: bool = False) -> Bound | None:
        """Returns the bound, given what a lazy start had moved when it was ready; None where no bound is computed.

        With ``anew`` the host's rates are measured again first.
        """
        ...


class RequestLog(Protocol):
    """Reads the log of a registry of ours."""

    def so_far(self) -> int:
        """Returns how many requests it has answered until now."""
        ...


class Unbounded:
    """Stands in as ``LowerBound`` for trials that are compared with none."""

    def given(self, moved: Moved, *, anew: bool = False) -> Bound | None:
        return None


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """Holds what a trial is made from; everything that touches the system comes in with ``scene``."""

    session: str
    trial: PlannedTrial
    case: PlannedCase
    scene: Scene
    timeouts: Timeouts
    image_digest: str
    image_compressed_bytes: int
    interrupts: Interrupts
    progress: Progress
    readiness: str = ""
    """Names the kind of readiness, for the timeline."""
    settings: Settings = field(default_factory=Settings)
    """Holds what the case runs with beside mode and preset, for the record."""
    workloads: WorkloadRunner | None = None
    lift_quota: bool = False
    """Says whether the shape's CPU limit is lifted while run-time workloads run."""
    bound: LowerBound = field(default_factory=Unbounded)
    own_registry: bool = True
    """Says whether the registry is the session's own, so that the case says how far it is."""
    requests: RequestLog | None = None
    """Reads the registry's log; None where it cannot be read (then the engine's own count is taken)."""
    clock_ns: Callable[[], int] = time.monotonic_ns
    privileges: Mapping[str, Any] = field(default_factory=dict)
    """Says what the container may do beyond the default (``harness.engines.confinement``), for the record."""
    reads: Mapping[str, Any] = field(default_factory=dict)
    """Says what a start reads that reads a share of the image, for the record; empty for any other."""
    storm: StormUse | None = None
    """Says what a storm's machines share, for the record; None for a trial of one machine."""
    touches: list[Touch] = field(default_factory=list)
    """Collects the reads of a trace run in first-touch order."""
    ranges: list[ReadRange] = field(default_factory=list)
    """Collects what the kernel asked for, by ranges of layers, where the mode serves one blob."""
