"""This module makes a plan: every trial of a session in the order it will run, drawn from a recorded seed.

A block holds one trial of every case, in an order of its own, so that whatever drifts on the host during a session
falls on all cases alike and comparisons can be paired inside a block.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence  # noqa: TC003 - pydantic reads them at run time
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import Field

from harness.errors import UsageError
from harness.model import modes as mode_table
from harness.model.axes import axis_values
from harness.model.engine import EmbeddedChoice, EngineChoice, EngineName, default_choice, limits_of, wanted_now
from harness.model.forms import no_way_into
from harness.model.image import parse_compression
from harness.model.near_miss import near_miss
from harness.model.observation import Case, Frozen
from harness.model.scenario import ModeChoice, Scenario, parse_mode
from harness.model.settings import settings_of
from harness.model.shape import Distance, Shape
from harness.model.workload import Temperature

if TYPE_CHECKING:
    from harness.model.faults import Faults

#: Core-seconds of a lazy start beside the workload's own (mount, first reads), and of making and unmaking a machine.
_LAZY_CORE_S = 1.0
_APPLICATION_CORE_S = 1.0
_OVERHEAD_S = 4.0
_FAULT_S = 60.0


class Selection(Frozen):
    """Says what the command line takes of the scenarios: empty means "as the scenario says"."""

    modes: tuple[str, ...] = ()
    """Lists entries as ``mode[:preset[+label]]``."""
    presets: tuple[str, ...] = ()
    engines: tuple[EngineName, ...] = ()
    shapes: tuple[Shape, ...] = ()
    distances: tuple[Distance, ...] = ()
    blocks: int | None = Field(default=None, ge=1)
    workloads: tuple[str, ...] = ()
    """Lists run-time workloads by name."""
    temperatures: tuple[Temperature, ...] = ()
    background: bool = True
    """Says whether a trial waits for the background fetch after ready, as long as the scenario says."""


class PlannedCase(Frozen):
    """Holds a case and everything its trials are made from, names resolved."""

    case: Case
    choice: ModeChoice
    shape: Shape
    distance: Distance
    engine: EngineChoice = EmbeddedChoice()

    @property
    def mode(self) -> mode_table.Mode:
        return mode_table.find(self.choice.mode, self.case.engine)

    @property
    def preset(self) -> mode_table.Preset:
        return self.mode.preset(self.choice.preset)

    @property
    def lazy(self) -> bool:
        return self.preset.lazy

    @property
    def outside(self) -> bool:
        """Says whether the engine's daemon runs outside of the machine, whose counters then are the container's
        alone.
        """
        return self.case.limits == "container"

    @property
    def form(self) -> mode_table.Form:
        """Returns what the registry must hold for it."""
        return self.preset.form or self.mode.form


class PlannedTrial(Frozen):
    """Names one trial: ``trial`` counts from 0 over the whole session and is its id; ``case`` is a case's key.

    ``fault`` is the key of what fails after ready (``harness.model.faults``), empty for a trial that measures a start.
    """

    trial: int
    block: int
    case: str
    fault: str = ""

    @property
    def kind(self) -> str:
        """Returns what trials that take equally long have in common: the case, and the fault."""
        return f"{self.case}!{self.fault}" if self.fault else self.case


class Plan(Frozen):
    """Holds all cases, and all trials in the order they run."""

    seed: int
    cases: tuple[PlannedCase, ...]
    trials: tuple[PlannedTrial, ...]
    left_out: tuple[str, ...] = ()
    """Names optional engines that cannot run on this host, modes that cannot serve a scenario's compression, and
    why.
    """

    def case_of(self, trial: PlannedTrial) -> PlannedCase:
        """Returns the case a trial belongs to."""
        return next(c for c in self.cases if c.case.key == trial.case)


def choose_modes(
    scenario: Scenario, modes: Sequence[str], presets: Sequence[str], *, option: str = "--mode"
) -> tuple[ModeChoice, ...]:
    """Returns the mode entries that a selection names; a mode that the scenario lacks is taken with its default preset.

    Errors call the place that names the modes ``option``.

    Raises:
        UsageError: unknown mode, preset or label.
    """
    chosen: list[ModeChoice] = []
    for text in modes:
        try:
            wanted = parse_mode(text)
            matching = [m for m in scenario.modes if _fits(m, wanted)]
            if not matching and "label" in wanted:
                raise ValueError(f"scenario {scenario.name} has no mode {text!r}")
            named = ModeChoice.model_validate(wanted)
            chosen += [m.model_copy(update={"preset": named.preset or m.preset}) for m in matching] or [named]
        except ValueError as error:
            first = error.errors()[0]["msg"].removeprefix("Value error, ") if hasattr(error, "errors") else error
            raise UsageError(f"{option} {text}: {first}") from None
    chosen = chosen or list(scenario.modes)
    if presets:
        known = {preset for mode in chosen for preset in mode_table.preset_names(mode.mode)}
        for preset in presets:
            if preset not in known:
                old = next((hint for mode in chosen if (hint := mode_table.renamed(mode.mode, preset))), "")
                hint = old or near_miss(preset, known) or f"; expected one of {', '.join(sorted(known))}"
                raise UsageError(f"--preset {preset}: none of the chosen modes has it{hint}")
        chosen = [
            _entry(chosen, mode, preset)
            for mode in dict.fromkeys(m.mode for m in chosen)
            for preset in presets
            if preset in mode_table.preset_names(mode)
        ]
    return tuple({mode.key: mode for mode in chosen}.values())


def _fits(entry: ModeChoice, wanted: Mapping[str, str]) -> bool:
    """Says whether a scenario's entry is one that a selection's ``mode[:preset[+label]]`` names."""
    preset = wanted.get("preset", "")
    return (
        entry.mode == wanted["mode"]
        and entry.label == wanted.get("label", entry.label)
        and (preset in {"", entry.preset} or (not entry.preset and _default_of(entry.mode, preset)))
    )


def _default_of(mode: str, preset: str) -> bool:
    """Says whether some engine runs this preset where none is named."""
    return any((p := mode_table.offers(engine, mode)) is not None and p.name == preset for engine in mode_table.ENGINES)


def _entry(entries: Sequence[ModeChoice], mode: str, preset: str) -> ModeChoice:
    """Returns the first entry of this mode and preset, with what it changes; else the plain preset."""
    wanted = {"mode": mode, "preset": preset}
    found = next((entry for entry in entries if _fits(entry, wanted)), ModeChoice(mode=mode))
    return found.model_copy(update={"preset": preset})


def choose_after_ready(scenario: Scenario, selection: Selection) -> Scenario:
    """Returns the scenario with only what a selection names of what comes after ready, in its own order.

    Raises:
        UsageError: the scenario has no workload of such a name, or none is left.
    """
    if not selection.background:
        scenario = scenario.model_copy(update={"timeouts": scenario.timeouts.model_copy(update={"background_s": 0.0})})
    runtime = scenario.runtime
    known = [workload.name for workload in runtime.workloads]
    for name in selection.workloads:
        if name not in known:
            hint = near_miss(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise UsageError(f"--workload {name}: scenario {scenario.name} has no such workload{hint}")
    wanted = selection.temperatures or runtime.temperatures
    kept = [
        workload.model_copy(update={"temperatures": temperatures})
        for workload in runtime.workloads
        if (not selection.workloads or workload.name in selection.workloads)
        and (temperatures := tuple(t for t in workload.temperatures or runtime.temperatures if t in wanted))
    ]
    if not kept and (selection.workloads or (known and selection.temperatures)):
        raise UsageError(f"scenario {scenario.name}: none of its workloads runs at {', '.join(wanted)} files")
    if not selection.workloads and not selection.temperatures:
        return scenario
    return scenario.model_copy(update={"runtime": runtime.model_copy(update={"workloads": tuple(kept)})})


def choose_engines(scenario: Scenario, names: Sequence[str]) -> tuple[EngineChoice, ...]:
    """Returns the engine entries that a selection names; one that the scenario lacks is taken as it is found.

    An engine that is named is wanted: it is not optional any more.
    """
    own: dict[str, EngineChoice] = {entry.engine: entry for entry in scenario.engines}
    named = [own.get(name) or default_choice(name) for name in dict.fromkeys(names)]
    return tuple(wanted_now(entry) for entry in named) or scenario.engines


def make_plan(
    scenarios: Sequence[Scenario],
    seed: int,
    selection: Selection | None = None,
    left_out: Collection[str] = (),
    *,
    faults: bool = False,
) -> Plan:
    """Lays out a session: blocks x cases, each block shuffled by a generator seeded with ``seed`` and its number.

    ``left_out`` holds keys of cases that cannot run here and need not. With ``faults`` the first blocks of a scenario
    that names faults also hold a trial of each, in the same shuffled order.

    Raises:
        UsageError: the selection names what is not there, or leaves no case.
    """
    selection = selection or Selection()
    cases: dict[str, PlannedCase] = {}
    blocks: dict[str, int] = {}
    unserved: dict[str, None] = {}
    for scenario in scenarios:
        for case in _cases(scenario, selection):
            if case.case.key in left_out:
                continue
            if why := _unserved(scenario, case):
                unserved[why] = None
                continue
            if case.case.key in cases and scenario.name in blocks:
                raise UsageError(f"scenario name {scenario.name!r} is there twice; names must differ within a session")
            cases[case.case.key] = case
        blocks[scenario.name] = selection.blocks or scenario.blocks
    if not cases:
        why = "; ".join(unserved) or "none of the chosen engines implements any of the chosen modes"
        raise UsageError(f"nothing to run: {why}")
    trials: list[PlannedTrial] = []
    for block in range(max(blocks.values())):
        wanted = [(key, "") for key, case in cases.items() if block < blocks[case.case.scenario]]
        if faults:
            tables = {s.name: s.faults for s in scenarios}
            wanted += [(key, fault) for key, _ in wanted for fault in _faults(cases[key], tables, block)]
        random.Random(f"{seed}:{block}").shuffle(wanted)
        trials += [
            PlannedTrial(trial=len(trials) + i, block=block, case=key, fault=fault)
            for i, (key, fault) in enumerate(wanted)
        ]
    return Plan(seed=seed, cases=tuple(cases.values()), trials=tuple(trials), left_out=tuple(unserved))


def _unserved(scenario: Scenario, case: PlannedCase) -> str:
    """Says why a case cannot be what it says: it is lazy on layers that it would pull whole, or made for another
    image.
    """
    storm = scenario.storm
    if storm is not None and storm.images == "distinct" and case.form is mode_table.Form.EROFS_PACKED:
        return f"{scenario.name}, mode {case.choice.key}: a pack is recorded for one image, and these are distinct"
    if case.outside and (storm is not None or scenario.faults is not None):
        return (
            f"{scenario.name}, engine {case.case.engine}: it runs outside of the machines that storms and faults need"
        )
    if scenario.image.compression is None or not case.lazy:
        return ""
    why = no_way_into(case.form, parse_compression(scenario.image.compression).kind)
    return f"{scenario.name}, mode {case.choice.key}: {why}" if why else ""


def _faults(case: PlannedCase, tables: Mapping[str, Faults | None], block: int) -> list[str]:
    table = tables[case.case.scenario]
    if table is None or block >= table.blocks:
        return []
    return [fault.key for fault in table.planned(lazy=case.lazy)]


def _cases(scenario: Scenario, selection: Selection) -> list[PlannedCase]:
    cases: dict[str, PlannedCase] = {}
    for shape in selection.shapes or scenario.shapes:
        for distance in [shape.distance] if shape.distance else selection.distances or (scenario.distance,):
            for engine in choose_engines(scenario, selection.engines):
                for choice in _choices(scenario, selection, engine.engine):
                    _check(scenario, choice, engine.engine)
                    case = Case(
                        scenario=scenario.name,
                        mode=choice.mode,
                        preset=choice.preset,
                        label=choice.label,
                        engine=engine.engine,
                        shape=shape.label,
                        distance=distance.name,
                        limits=limits_of(engine),
                        **axis_values(scenario),
                    )
                    planned = PlannedCase(case=case, choice=choice, shape=shape, distance=distance, engine=engine)
                    cases.setdefault(case.key, planned)
    return list(cases.values())


def _check(scenario: Scenario, choice: ModeChoice, engine: str) -> None:
    """Refuses what would be dropped, now and not in the first trial: the selection may add entries to a scenario's."""
    try:
        settings_of(scenario, choice, engine)
    except UsageError as error:
        raise UsageError(f"scenario {scenario.name}, mode {choice.key}: {error}") from None


