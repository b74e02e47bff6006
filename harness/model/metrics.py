"""This module names the metrics of a comparison, and takes their values from a trial; pure.

There are three kinds. *Image* metrics describe what was built and do not scatter at all. *Counters* describe what a
start does and scatter little or much, which an A/A run of this host says. *Times* (CPU seconds included) scatter always
and are compared with intervals. A metric's key may name a part after a slash: ``fuse/LOOKUP``, ``runtime/import/warm``;
a threshold for ``fuse`` speaks of all its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.model.near_miss import near_miss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.model.observation import Observation

Kind = Literal["image", "counter", "time"]
Unit = Literal["s", "bytes", ""]


@dataclass(frozen=True, slots=True)
class Metric:
    """Describes one metric. ``tolerance`` is the relative change that is let pass where neither scenario nor A/A says
    more.
    """

    name: str
    kind: Kind
    unit: Unit
    says: str
    tolerance: float = 0.0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("image-bytes", "image", "bytes", "stored bytes of the image's layers"),
        Metric("image-layers", "image", "", "layers of the image"),
        Metric("image-files", "image", "", "files, directories and other entries that the image shows"),
        Metric("image-unpacked-bytes", "image", "bytes", "bytes of the files that the image shows"),
        Metric("files-read", "image", "", "files that a start reads, as its trace recorded them"),
        Metric("received-before-ready", "counter", "bytes", "bytes received before ready", 0.02),
        Metric("requests-before-ready", "counter", "", "registry requests before ready", 0.05),
        Metric("fetched-before-ready", "counter", "bytes", "bytes of layers a lazy start fetched before ready", 0.02),
        Metric("spans-fetched", "counter", "", "spans or chunks a lazy start fetched", 0.05),
        Metric("bytes-inflated", "counter", "bytes", "bytes a lazy start inflated", 0.05),
        Metric("layers-unpacked", "counter", "", "layers a lazy mode unpacked instead of serving"),
        Metric("disk-written", "counter", "bytes", "bytes written to the machine's disk", 0.1),
        Metric("fuse", "counter", "", "FUSE requests, by opcode", 0.1),
        Metric("time-to-ready", "time", "s", "seconds from T0 until ready"),
        Metric("cpu-to-ready", "time", "s", "CPU seconds of the machine from T0 until ready"),
        Metric("runtime-overhead", "time", "s", "wall time of all run-time workloads: geometric mean of the trial"),
        Metric("runtime-cpu", "time", "s", "CPU seconds of all run-time workloads: geometric mean of the trial"),
        Metric("runtime-relative", "time", "", "wall time of run-time workloads over the reference job's beside each"),
        Metric("runtime", "time", "s", "wall time of one run-time workload at one temperature"),
        Metric(
            "reference-job",
            "time",
            "s",
            "wall time of the reference job, which no image and no mode changes: geometric mean",
        ),
    )
}

#: Families whose parts a comparison shows, but which never decide unless a scenario's gate names them.
INFORMATIVE = frozenset({"runtime", "reference-job"})


def family(key: str) -> str:
    """Returns the metric of a key: its part before the first slash."""
    return key.partition("/")[0]


def check_name(key: str) -> str:
    """Returns the key itself. Raises ValueError, with the nearest name, for a metric that is not there."""
    if family(key) not in METRICS:
        hint = near_miss(family(key), METRICS) or f"; expected one of {', '.join(METRICS)}"
        raise ValueError(f"no metric called {key!r}{hint}")
    return key


def setting(key: str, values: Mapping[str, float]) -> float | None:
    """Returns what a table says of a key: its own value, else that of the nearest family above it."""
    while key:
        if key in values:
            return values[key]
        key = key.rpartition("/")[0]
    return None


def of_trial(o: Observation) -> dict[str, float]:
    """Returns every counter and time that a valid trial shows; what was not seen is not there."""
    return {key: float(value) for key, value in _seen(o) if value is not None}


def _seen(o: Observation) -> Iterator[tuple[str, float | None]]:
    yield "time-to-ready", o.time_to_ready_s
    yield "cpu-to-ready", o.cpu_to_ready_s
    yield "received-before-ready", o.wire_before_ready.received_bytes
    yield "requests-before-ready", o.wire_before_ready.requests
    yield "disk-written", o.disk_written_bytes
    if o.lazy is not None:
        yield "fetched-before-ready", o.lazy.bytes_fetched_before_ready
        yield "spans-fetched", o.lazy.spans_fetched
        yield "bytes-inflated", o.lazy.bytes_inflated
        yield "layers-unpacked", o.lazy.layers_unpacked
        for opcode, seen in (o.lazy.fuse or {}).items():
            yield f"fuse/{opcode}", seen.count
    yield from _runtime(o)


def _runtime(o: Observation) -> Iterator[tuple[str, float | None]]:
    if any(w.failure is not None for w in o.workloads):
        return  # a mean over fewer workloads than the other side's would be no comparison
    walls, cpus, relative, references = [], [], [], []
    for w in o.workloads:
        if w.wall_s > 0:
            yield f"runtime/{w.workload}/{w.temperature}", w.wall_s
            walls.append(w.wall_s)
            cpus.append(w.cpu_workload_s + w.cpu_daemon_s)
            if w.reference_wall_s > 0:
                relative.append(w.wall_s / w.reference_wall_s)
                references.append(w.reference_wall_s)
    if walls:
        yield "runtime-overhead", _geometric_mean(walls)
    if relative and len(relative) == len(walls):
        yield "runtime-relative", _geometric_mean(relative)
        yield "reference-job", _geometric_mean(references)
    if cpus and min(cpus) > 0:
        yield "runtime-cpu", _geometric_mean(cpus)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
