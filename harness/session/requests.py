"""From a scenario and a case to what the machine is told at T0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.engines.protocol import DeployRequest, Process
from harness.model.policy import LazyPolicy

if TYPE_CHECKING:
    from harness.machine.machine import Machine
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.session.preparation import Published
    from harness.session.registry import Endpoint


@dataclass(frozen=True, slots=True)
class Choices:
    """Lazy options of one mode entry, the scenario's defaults filled in."""

    prefetch: str | tuple[str, ...]
    options: dict[str, Any]


def choices_of(scenario: Scenario, case: PlannedCase) -> Choices:
    """The mode's own options over the scenario's. Only what differs from a preset's own policy is set."""
    choice = case.choice
    if not isinstance(case.preset.policy, LazyPolicy):
        return Choices("none", {})
    prefetch = choice.prefetch if choice.prefetch is not None else scenario.lazy.prefetch
    background = choice.background if choice.background is not None else scenario.lazy.background
    options: dict[str, Any] = {**scenario.lazy.options, **choice.options}
    if prefetch == "none":
        options["prefetch"] = False
    if not background:
        options["background"] = False
    return Choices(prefetch, options)


def make_request(
    scenario: Scenario,
    case: PlannedCase,
    published: Published,
    endpoint: Endpoint,
    machine: Machine,
    *,
    traced: tuple[str, ...] = (),
    trace: bool = False,
) -> DeployRequest:
    """The request for one trial; ``traced`` is the recorded prefetch list, ``trace`` asks for a new one."""
    choices = choices_of(scenario, case)
    prefetch = choices.prefetch if isinstance(choices.prefetch, tuple) else traced
    options = {**choices.options, "prefetch": False} if trace else choices.options
    workload = scenario.workload
    return DeployRequest(
        registry=endpoint.inside(machine),
        repository=published.repository,
        reference=published.reference,
        mode=case.choice.mode,
        preset=case.choice.preset,
        process=Process(args=workload.command, env=workload.env, cwd=workload.cwd, user=workload.user),
        scheme=endpoint.scheme,
        options=options,
        prefetch=prefetch,
        trace=trace,
        credentials=endpoint.credentials,
        routes=endpoint.routes(machine),
    )
