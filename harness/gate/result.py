"""This module holds what a gate found, and the exit code that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gate.aa import AaRecord
    from harness.gate.counters import CounterLine
    from harness.gate.environment import Difference
    from harness.gate.lines import Line

Decision = Literal[
    "pass", "regression", "not confirmed", "inconclusive", "trials failed", "nothing to compare", "error"
]

EXIT_CODES: dict[Decision, int] = {
    "pass": 0, "regression": 1, "not confirmed": 0, "inconclusive": 0, "trials failed": 5, "nothing to compare": 6,
    "error": 5,
}  # fmt: skip
#: With ``--strict`` a gate that could not decide fails as well.
STRICT: dict[Decision, int] = {"not confirmed": 3, "inconclusive": 3}


@dataclass(frozen=True)
class Regression:
    """Names one regression that counts, and says why: phases, paths, bytes, requests."""

    case: str
    metric: str
    sentence: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Says why a gate came to no result: the error's stable name, its one line, and the exit code it ends in."""

    kind: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class GateResult:
    """Holds everything a gate says. ``lines`` are the first session's, ``confirmation`` the second's, empty if none.

    ``directory`` is None where the gate has no place of its own: the one it was given holds another session.
    """

    scenario: str
    file: str
    baseline: str
    host: str
    directory: Path | None
    repeat: str
    lines: tuple[Line, ...] = ()
    confirmation: tuple[Line, ...] = ()
    counters: tuple[CounterLine, ...] = ()
    regressions: tuple[Regression, ...] = ()
    unconfirmed: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    anyway: bool = False
    notes: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    failed: int = 0
    blocks: int = 0
    most_blocks: int = 0
    alpha: float = 0.01
    aa: AaRecord | None = None
    strict: bool = False
    timed: bool = True
    """It is False where the first tier has decided already."""
    lines_of_file: dict[str, int] = field(default_factory=dict)
    """Gives the line of the scenario file for a metric's key; the empty key is the gate's own."""
    failure: Failure | None = None
    """It is set where the gate could not be run to its end; nothing else decides then."""

    @property
    def decision(self) -> Decision:
        """Returns the decision in one word."""
        if self.failure is not None:
            return "error"
        if self.regressions:
            return "regression"
        if self.failed:
            return "trials failed"
        if not self.lines and not self.counters:
            return "nothing to compare"
        if self.unconfirmed:
            return "not confirmed"
        judged = [line for line in self.lines if line.verdict is not None]
        if self.timed and not judged:
            return "nothing to compare"
        if any(line.verdict == "inconclusive" for line in judged):
            return "inconclusive"
        return "pass"

    @property
    def exit_code(self) -> int:
        """Returns 0 for pass, 1 confirmed regression, 3 inconclusive (strict), 5 trials failed, 6 nothing to compare.

        A gate that ended in an error has that error's.
        """
        if self.failure is not None:
            return self.failure.exit_code
        if self.strict and self.decision in STRICT:
            return STRICT[self.decision]
        return EXIT_CODES[self.decision]
