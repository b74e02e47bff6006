"""This module writes sessions for other programs: Parquet and CSV files of the frames, and pytest-benchmark's JSON."""

from __future__ import annotations

import json
import platform
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.errors import NothingToCompare, UsageError
from harness.report.dictionary import FRAMES
from harness.stats.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.model.observation import Observation
    from harness.report.sessions import Sessions


def export_frames(sessions: Sessions, out: Path, kind: str) -> list[Path]:
    """Writes every frame to ``out/NAME.parquet`` or ``out/NAME.csv``; returns the paths written.

    Raises:
        UsageError: Parquet needs pyarrow, and it is not installed.
    """
    if kind == "parquet" and find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow: pip install 'coldbench[parquet]', or take --format csv")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FRAMES:
        path, frame = out / f"{name}.{kind}", sessions.frame(name)
        if kind == "parquet":
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False)
        written.append(path)
    return written


def export_benchmarks(sessions: Sessions, out: Path) -> list[Path]:
    """Writes ``out/benchmarks.json`` as pytest-benchmark does: one benchmark per case, with its phases in extra_info.

    Times to ready are the rounds. A case without a valid trial is left out, as a failed benchmark is there.

    Raises:
        NothingToCompare: no case has a valid trial.
        UsageError: two sessions ran a case of one name with different options, so their trials are not one benchmark's.
    """
    cases: dict[str, list[Observation]] = {}
    for o in sessions.observations:
        if o.valid:
            cases.setdefault(o.case.key, []).append(o)
    if not cases:
        raise NothingToCompare("no trial is valid, so there is no benchmark to export")
    for key, seen in cases.items():
        if any((o.options, o.prefetch) != (seen[0].options, seen[0].prefetch) for o in seen):
            raise UsageError(f"{key} ran with other options in another of these sessions: export one session at a time")
    document = {
        "machine_info": {"node": platform.node(), **(sessions.headers[0].host if sessions.headers else {})},
        "commit_info": {},
        "benchmarks": [_benchmark(key, seen) for key, seen in cases.items()],
        "datetime": sessions.headers[0].created_at,
        "version": f"coldbench {__version__}",
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "benchmarks.json"
    path.write_text(json.dumps(document, indent=2, default=str) + "\n", "utf-8")
    return [path]


def _benchmark(key: str, seen: list[Observation]) -> dict[str, Any]:
    times = [o.time_to_ready_s for o in seen if o.time_to_ready_s is not None]
    summary = summarise(times)
    assert summary is not None
    mean = sum(times) / len(times)
    spread = (sum((t - mean) ** 2 for t in times) / (len(times) - 1)) ** 0.5 if len(times) > 1 else 0.0
    return {
        "group": seen[0].case.scenario,
        "name": key,
        "fullname": key,
        "params": None,
        "param": None,
        "extra_info": {"options": seen[0].options, "prefetch": seen[0].prefetch, **extra_info(seen)},
        "options": {"disable_gc": False, "timer": "monotonic", "min_rounds": len(times), "warmup": False},
        "stats": {
            "min": summary.minimum,
            "max": summary.maximum,
            "mean": mean,
            "stddev": spread,
            "rounds": len(times),
            "median": summary.median,
            "iqr": summary.q3 - summary.q1,
            "q1": summary.q1,
            "q3": summary.q3,
            "iqr_outliers": 0,
            "stddev_outliers": 0,
            "outliers": "0;0",
            "ld15iqr": summary.minimum,
            "hd15iqr": summary.maximum,
            "ops": 1 / mean,
            "total": sum(times),
            "iterations": 1,
            "data": times,
        },
    }


def extra_info(seen: list[Observation]) -> dict[str, Any]:
    """Returns medians over the trials of what a start cost besides time: phases, CPU, bytes and
    requests before ready.
    """

    def median(value: Callable[[Observation], float | None]) -> float | None:
        """Returns the median; None where no trial knows its value: an engine that does not count its requests."""
        known = [float(found) for o in seen if (found := value(o)) is not None]
        summary = summarise(known)
        return None if summary is None else summary.median

    def wall_s(name: str) -> float | None:
        return median(lambda o: sum(p.wall_s for p in o.phases if p.phase == name))

    names = {p.phase: None for o in seen for p in o.phases}
    return {
        **{f"{name}_s": wall_s(name) for name in names},
        "cpu_s": median(lambda o: o.cpu_to_ready_s),
        "received_before_ready_bytes": median(lambda o: o.wire_before_ready.received_bytes),
        "requests_before_ready": median(lambda o: o.wire_before_ready.requests),
    }
