"""This module makes pandas frames of observations, for the report, for exports and for notebooks.

One row is one trial, or one part of one trial. A failed or invalid trial keeps its row with ``valid`` False and never
a value in ``ready_s``, so that no mean can include it by accident. The columns, their types and their units are those
of ``harness.report.dictionary``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.model.observation import BEFORE_READY
from harness.report.dictionary import FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.model.faults import FaultObservation
    from harness.model.observation import Observation

    Rows = Iterator[dict[str, Any]]


def _case(o: Observation | FaultObservation, host: str) -> dict[str, Any]:
    case = {**o.case.model_dump(exclude={"label"}), "preset": o.case.variant}
    return {"session": o.session, "host": host, **case, "case": o.case.key, "block": o.block, "trial": o.trial}


def _trials(o: Observation) -> Rows:
    yield {
        "started_at": o.started_at,
        "image_digest": o.image_digest,
        "options": json.dumps(o.options, sort_keys=True),
        "prefetch": o.prefetch,
        "status": o.status,
        "valid": o.valid,
        "why": o.failure.message if o.failure else "; ".join(i.reason for i in o.invalid),
        "ready_s": o.time_to_ready_s if o.valid else None,
        "bound_s": o.bound.seconds if o.bound else None,
        "cpu_s": o.cpu_to_ready_s,
        "throttled_s": sum(p.throttled_s for p in o.phases if p.phase in BEFORE_READY) if o.phases else None,
        "received_before_ready_bytes": o.wire_before_ready.received_bytes,
        "streamed_before_ready_bytes": o.lazy.bytes_streamed_before_ready if o.lazy else None,
        "daemon_restarts": o.lazy.restarts if o.lazy else None,
        "received_bytes": o.wire.received_bytes,
        "requests_before_ready": o.wire_before_ready.requests,
        "memory_peak_bytes": o.memory_peak_bytes,
        "memory_ready_bytes": o.memory_ready_bytes,
        "memory_ready_cache_bytes": o.memory_ready_cache_bytes,
        "disk_written_bytes": o.disk_written_bytes,
        "fuse_requests": o.lazy.fuse_requests if o.lazy else None,
    }


def _spans(o: Observation) -> Rows:
    for span in o.timeline:
        yield {"valid": o.valid, "span": span.name, **span.model_dump(exclude={"name"})}


def _phases(o: Observation) -> Rows:
    for phase in o.phases:
        yield {"valid": o.valid, **phase.model_dump()}


def _fuse(o: Observation) -> Rows:
    for opcode, used in ((o.lazy.fuse if o.lazy else None) or {}).items():
        yield {
            "valid": o.valid,
            "opcode": opcode,
            "count": used.count,
            "service_s": used.service.total_s,
            "service_max_s": used.service.max_s,
            "queueing_s": used.queueing.total_s,
        }


def _workloads(o: Observation) -> Rows:
    for w in o.workloads:
        if o.valid and w.failure is None:
            row = w.model_dump(exclude={"failure", "cpu_workload_s"})
            yield {**row, "cpu_s": w.cpu_workload_s + w.cpu_daemon_s}


def _credits(o: Observation) -> Rows:
    for sample in o.credits:
        yield sample.model_dump()


def _faults(o: FaultObservation) -> Rows:
    same = {
        "fault", "status", "started_at", "image_digest", "onset_s", "background_s", "fault_s", "recovered_s",
        "recovery_limit_s", "background_resumed", "resumed_s", "handed_over", "wrong_bytes", "received_bytes",
        "received_before_bytes", "received_in_fault_bytes",
        "image_bytes", "unhealthy_s", "falsely_healthy_s", "listing_healthy_s",
    }  # fmt: skip
    trial = o.model_dump(include=same)
    trial |= trial["fault"]
    trial |= {
        "valid": o.valid,
        "why": o.failure.message if o.failure else "; ".join(i.reason for i in o.invalid),
    }
    if not o.reads:
        yield trial
    for reads in o.reads:
        errors = ", ".join(f"{name}: {count}" for name, count in reads.errors.items())
        yield {**trial, **reads.model_dump(exclude={"wrong_bytes"}), "errors": errors}


_ROWS: dict[str, Callable[[Observation], Rows]] = {
    "trials": _trials,
    "spans": _spans,
    "phases": _phases,
    "fuse": _fuse,
    "workloads": _workloads,
    "credits": _credits,
}


def frame(name: str, observations: Sequence[Observation], hosts: dict[str, str] | None = None) -> pd.DataFrame:
    """Makes one frame by its name in the dictionary, typed; it is empty but for its columns where there is nothing to
    show.

    ``hosts`` says for each session on which host it ran.
    """
    hosts = hosts or {}
    rows = [{**_case(o, hosts.get(o.session, "")), **row} for o in observations for row in _ROWS[name](o)]
    return _typed(name, rows)


def fault_frame(struck: Sequence[FaultObservation], hosts: dict[str, str] | None = None) -> pd.DataFrame:
    """Makes the frame ``faults``: one row per fault trial and sample of files, one for a trial without reads."""
    hosts = hosts or {}
    return _typed("faults", [{**_case(o, hosts.get(o.session, "")), **row} for o in struck for row in _faults(o)])


def _typed(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = FRAMES[name]
    made = pd.DataFrame(rows, columns=[c.name for c in columns])
    return made.astype({c.name: c.dtype for c in columns})


def trials(observations: Sequence[Observation]) -> pd.DataFrame:
    """Makes one row per trial."""
    return frame("trials", observations)


def workloads(observations: Sequence[Observation]) -> pd.DataFrame:
    """Makes one row per run-time workload, temperature and valid trial."""
    return frame("workloads", observations)
