"""This module makes machine, engine, request and probe of a real trial from a scenario's case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines import make_engine
from harness.machine.machine import Machine
from harness.probes.readiness import make_probe
from harness.session.requests import make_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from harness.engines.protocol import Container, DeployRequest, Engine
    from harness.lazyfs.messages import FileRange
    from harness.machine.ways import Gated
    from harness.model.bound import ImageSize
    from harness.model.observation import Bound
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.session.bounds import Bounder, Moved
    from harness.session.preparation import Published
    from harness.session.registry import Endpoint
    from harness.session.setup import ReadinessProbe


@dataclass(frozen=True, slots=True)
class CaseScene:
    """Implements ``harness.session.setup.Scene`` for one case.

    ``traced`` is the recorded prefetch list, ``trace`` asks for one; ``command`` stands for the workload's, if given.
    ``gated``: the registry can be made to fail.
    """

    scenario: Scenario
    case: PlannedCase
    published: Published
    endpoint: Endpoint
    traced: tuple[FileRange, ...] = ()
    command: tuple[str, ...] = ()
    trace: bool = False
    gated: Gated = ""

    def machine(self) -> AbstractContextManager[Machine]:
        return Machine(
            self.case.shape,
            self.case.distance,
            name=self.case.case.key,
            registry_upstream=self.endpoint.upstream,
            further_upstreams=tuple(self.endpoint.neighbours.values()),
            gated=self.gated,
        )

    def engine(self) -> Engine:
        return make_engine(self.case.engine)

    def request(self, machine: Machine) -> DeployRequest:
        return make_request(
            self.scenario, self.case, self.published, self.endpoint, machine, traced=self.traced,
            command=self.command, trace=self.trace,
        )  # fmt: skip

    def probe(self, container: Container, machine: Machine, daemons_alive: Callable[[], bool]) -> ReadinessProbe:
        return make_probe(self.scenario.workload.readiness, container, machine, daemons_alive)


@dataclass(frozen=True, slots=True)
class CaseBound:
    """Implements ``harness.session.setup.LowerBound`` for one case on this host."""

    bounder: Bounder
    case: PlannedCase
    image: ImageSize
    application_core_s: float

    def given(self, moved: Moved, *, anew: bool = False) -> Bound | None:
        if anew:
            self.bounder.renew()
        return self.bounder.bound(self.case, self.image, self.application_core_s, moved)
