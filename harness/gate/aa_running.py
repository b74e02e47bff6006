"""This module runs an A/A session and draws its conclusions: false alarms, or the power where a slowdown is injected.

The slowdown is exact in what it takes: the candidate's CPU limit is divided by 1 + the share, while the container runs
as before. A start that is bound by the CPU takes longer by about that share; the measured ratio is printed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.errors import NothingToCompare, UsageError
from harness.gate import aa, aa_store
from harness.gate.baseline import SUFFIX, Baseline
from harness.gate.comparing import excluded_trials
from harness.gate.environment import describe, host_class
from harness.gate.planning import block_minutes
from harness.gate.sides import Side
from harness.session.headers import new_header
from harness.session.store import Store
from harness.stats.paired import MIN_BLOCKS

if TYPE_CHECKING:
    from harness.gate.aa import AaRecord
    from harness.gate.lines import Line
    from harness.model.plan import PlannedCase, Selection
    from harness.model.scenario import Scenario
    from harness.model.session import SessionHeader
    from harness.session.launching import Launcher


@dataclass(frozen=True)
class AaResult:
    """Holds the record, the session's own lines, and the session's directory."""

    record: AaRecord
    lines: tuple[Line, ...]
    directory: Path
    excluded: int


def slowed(case: PlannedCase, share: float) -> PlannedCase:
    """Returns the case with 1/(1+share) of its CPU. Raises UsageError for a shape without a CPU limit."""
    shape = case.shape
    if shape.baseline_cores is None:
        raise UsageError(
            f"--inject slows a start by its CPU limit, and shape {shape.label} has none; choose another with --shape"
        )
    factor = 1 / (1 + share)
    changed: dict[str, object] = {"baseline_cores": shape.baseline_cores * factor}
    if shape.credits is not None:
        # A slower machine that earns credits as before would earn more than it may spend, and burst.
        fields = ("at_boot_core_s", "earned_core_s_per_h", "cap_core_s")
        less = {name: getattr(shape.credits, name) * factor for name in fields}
        changed["credits"] = shape.credits.model_copy(update=less)
        if shape.ceiling_cores is not None:
            changed["burst_cores"] = shape.ceiling_cores * factor
    return case.model_copy(update={"shape": shape.model_copy(update=changed)})


def header_of(
    scenario: Scenario, file: Path, selection: Selection, seed: int, *, inject: float, registry: str, workloads: bool
) -> SessionHeader:
    """Makes the header of an A/A session: the scenario and the same again, the first one slowed where asked."""
    sides = Baseline("again").scenarios(scenario)
    header = new_header(
        sides, {s.name: str(file) for s in sides}, seed, selection, registry=registry, workloads=workloads, kind="aa"
    )
    if not inject:
        return header
    cases = tuple(slowed(case, inject) if case.case.scenario == scenario.name else case for case in header.plan.cases)
    return header.model_copy(update={"plan": header.plan.model_copy(update={"cases": cases})})


def run(launcher: Launcher, header: SessionHeader, directory: Path, *, gate_blocks: int, inject: float) -> AaResult:
    """Runs the session, analyses it and keeps the record. Raises NothingToCompare without a complete block."""
    with Store.create(directory, header) as store:
        launcher.run(store)
        side = Side(str(directory), header, tuple(store.observations), {}, directory)
    result = analyse(side, gate_blocks=gate_blocks, inject=inject)
    aa_store.keep(launcher.cache, result.record)
    return result


def analyse(side: Side, *, gate_blocks: int, inject: float = 0.0, draws: int = aa.DRAWS) -> AaResult:
    """Says what a stored A/A session says.

    Raises:
        UsageError: the session is no A/A run.
        NothingToCompare: no block is complete.
    """
    header = side.header
    name = next(iter(header.scenarios))
    if name + SUFFIX["again"] not in header.scenarios:
        raise UsageError(f"{side.name}: not an A/A session; make one with: coldbench aa {name}")
    gate = header.scenarios[name].gate
    pairs, _alone = Baseline("again").pairs(header, side.observations, side)
    lines = aa.lines_of(pairs, gate)
    drawer = aa.Drawer(pairs, gate, gate_blocks)
    if not lines or len(drawer.blocks) < MIN_BLOCKS:
        why = "; ".join(excluded_trials(side)[:1])
        raise NothingToCompare(
            f"{side.name}: {len(drawer.blocks)} blocks hold valid trials of both sides, and {MIN_BLOCKS} are needed to "
            f"say anything{f' ({why})' if why else ''}; run it again on a quieter host, or with more --blocks"
        )
    minutes = block_minutes(side.observations)
    wrong, confirmed = aa.false_alarms(drawer, draws)
    caught = aa.caught_as_run(pairs, gate, gate_blocks, draws) if inject else aa.power(drawer, draws=draws)
    record = aa.AaRecord(
        coldbench_version=__version__,
        created_at=header.created_at,
        host_class=host_class(header.host),
        host=describe(header.host),
        scenario=name,
        session=header.session,
        blocks=len(drawer.blocks),
        block_minutes=None if minutes is None else minutes / 2,
        gate_blocks=drawer.take,
        alpha=gate.alpha,
        margin=gate.margin,
        metrics=gate.metrics,
        injected=inject,
        wrong=wrong,
        wrong_confirmed=confirmed,
        caught=caught,
        caught_change=inject or aa.STATED_CHANGE,
        noise=aa.noise_of(lines, drawer.take, gate.alpha),
        scatter=aa.scatter(pairs),
    )
    return AaResult(record, tuple(lines), side.directory or Path(), sum(not o.valid for o in side.observations))


def injected_share(header: SessionHeader) -> float:
    """Says by how much the first side of a stored A/A session was slowed on purpose."""
    name = next(iter(header.scenarios))
    limits: dict[bool, list[float]] = {True: [], False: []}
    for case in header.plan.cases:
        limits[case.case.scenario == name].append(case.shape.baseline_cores or 0.0)
    if not limits[True] or not limits[False] or not limits[True][0]:
        return 0.0
    return round(limits[False][0] / limits[True][0] - 1, 6)
