"""This module says why a start got slower or larger: by the phases of the timeline, the paths, the bytes and the
requests.

A verdict without a reason sends its reader searching; everything needed to name one was recorded with the trials.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from harness.gate.wording import change, value
from harness.report.wording import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.gate.sides import Pair
    from harness.model.observation import Observation
    from harness.session.inventory import Inventory

#: How many paths, phases and counters a reason names.
NAMED = 8


def phases(pair: Pair) -> list[str]:
    """Lists the phases of the timeline whose medians differ most, the largest first."""
    mine, theirs = _durations(pair.candidate), _durations(pair.baseline)
    moved = {
        name: statistics.median(mine.get(name, [0.0])) - statistics.median(theirs.get(name, [0.0]))
        for name in mine.keys() | theirs.keys()
    }
    told = sorted((name for name in moved if moved[name] > 0.005), key=lambda name: -moved[name])[:3]
    return [
        f"phase {name}: {value('time-to-ready', statistics.median(theirs.get(name, [0.0])))} to "
        f"{value('time-to-ready', statistics.median(mine.get(name, [0.0])))}"
        for name in told
    ]


def _durations(observations: Iterable[Observation]) -> dict[str, list[float]]:
    """Returns the seconds that each phase covered before ready, by trial: the union of its spans, since layers
    overlap.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for o in observations:
        if not o.valid or o.time_to_ready_s is None:
            continue
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for span in o.timeline:
            if span.start_s < o.time_to_ready_s:
                spans[span.name].append((span.start_s, min(span.end_s, o.time_to_ready_s)))
        for name, of_name in spans.items():
            found[name].append(_covered(of_name))
    return found


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def paths(candidate: Inventory, baseline: Inventory) -> list[str]:
    """Says what is in the candidate's image that was not, or is larger; and what a start reads that it did not."""
    grown = {
        path: size_bytes - baseline.files.get(path, 0)
        for path, size_bytes in candidate.files.items()
        if size_bytes > baseline.files.get(path, 0)
    }
    out = []
    if grown:
        new = sum(path not in baseline.files for path in grown)
        out.append(f"{len(grown)} files add {size(sum(grown.values()))}, {new} of them are new")
        out += [
            f"{'new' if path not in baseline.files else 'grown'}: {path} (+{size(grown[path])})"
            for path in sorted(grown, key=lambda path: -grown[path])[:NAMED]
        ]
    if len(candidate.layers) != len(baseline.layers):
        out.append(f"{len(candidate.layers)} layers, there were {len(baseline.layers)}")
    if candidate.reads is not None and baseline.reads is not None:
        before = set(baseline.reads)
        more = [path for path in candidate.reads if path not in before]
        if more:
            bytes_read = sum(candidate.files.get(path, 0) for path in more)
            out.append(f"a start now reads {len(more)} further files ({size(bytes_read)})")
            out += [f"read: {path}" for path in more[:NAMED]]
    return out


def counters(pair: Pair) -> list[str]:
    """Lists the counters that grew by more than a twentieth, the largest change first."""
    from harness.gate.counters import counter_values

    mine, theirs = counter_values(pair.candidate), counter_values(pair.baseline)
    moved = []
    for metric in mine.keys() & theirs.keys():
        a, b = statistics.median(theirs[metric]), statistics.median(mine[metric])
        if a > 0 and b / a > 1.05:
            moved.append((b / a, f"{metric}: {value(metric, a)} to {value(metric, b)} ({change(b / a)})"))
    return [text for _, text in sorted(moved, reverse=True)[:NAMED]]
