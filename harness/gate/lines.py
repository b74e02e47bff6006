"""This module makes the lines of a comparison: one ratio of one metric of one pair of cases, with its verdict.

Ratios are paired inside blocks where both sides ran in one session. Where a session has several hosts, each host
gives a ratio of its own and the overall one comes from them (``harness.stats.hosts``). All lines that may decide are
corrected together; the others are shown and decide nothing.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.model.metrics import INFORMATIVE, METRICS, family, of_trial
from harness.stats.correction import holm, holm_rejections
from harness.stats.hosts import HostsRatio, across_hosts
from harness.stats.paired import MIN_BLOCKS, PairedRatio, Verdict, independent_ratio, paired_ratio, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.gate.sides import Pair
    from harness.model.observation import Observation


@dataclass(frozen=True, slots=True)
class Line:
    """Holds candidate over baseline of one metric. ``verdict`` is None for what is only shown.

    ``adjusted_p`` is corrected for all lines that decide together; ``proven`` says that the difference, whatever its
    size, survives that correction. ``hosts`` is there where several hosts took part.
    """

    case: str
    metric: str
    ratio: PairedRatio
    candidate: float
    baseline: float
    margin: float
    adjusted_p: float | None = None
    proven: bool = False
    verdict: Verdict | None = None
    hosts: HostsRatio | None = None
    per_host: tuple[tuple[str, PairedRatio], ...] = ()


def time_lines(pairs: Sequence[Pair], margin_of: Callable[[str], float]) -> list[Line]:
    """Returns every time metric of every pair, unjudged."""
    return [line for pair in pairs for line in _of_pair(pair, margin_of)]


def _of_pair(pair: Pair, margin_of: Callable[[str], float]) -> Iterable[Line]:
    mine, theirs = _values(pair.candidate), _values(pair.baseline)
    for metric in mine:
        if metric not in theirs or METRICS[family(metric)].kind != "time":
            continue
        one, other = mine[metric], theirs[metric]
        made = _across_hosts(one, other) if pair.side_by_side else _apart(one, other)
        if made is None:
            continue
        ratio, hosts, per_host = made
        middle, base = statistics.median(one.values()), statistics.median(other.values())
        yield Line(pair.name, metric, ratio, middle, base, margin_of(metric), hosts=hosts, per_host=per_host)


def _values(observations: Iterable[Observation]) -> dict[str, dict[tuple[str, int], float]]:
    """Returns the values above zero by metric, then by host and block."""
    found: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for o in observations:
        if o.valid:
            for metric, value in of_trial(o).items():
                if value > 0:
                    found[metric][o.host, o.block] = value
    return found


Made = tuple[PairedRatio, HostsRatio | None, tuple[tuple[str, PairedRatio], ...]]


def _apart(one: dict[tuple[str, int], float], other: dict[tuple[str, int], float]) -> Made:
    return independent_ratio(list(one.values()), list(other.values())), None, ()


def _across_hosts(one: dict[tuple[str, int], float], other: dict[tuple[str, int], float]) -> Made | None:
    common = sorted(one.keys() & other.keys())
    if not common:
        return None
    by_host: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in common:
        by_host[key[0]].append(key)
    ratios = {
        host: paired_ratio([one[k] for k in keys], [other[k] for k in keys]) for host, keys in sorted(by_host.items())
    }
    if len(ratios) == 1:
        return next(iter(ratios.values())), None, ()
    overall = across_hosts(ratios)
    return overall.as_ratio(), overall, tuple(ratios.items())


def judge(
    lines: Sequence[Line],
    decide: Callable[[str], bool],
    *,
    alpha: float,
    level: Callable[[float], float] = lambda rate: rate,
    equivalence_alpha: float = 0.05,
) -> list[Line]:
    """Judges the lines: those that ``decide`` names are corrected together and share the rate ``alpha``.

    ``level`` turns an overall error rate into the p-value that this look of a sequential design allows.
    """
    p_values = {
        i: line.ratio.p_value
        for i, line in enumerate(lines)
        if decide(line.metric) and line.ratio.p_value is not None and line.ratio.blocks >= MIN_BLOCKS
    }
    adjusted, proven = holm(p_values), holm_rejections(p_values, alpha, level)
    judged = []
    for i, line in enumerate(lines):
        if not decide(line.metric):
            judged.append(line)
            continue
        # The verdict asks "at most alpha"; the sequential procedure has answered that already.
        said = verdict(
            line.ratio, margin=line.margin, adjusted_p=0.0 if i in proven else 1.0, alpha=alpha,
            equivalence_alpha=level(equivalence_alpha),
        )  # fmt: skip
        judged.append(replace(line, adjusted_p=adjusted.get(i), proven=i in proven, verdict=said))
    return judged


def primary(metrics: Sequence[str]) -> Callable[[str], bool]:
    """Returns a function that says whether a metric decides: it is named, or its family is and that is not one whose
    parts only inform.
    """
    named = set(metrics)
    return lambda metric: metric in named or (family(metric) in named and family(metric) not in INFORMATIVE)
