"""This module runs a gate: one session whose first block decides what does not scatter, then time; a second one
confirms.

1. Images and counters: after the first block (and the second, for counters of trials) what changed beyond its
tolerance fails at once; no further block is run. 2. Times: at each look of the sequential design all metrics that
decide are judged together; the session ends when each is decided or the most blocks are there. 3. A regression in
time is confirmed by a second session with an order of its own; only what regresses in both counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError, UsageError
from harness.gate import aa_store, counters
from harness.gate.aa_wording import notes
from harness.gate.comparing import excluded_trials
from harness.gate.environment import describe, differences, host_class
from harness.gate.judgement import Judgement
from harness.gate.lines import Line, judge, time_lines
from harness.gate.result import GateResult
from harness.gate.sides import Side
from harness.gate.wording import change
from harness.session.headers import new_header
from harness.session.store import HEADER, Store
from harness.stats.stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.gate.baseline import Baseline
    from harness.gate.sides import Pair
    from harness.model.observation import Observation
    from harness.model.plan import Selection
    from harness.model.scenario import Scenario
    from harness.model.session import SessionHeader
    from harness.session.launching import Launcher

    GoesOn = Callable[[int, Sequence[Pair], Side], bool]


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
    _judgement: Judgement = field(init=False)
    # What is known of the gate so far, also where it ends in an error.
    directory: Path | None = field(init=False, default=None)
    """This is the directory of the first session."""
    host: str = field(init=False, default="")
    begun: bool = field(init=False, default=False)
    """Says whether the session in ``directory`` is this gate's own."""
    blocks_run: int = field(init=False, default=0)
    open_regressions: list[str] = field(init=False, default_factory=list)
    """Holds what the first session found, while a second one is to confirm it."""

    def run(self) -> GateResult:
        """Runs one session, or two, and says what was found. Raises ColdbenchError where a session cannot be run."""
        gate = self.scenario.gate
        header = self._header(self.seed, "gate")
        known = aa_store.latest(self.launcher.cache, host_class(header.host), self.scenario.name)
        scatter = known.scatter if known is not None else None
        self._judgement = Judgement(
            gate, self.baseline, counters.Rules(gate, scatter, self.baseline.counters_decide),
            Stopping.extended(self.blocks, self.most_blocks), self.timed,
        )  # fmt: skip
        directory = self.directory = self.out or Path("results") / header.session
        second = _confirmation_of(directory)
        if self.timed and gate.confirm and (second / HEADER).exists():
            # Found after the first session it would cost all of that session's time.
            raise UsageError(f"{second}: holds a session already; name another --out, or move it away")
        self.host = describe(header.host)
        side, failed, pairs, alone = self._session(header, directory, self._judgement.goes_on)
        excluded = excluded_trials(side)
        found = self._judgement.counters(pairs, side)
        lines = self._judgement.lines(pairs, self.blocks_run) if self.timed else []
        regressions = self._judgement.counter_regressions(found, pairs, side)
        timed = self.timed and not regressions
        judgement = self._judgement
        slower = [line for line in lines if line.verdict == "regression" and judgement.decides(line.metric)]
        first = slower if timed else []
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
        regressions += [self._judgement.time_regression(line, pairs, side) for line in first]
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
            notes=tuple(notes(self.launcher.cache, header, self.scenario.name, self.baseline.side, known)),
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

    def _confirm(self, first: Sequence[Line], directory: Path) -> tuple[list[Line], int]:
        """Runs a second session and judges only what regressed in the first."""
        header = self._header(self.seed + 1, "confirmation")
        wanted = {(line.case, line.metric) for line in first}
        blocks = self.blocks_run

        def goes_on(block: int, _pairs: Sequence[Pair], _side: Side) -> bool:
            return block < blocks

        _side, failed, pairs, _alone = self._session(header, _confirmation_of(directory), goes_on)
        self.blocks_run = blocks
        gate = self.scenario.gate
        lines = [line for line in time_lines(pairs, gate.margin_of) if (line.case, line.metric) in wanted]
        return judge(lines, lambda _metric: True, alpha=gate.alpha), failed


def _confirmation_of(directory: Path) -> Path:
    """Names the second session's directory."""
    return directory.with_name(directory.name + "-confirmation")