def _choices(scenario: Scenario, selection: Selection, engine: str) -> list[ModeChoice]:
    """Returns what an engine runs of a scenario: the entries it has a preset for.

    Where it has none, and the selection asks for no particular ones, it runs its own full pull, so that an engine can
    be added without naming its presets.
    """
    entries = choose_modes(scenario, selection.modes, selection.presets)
    choices = [choice for entry in entries if (choice := entry.on(engine)) is not None]
    if not choices and not selection.modes and not selection.presets:
        full_pull = mode_table.engine_modes(engine)[0]
        choices = [ModeChoice(mode=full_pull.name, preset=full_pull.presets[0].name)]
    return choices


def estimate_trial_s(case: PlannedCase, compressed_bytes: int, workloads: int = 0) -> float:
    """Guesses how long one trial takes: CPU at the sustained rate or the wire, whichever is slower.

    ``workloads`` counts workloads times temperatures. The guess is good enough to tell minutes from hours; measured
    trials of the same case replace it.
    """
    shape = case.shape
    cores = shape.baseline_cores or 2.0
    if shape.credits and shape.credits.at_boot_core_s > 60 and shape.ceiling_cores:
        cores = shape.ceiling_cores
    share = 0.2 if case.lazy else 1.0
    pull_core_s = _LAZY_CORE_S if case.lazy else compressed_bytes / 1e9 * case.preset.pull_core_s_per_gb
    wire_s = compressed_bytes * share * 8 / (shape.rate_bits_s or 10e9)
    background_s = compressed_bytes / 1e9 * 15.0 / cores if case.lazy else 0.0
    core_s = pull_core_s + _APPLICATION_CORE_S
    return _OVERHEAD_S + max(core_s / cores, wire_s) + background_s + workloads * 0.5 / cores


def remaining_s(
    plan: Plan, done: Mapping[str, Sequence[float]], finished: frozenset[int], guesses: Mapping[str, float]
) -> float:
    """Returns the seconds that unfinished trials will take, by their case's measured trials, else by scaled first
    guesses.

    ``done`` holds measured seconds by kind of trial; ``guesses`` a first guess for every case key.
    """
    pairs = [(fmean(seconds), guesses[key]) for key, seconds in done.items() if seconds and key in guesses]
    scale = sum(m for m, _ in pairs) / sum(g for _, g in pairs) if pairs else 1.0
    return sum(
        fmean(done[t.kind]) if done.get(t.kind) else guesses[t.case] * scale + (_FAULT_S if t.fault else 0.0)
        for t in plan.trials
        if t.trial not in finished
    )
