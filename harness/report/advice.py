"""This module takes advice out of a session: for each machine which mode, measured or predicted, and what to change
about the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.report.answer import answer
from harness.report.comparison import compare, label_of
from harness.report.contents import order
from harness.report.prediction import obstacle, parts_of, predict
from harness.report.worth import Variant, repacked, worth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.modes import Form
    from harness.model.observation import Observation
    from harness.model.session import Preparation, SessionHeader
    from harness.model.shape import Shape
    from harness.report.comparison import CaseLine, Group
    from harness.report.contents import Contents, Order
    from harness.report.prediction import Parts
    from harness.report.worth import Repacked, Worth


TIE = 0.2
"""Modes whose predicted middles are closer than this are a tie, since what a prediction leaves out is alike for all."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Says which mode to use on one machine. Predicted figures rest on the parts measured on ``measured_on``.

    ``ties`` are modes that a prediction cannot tell from the one to use, or that are not shown to differ.
    """

    shape: str
    measured: bool
    use: str | None
    ready_s: float
    """This is the measured median, or the middle of the predicted range ``low_s`` to ``high_s``."""
    against: str | None = None
    against_ready_s: float = math.nan
    ties: tuple[str, ...] = ()
    measured_on: str = ""
    why_not: str = ""
    low_s: float = math.nan
    high_s: float = math.nan


@dataclass(frozen=True, slots=True)
class Advice:
    """Holds all there is to say about one scenario of a session; ``notes`` say what is missing, and why."""

    scenario: str
    choices: tuple[Choice, ...]
    price: str
    contents: Contents | None
    read_in: str
    """Says what the reads were seen in: ``a start and N commands``."""
    order: Order | None
    worth: tuple[Worth, ...]
    repacked: tuple[Repacked, ...]
    notes: tuple[str, ...] = field(default=())


def choices_of(
    header: SessionHeader, observations: Sequence[Observation], scenario: str, shapes: Sequence[Shape]
) -> list[Choice]:
    """Chooses for measured machines first, in the session's order, then for the others of ``shapes``, predicted."""
    own = [o for o in observations if o.case.scenario == scenario]
    groups = compare(own)
    found = [_measured(group) for group in groups]
    there = {group.key.shape for group in groups}
    return [*found, *(_predicted(header, own, groups, shape) for shape in shapes if shape.label not in there)]


def _measured(group: Group) -> Choice:
    made = answer(group)
    return Choice(
        group.key.title.partition(" on ")[2], True, made.use, made.ready_s or math.nan, made.against,
        made.against_ready_s or math.nan, _not_shown_later(group, made.use),
        why_not="" if made.use else made.sentences[-1],
    )  # fmt: skip


def _not_shown_later(group: Group, use: str | None) -> tuple[str, ...]:
    ties = []
    for line in group.lines:
        ratio = group.ratio(line.label, use) if use and line.offered and line.label != use else None
        if ratio is not None and (ratio.low is None or ratio.low <= 1 <= (ratio.high or 0)) and ratio.ratio < 1.15:
            ties.append(line.label)
    return tuple(ties)


def nearest(groups: Sequence[Group], header: SessionHeader, shape: Shape) -> Group:
    """Finds the measured group whose machine is the most like ``shape``: by sustained cores, on a logarithmic scale."""
    sizes = {case.case.shape: case.shape.baseline_cores or 2.0 for case in header.plan.cases}
    wanted = shape.baseline_cores or 2.0
    return min(groups, key=lambda group: abs(math.log(sizes.get(group.key.shape, wanted) / wanted)))


def parts_of_group(
    header: SessionHeader, observations: Sequence[Observation], group: Group
) -> dict[str, tuple[CaseLine, Parts]]:
    """Returns, by label, the line of the comparison and the parts of its starts, where any is valid."""
    found = {}
    for case in header.plan.cases:
        trials = [o for o in observations if o.case == case.case]
        line = group.line(label_of(trials[0])) if trials else None
        here = (case.case.scenario, case.case.shape, case.case.distance)
        if line is None or here != (group.key.scenario, group.key.shape, group.key.distance):
            continue
        parts = parts_of(case, trials)
        if parts is not None:
            found[line.label] = (line, parts)
    return found


def _predicted(
    header: SessionHeader, observations: Sequence[Observation], groups: Sequence[Group], shape: Shape
) -> Choice:
    group = nearest(groups, header, shape)
    made = answer(group)
    known = parts_of_group(header, observations, group)
    why = next((said for _, parts in known.values() if (said := obstacle(parts, shape))), "")
    ranges = {label: predict(parts, shape) for label, (line, parts) in known.items() if line.offered}
    seconds = {label: found.middle_s for label, found in ranges.items()}
    if why or not seconds or made.use is None:
        return Choice(
            shape.label, False, None, math.nan, measured_on=group.key.shape, why_not=why or "nothing was ready"
        )
    soonest = min(seconds, key=lambda label: seconds[label])
    ties = [label for label in seconds if seconds[label] <= seconds[soonest] * (1 + TIE)]
    # Among those that a prediction cannot tell apart the measured answer stands: it knows the price, too.
    use = made.use if made.use in ties else soonest
    now = known.get(made.against or "")
    return Choice(
        shape.label, False, use, seconds[use], made.against, predict(now[1], shape).middle_s if now else math.nan,
        tuple(label for label in ties if label != use), group.key.shape, "", ranges[use].low_s, ranges[use].high_s,
    )  # fmt: skip


def advise(
    header: SessionHeader,
    observations: Sequence[Observation],
    prepared: Sequence[Preparation],
    scenario: str,
    shapes: Sequence[Shape],
    *,
    contents: Contents | None,
    read_in: str,
    variants: Sequence[Variant],
    notes: Sequence[str] = (),
) -> Advice:
    """Says everything about one scenario. ``variants`` are other ways to store the layers, as far as the image is
    known.
    """
    own = [o for o in observations if o.case.scenario == scenario]
    group = compare(own)[0]
    forms: dict[str, Form] = {}
    for case in header.plan.cases:
        trial = next((o for o in own if o.case == case.case), None)
        if trial is not None:
            forms[label_of(trial)] = case.form
    known = parts_of_group(header, own, group)
    offered = {label: parts for label, (line, parts) in known.items() if line.offered and parts.received_bytes > 0}
    made = answer(group)
    shape = next(case.shape for case in header.plan.cases if case.case.shape == group.key.shape)
    return Advice(
        scenario=scenario,
        choices=tuple(choices_of(header, own, scenario, shapes)),
        price=made.sentences[len(made.findings)] if made.use else made.sentences[-1],
        contents=contents,
        read_in=read_in,
        order=order(contents.layers) if contents else None,
        worth=tuple(worth(group, [p for p in prepared if p.scenario == scenario], forms)),
        repacked=tuple(repacked(label, parts, shape, v) for label, parts in offered.items() for v in variants),
        notes=tuple(notes),
    )
