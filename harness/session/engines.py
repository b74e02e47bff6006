"""This module finds which of a plan's engines can run here, before anything is prepared, and not in the first trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines import make_engine
from harness.errors import HostUnfit, UsageError
from harness.model.engine import is_optional
from harness.model.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.model.plan import Plan, PlannedCase, Selection
    from harness.model.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Missing:
    """Holds the keys of cases that cannot run here and need not, and the reasons, one line each."""

    cases: frozenset[str]
    reasons: tuple[str, ...]


def runnable_plan(
    scenarios: Sequence[Scenario],
    seed: int,
    selection: Selection | None = None,
    *,
    registry: str = "",
    faults: bool = False,
) -> Plan:
    """Makes a plan of what can run here; it says which optional engines it leaves out, and why.

    ``registry`` is the one that the user named, empty for the session's own. With ``faults`` it holds the trials of
    what fails after ready, where a scenario names any.

    Raises:
        UsageError: the selection names what is not there, or leaves no case; an engine cannot use that registry.
        HostUnfit: an engine that is not optional cannot run here.
    """
    if registry and faults and any(scenario.faults for scenario in scenarios):
        raise UsageError(
            f"--registry {registry}: only the session's own registry can be made to fail; leave --registry out, or the "
            "faults with --no-faults"
        )
    plan = make_plan(scenarios, seed, selection, faults=faults)
    tied = [case.case.engine for case in plan.cases if case.engine.own_registry_only]
    if registry and tied:
        raise UsageError(
            f"--registry {registry}: engine {tied[0]} pulls from the session's own registry only, since its daemon "
            "cannot be led to another one through the machine's network; leave --registry or that engine out"
        )
    missing = find_missing(plan.cases)
    if missing.cases:
        plan = make_plan(scenarios, seed, selection, missing.cases, faults=faults)
    return plan.model_copy(update={"left_out": (*plan.left_out, *missing.reasons)})


def find_missing(cases: Iterable[PlannedCase]) -> Missing:
    """Asks every engine about the modes and presets it is to run.

    Raises:
        HostUnfit: an engine that is not optional cannot run here; all such reasons, with how to mend them.
    """
    left_out: dict[str, str] = {}
    refused: list[str] = []
    for case in cases:
        found = make_engine(case.engine).available(case.choice.mode, case.choice.preset)
        if not found.reason:
            continue
        reason = f"engine {case.case.engine}: {found.reason}"
        if is_optional(case.engine):
            left_out[case.case.key] = reason
        else:
            refused.append(reason)
    if refused:
        raise HostUnfit("; ".join(dict.fromkeys(refused)))
    return Missing(frozenset(left_out), tuple(dict.fromkeys(left_out.values())))
