"""This module compares two sides: what differs in their environment, every ratio with its verdict, and what was left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import NothingToCompare, UsageError
from harness.gate.environment import Difference, describe, differences
from harness.gate.lines import Line, judge, time_lines
from harness.gate.sides import pairs
from harness.session import hosts, store

if TYPE_CHECKING:
    from harness.gate.sides import Side


@dataclass(frozen=True)
class Compared:
    """Holds a comparison of two sides; ``anyway`` is True where decisive differences were overruled."""

    baseline: str
    candidate: str
    host: str
    differences: tuple[Difference, ...]
    anyway: bool
    side_by_side: bool
    lines: tuple[Line, ...]
    alone: tuple[str, ...]
    excluded: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    """Describes the hosts that took part, where a side has several."""


def compare_sides(
    candidate: Side, baseline: Side, *, margin: float, alpha: float = 0.05, anyway: bool = False
) -> Compared:
    """Compares every time metric; all ratios shown are corrected together.

    Raises:
        UsageError: decisive differences, without ``anyway``.
        NothingToCompare: no case has a partner, or no valid trial.
    """
    found = differences(candidate, baseline)
    decisive = [str(difference) for difference in found if difference.decisive]
    if decisive and not anyway:
        raise UsageError(
            f"{baseline.name} and {candidate.name} cannot be compared: {'; '.join(decisive)}. "
            "Measure both on one host with one scenario, or compare --anyway"
        )
    together, alone = pairs(candidate, baseline)
    if not together:
        raise NothingToCompare(
            f"{baseline.name} and {candidate.name} have no case in common ({'; '.join(alone) or 'no trials'}); "
            "select what to compare, as in DIR#mode=soci"
        )
    lines = judge(time_lines(together, lambda _metric: margin), lambda _metric: True, alpha=alpha)
    excluded = excluded_trials(candidate) + (excluded_trials(baseline) if baseline is not candidate else [])
    if not lines:
        why = f" ({excluded[0]})" if excluded else ""
        raise NothingToCompare(f"no block holds a valid trial of both sides{why}: see `coldbench report`")
    return Compared(
        baseline.name,
        candidate.name,
        describe(candidate.header.host),
        tuple(found),
        bool(decisive),
        all(pair.side_by_side for pair in together),
        tuple(lines),
        tuple(alone),
        tuple(excluded),
        tuple(dict.fromkeys(hosts_of(baseline) + hosts_of(candidate))),
    )


def hosts_of(side: Side) -> list[str]:
    """Describes the hosts of a session that has several, one sentence each."""
    known = {} if side.directory is None else hosts.load(side.directory)
    return [f"{name}: {describe(facts)}" for name, facts in sorted(known.items())]


def excluded_trials(side: Side) -> list[str]:
    """Says why trials are in no number, once per case and reason, with how often."""
    counts: dict[str, int] = {}
    torn = []
    if side.directory is not None and store.is_torn(side.directory):
        torn = [f"{side.directory}: the last line of its observations, which was cut"]
    for o in side.observations:
        if not o.valid:
            why = o.failure.message if o.failure else "; ".join(i.reason for i in o.invalid) or "it never got ready"
            text = f"{o.case.key}: {why}"
            counts[text] = counts.get(text, 0) + 1
    return [f"{count} x {text}" for text, count in counts.items()] + torn
