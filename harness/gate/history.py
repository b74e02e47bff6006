"""This module finds trends over stored sessions: one line per case, metric and host class, with change points.

A value of a line is the median over the valid trials of one session on one host. Hosts are never mixed in a line:
another processor would look like a change. Change points are Apache Otava's (E-divisive means with a t-test, Hunter's
variant; Fleming et al. 2023), which others keep for this very purpose.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import MissingTool, NothingToCompare
from harness.gate.environment import describe, host_class
from harness.model.metrics import METRICS, family, of_trial
from harness.session import hosts, store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from harness.model.observation import Observation
    from harness.model.session import SessionHeader

#: What a trend shows unless metrics are named: times that decide, and bytes.
DEFAULT_METRICS = ("time-to-ready", "cpu-to-ready", "runtime-relative", "received-before-ready")


@dataclass(frozen=True, slots=True)
class Point:
    """Holds one session's value: when it ran, the commit it ran for (empty where none was recorded), and how many
    trials are behind it.
    """

    at: datetime
    commit: str
    session: str
    value: float
    trials: int


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """Says that from point ``index`` on values are others than before, with the means on both sides and how sure that
    is.
    """

    index: int
    before: float
    after: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Trend:
    """Holds one case and metric on hosts of one class, in the order of time."""

    case: str
    metric: str
    host: str
    points: tuple[Point, ...]
    changes: tuple[ChangePoint, ...] = ()


def trends(
    directories: Iterable[Path], metrics: Sequence[str] = (), *, p_value: float = 0.001, change_points: bool = True
) -> list[Trend]:
    """Returns all lines of the sessions, with their change points.

    Raises:
        UsageError: a directory is no session.
        NothingToCompare: no session has a valid trial.
        MissingTool: the extra ``history`` is not installed.
    """
    wanted = metrics or DEFAULT_METRICS
    values: dict[tuple[str, str, str], dict[str, Point]] = defaultdict(dict)
    described: dict[str, str] = {}
    for directory in directories:
        header, observations = store.load(directory)
        known = hosts.load(directory)
        for name, members in _by_host(observations).items():
            facts = known.get(name, header.host)
            kind = host_class(facts)
            described[kind] = describe(facts)
            for (case, metric), point in _points(header, members, wanted).items():
                values[case, metric, kind][f"{header.session}/{name}"] = point
    if not values:
        raise NothingToCompare("no session holds a valid trial; name sessions' directories, as results/*")
    return [
        Trend(case, metric, described[kind], points, _changes(points, p_value) if change_points else ())
        for (case, metric, kind), of_line in sorted(values.items())
        for points in [tuple(sorted(of_line.values(), key=lambda p: (p.at, p.session)))]
    ]


def _by_host(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    found: dict[str, list[Observation]] = defaultdict(list)
    for o in observations:
        if o.valid:
            found[o.host].append(o)
    return found


def _points(
    header: SessionHeader, members: Iterable[Observation], wanted: Sequence[str]
) -> dict[tuple[str, str], Point]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for o in members:
        for metric, value in of_trial(o).items():
            if metric in wanted or family(metric) in wanted:
                values[o.case.key, metric].append(value)
    at = datetime.fromisoformat(header.created_at)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return {
        key: Point(at, header.commit, header.session, statistics.median(of_key), len(of_key))
        for key, of_key in values.items()
    }


def _changes(points: Sequence[Point], p_value: float) -> tuple[ChangePoint, ...]:
    """Returns the change points of a line; a line of fewer than four sessions has none."""
    if len(points) < 4:
        return ()
    try:
        from otava.series import AnalysisOptions, Metric, Series
    except ImportError:
        raise MissingTool(
            "change points need Apache Otava; install it with: pip install 'coldbench[history]' (it pins numpy: an "
            "environment of its own will do, history only reads stored sessions), or leave them out: --no-change-points"
        ) from None
    options = AnalysisOptions()
    options.max_pvalue = p_value
    times = [int(point.at.timestamp()) for point in points]
    series = Series("", None, times, {"value": Metric()}, {"value": [point.value for point in points]}, {})
    return tuple(
        ChangePoint(int(c.index), float(c.stats.mean_1), float(c.stats.mean_2), float(c.stats.pvalue))
        for c in series.analyze(options).change_points["value"]
    )


def unit_of(metric: str) -> str:
    """Returns the unit of a metric, for axes."""
    return METRICS[family(metric)].unit
