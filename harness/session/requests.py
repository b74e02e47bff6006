"""This module makes a request from a scenario and a case: the machine is told it at T0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.engines.protocol import DeployRequest, Process
from harness.model.settings import Settings, settings_of

if TYPE_CHECKING:
    from harness.lazyfs.messages import FileRange
    from harness.machine.machine import Machine
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.session.preparation import Published
    from harness.session.registry import Endpoint


def settings_of_case(scenario: Scenario, case: PlannedCase) -> Settings:
    """Returns the settings that a planned case runs with."""
    settings = settings_of(scenario, case.choice, case.case.engine)
    assert settings is not None, "a plan holds what an engine runs"
    return settings


def make_request(
    scenario: Scenario,
    case: PlannedCase,
    published: Published,
    endpoint: Endpoint,
    machine: Machine,
    *,
    traced: tuple[FileRange, ...] = (),
    command: tuple[str, ...] = (),
    trace: bool = False,
) -> DeployRequest:
    """Makes the request for one trial; ``traced`` are recorded reads to prefetch, ``trace`` asks for a new one.

    ``command`` is what a start that reads a share of the image runs: as root, since it reads all files alike.
    """
    settings = settings_of_case(scenario, case)
    prefetch = settings.prefetch if isinstance(settings.prefetch, tuple) else ()
    options = {**settings.options, "prefetch": False} if trace else settings.options
    workload = scenario.workload
    return DeployRequest(
        registry=endpoint.inside(machine),
        repository=published.repository,
        reference=published.reference,
        mode=case.choice.mode,
        preset=case.choice.preset,
        process=Process(
            args=command or workload.command,
            env=workload.env,
            cwd=workload.cwd,
            user=workload.user or ("0:0" if command else None),
            capabilities=workload.capabilities,
            devices=workload.devices,
            privileged=workload.privileged,
        ),
        scheme=endpoint.scheme,
        options=options,
        prefetch=prefetch,
        reads=traced,
        trace=trace,
        credentials=endpoint.credentials,
        index=published.index,
        routes=endpoint.routes(machine),
        layers=published.layers,
    )
