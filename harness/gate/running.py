"""This module runs a gate: one session whose first block decides what does not scatter, then time; a second one
confirms.

1. Images and counters: after the first block (and the second, for counters of trials) what changed beyond its
tolerance fails at once; no further block is run. 2. Times: at each look of the sequential design all metrics that
decide are judged together; the session ends when each is decided or the most blocks are there. 3. A regression in
time is confirmed by a second session with an order of its own; only what regresses in both counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError
from harness.gate import aa_store, counters, reasons
from harness.gate.comparing import excluded_trials
from harness.gate.environment import describe, differences, host_class
from harness.gate.lines import Line, judge, primary, time_lines
from harness.gate.result import GateResult, Regression
from harness.gate.sides import Side
from harness.gate.wording import change, percent, value
from harness.report import wording
from harness.session.headers import new_header
from harness.session.store import Store
from harness.stats.stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.gate.aa import AaRecord
    from harness.gate.baseline import Baseline
    from harness.gate.counters import CounterLine
    from harness.gate.sides import Pair
    from harness.model.observation import Observation
    from harness.model.plan import Selection
    from harness.model.scenario import Scenario
    from harness.model.session import SessionHeader
    from harness.session.inventory import Inventory
    from harness.session.launching import Launcher

    GoesOn = Callable[[int, Sequence[Pair], Side], bool]


def _candidate(pair: Pair) -> tuple[Observation, ...]:
    return pair.candidate


def _baseline(pair: Pair) -> tuple[Observation, ...]:
    return pair.baseline


@dataclass
class GateRun:
    """Runs one gate. ``most_blocks`` is how far an inconclusive session may go on; where it equals ``blocks``, it may
    not.
    """

    launcher: Launcher
    scenario: Scenario
    file: Path
    baseline: Baseline
    selection: Selection
    blocks: int
    most_blocks: int
    seed: int
    out: Path | None
    registry: str = ""
    workloads: bool = True
    strict: bool = False
    anyway: bool = False
    timed: bool = True
    repeat: str = ""
    lines_of_file: dict[str, int] = field(default_factory=dict)
    _rules: counters.Rules = field(init=False)
    # What is known of the gate so far, also where it ends in an error.
    directory: Path | None = field(init=False, default=None)
    """It is the first session's."""
    host: str = field(init=False, default="")
    begun: bool = field(init=False, default=False)
    """Says whether the session in ``directory`` is this gate's own."""
    blocks_run: int = field(init=False, default=0)
    open_regressions: list[str] = field(init=False, default_factory=list)
    """Holds what the first session found, while a second one is to confirm it."""

    @property
    def _stopping(self) -> Stopping:
        return Stopping.extended(self.blocks, self.most_blocks)

    def run(self) -> GateResult:
        """Run one session, or two, and say what was found. Raises ColdbenchError where a session cannot be run."""
        gate = self.scenario.gate
        header = self._header(self.seed, "gate")
        known = aa_store.latest(self.launcher.cache, host_class(header.host), self.scenario.name)
        scatter = known.scatter if known is not None else None
        self._rules = counters.Rules(gate, scatter, self.baseline.counters_decide)
        directory = self.directory = self.out or Path("results") / header.session
        self.host = describe(header.host)
        side, failed, pairs, alone = self._session(header, directory, self._goes_on)
        excluded = excluded_trials(side)
        found = self._counters(pairs, side)
        lines = self._judge(pairs, self.blocks_run) if self.timed else []
        regressions = self._counter_regressions(found, pairs, side)
        timed = self.timed and not regressions
        first = [line for line in lines if line.verdict == "regression" and self._decides(line.metric)] if timed else []
        confirmation: list[Line] = []
        unconfirmed: list[str] = []
        if first and gate.confirm:
            self.open_regressions = [
                f"{line.case}: {line.metric} {change(line.ratio.ratio)} in the first session; no second one confirms it"
                for line in first
            ]
            confirmation, more = self._confirm(first, directory)
            failed += more
            again = {(line.case, line.metric) for line in confirmation if line.verdict == "regression"}
            unconfirmed = [
                f"{line.case}: {line.metric} {change(line.ratio.ratio)} in the first session, not so in the second"
                for line in first
                if (line.case, line.metric) not in again
            ]
            first = [line for line in first if (line.case, line.metric) in again]
        regressions += [self._time_regression(line, pairs, side) for line in first]
        stored = self.baseline.side
        return GateResult(
            scenario=self.scenario.name,
            file=str(self.file),
            baseline=self.baseline.text,
            host=self.host,
            directory=directory,
            repeat=self.repeat,
            lines=tuple(lines if timed else []),
            confirmation=tuple(confirmation),
            counters=tuple(found),
            regressions=tuple(regressions),
            unconfirmed=tuple(unconfirmed),
            differences=tuple(differences(side, stored)) if stored is not None else (),
            anyway=self.anyway,
            notes=tuple(self._notes(known, header)),
            alone=tuple(alone),
            excluded=tuple(excluded),
            failed=failed,
            blocks=self.blocks_run,
            most_blocks=self.most_blocks,
            alpha=gate.alpha,
            aa=known,
            strict=self.strict,
            timed=timed,
            lines_of_file=self.lines_of_file,
        )

    # -- sessions

    def _header(self, seed: int, kind: str) -> SessionHeader:
        most = self.selection.model_copy(update={"blocks": self.most_blocks})
        scenarios = self.baseline.scenarios(self.scenario)
        return new_header(
            scenarios, {s.name: str(self.file) for s in scenarios}, seed, most, registry=self.registry,
            workloads=self.workloads, kind=kind,
        )  # fmt: skip

    def _session(
        self, header: SessionHeader, directory: Path, goes_on: GoesOn
    ) -> tuple[Side, int, list[Pair], list[str]]:
        self.blocks_run = 0
        with Store.create(directory, header) as store:
            self.begun = True
            empty = Side(str(directory), header, (), {}, directory)

            def ask(block: int, seen: tuple[Observation, ...]) -> bool:
                return goes_on(block, self.baseline.pairs(header, seen, empty)[0], empty)

            try:
                outcome = self.launcher.run(store, goes_on=ask)
            except ColdbenchError:
                self.blocks_run = len({o.block for o in store.observations if o.valid})
                raise
            side = Side(str(directory), header, tuple(store.observations), {}, directory)
        self.blocks_run = len({o.block for o in side.observations})
        pairs, alone = self.baseline.pairs(header, side.observations, side)
        return side, outcome.failed, pairs, alone

    def _goes_on(self, block: int, pairs: Sequence[Pair], side: Side) -> bool:
        """Whether the block with this number is needed, so many being there."""
        found = self._counters(pairs, side)
        bad = counters.regressed(found)
        of_images = {line for line in bad if not line[0]}
        enough = 1 if of_images or not self.scenario.gate.confirm else 2
        if bad and block <= 2:
            return block < enough
        if not self.timed:
            return False
        return self._stopping.goes_on(
            block, lambda: all(line.verdict != "inconclusive" for line in self._judge(pairs, block))
        )

    # -- judging

    def _judge(self, pairs: Sequence[Pair], blocks: int) -> list[Line]:
        """All lines, judged at the look that so many blocks are."""
        gate = self.scenario.gate
        decide = primary(gate.metrics)
        return judge(
            time_lines(pairs, gate.margin_of), lambda m: decide(m) and self._decides(m), alpha=gate.alpha,
            level=lambda rate: self._stopping.level(blocks, rate),
        )  # fmt: skip

    def _decides(self, metric: str) -> bool:
        return not any(metric == name or metric.startswith(f"{name}/") for name in self.scenario.gate.ignore)

    def _counters(self, pairs: Sequence[Pair], side: Side) -> list[CounterLine]:
        mine, theirs = self._inventories(pairs, side)
        return counters.image_lines(mine, theirs, self._rules) + counters.counter_lines(pairs, self._rules)

    def _inventories(self, pairs: Sequence[Pair], side: Side) -> tuple[Inventory | None, Inventory | None]:
        digests = [
            next((o.image_digest for pair in pairs for o in trials(pair) if o.image_digest), "")
            for trials in (_candidate, _baseline)
        ]
        other = self.baseline.side or side
        if not all(digests):
            return None, None
        return side.inventory(digests[0]), other.inventory(digests[1])

    # -- confirming and explaining

    def _confirm(self, first: Sequence[Line], directory: Path) -> tuple[list[Line], int]:
        """Run a second session and judge only what regressed in the first."""
        header = self._header(self.seed + 1, "confirmation")
        wanted = {(line.case, line.metric) for line in first}
        blocks = self.blocks_run

        def goes_on(block: int, _pairs: Sequence[Pair], _side: Side) -> bool:
            return block < blocks

        again = directory.with_name(directory.name + "-confirmation")
        _side, failed, pairs, _alone = self._session(header, again, goes_on)
        self.blocks_run = blocks
        gate = self.scenario.gate
        lines = [line for line in time_lines(pairs, gate.margin_of) if (line.case, line.metric) in wanted]
        return judge(lines, lambda _metric: True, alpha=gate.alpha), failed

    def _counter_regressions(self, found: Sequence[CounterLine], pairs: Sequence[Pair], side: Side) -> list[Regression]:
        mine, theirs = self._inventories(pairs, side)
        named = reasons.paths(mine, theirs) if mine is not None and theirs is not None else []
        out = []
        for line in found:
            if line.status == "regression":
                grew = "from none" if line.baseline == 0 else f"{100 * line.change:+.2g} %"
                sentence = (
                    f"{line.metric} grew from {value(line.metric, line.baseline)} to "
                    f"{value(line.metric, line.candidate)} ({grew}, {percent(line.tolerance)} is let pass)"
                )
                out.append(Regression(line.case, line.metric, sentence, tuple(named)))
                named = []  # once is enough
        return out

    def _time_regression(self, line: Line, pairs: Sequence[Pair], side: Side) -> Regression:
        pair = next(pair for pair in pairs if pair.name == line.case)
        why = reasons.phases(pair) + reasons.counters(pair)
        mine, theirs = self._inventories([pair], side)
        if mine is not None and theirs is not None:
            why += reasons.paths(mine, theirs)
        sentence = (
            f"{line.metric} grew from {value(line.metric, line.baseline)} to {value(line.metric, line.candidate)}: "
            f"{wording.ratio(line.ratio)}, {percent(line.margin)} is let pass"
        )
        return Regression(line.case, line.metric, sentence, tuple(why))

    def _notes(self, known: AaRecord | None, header: SessionHeader) -> list[str]:
        notes = []
        if known is None:
            notes.append(
                "No A/A run of this scenario is kept for hosts like this one, so its false-alarm rate and power "
                f"are not known here: coldbench aa {self.scenario.name}"
            )
        stored = self.baseline.side
        if stored is not None:
            then, now = (datetime.fromisoformat(h.created_at) for h in (stored.header, header))
            age_h = (now - then).total_seconds() / 3600
            old = f"{age_h / 24:.0f} days" if age_h > 48 else f"{age_h:.0f} hours"
            notes.append(f"The baseline is {old} old: what changed on the host since is in every ratio of times.")
            kept = aa_store.records(self.launcher.cache, host_class(header.host), self.scenario.name)
            apart = aa_store.between_days(kept)
            notes.append(
                "How far stored baselines scatter here is not known: fewer than two A/A runs are kept."
                if apart is None
                else f"Medians of equal sessions kept here differed by up to {percent(apart - 1)}."
            )
        return notes
