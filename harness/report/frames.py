"""Observations as pandas frames, for the report and for notebooks.

One row is one trial; a failed or invalid trial keeps its row with ``valid`` False and never a value in ``ready_s``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.observation import Observation


def _case_columns(o: Observation) -> dict[str, Any]:
    return {**o.case.model_dump(), "case": o.case.key, "block": o.block}


def trials(observations: Sequence[Observation]) -> pd.DataFrame:
    """One row per trial: case columns, ``block``, ``status``, ``valid``, ``why``, and values named with units."""
    rows = []
    for o in observations:
        why = o.failure.message if o.failure else "; ".join(i.reason for i in o.invalid)
        fuse = sum(op.count for op in o.lazy.fuse.values()) if o.lazy else 0
        rows.append(
            {
                **_case_columns(o),
                "trial": o.trial,
                "status": o.status,
                "valid": o.valid,
                "why": why,
                "ready_s": o.time_to_ready_s if o.valid else None,
                "bound_s": o.bound.seconds if o.bound else None,
                "cpu_s": o.cpu_to_ready_s,
                "throttled_s": sum(p.throttled_s for p in o.phases if p.phase in {"pull", "start"}),
                "received_before_ready_bytes": o.wire_before_ready.received_bytes,
                "received_bytes": o.wire.received_bytes,
                "requests_before_ready": o.wire_before_ready.requests,
                "memory_peak_bytes": o.memory_peak_bytes,
                "disk_written_bytes": o.disk_written_bytes,
                "fuse_requests": fuse,
            }
        )
    return pd.DataFrame(rows)


def workloads(observations: Sequence[Observation]) -> pd.DataFrame:
    """One row per run-time workload, temperature and valid trial: wall and CPU seconds, operations, FUSE requests."""
    rows = [
        {
            **_case_columns(o),
            "workload": w.workload,
            "temperature": w.temperature,
            "wall_s": w.wall_s,
            "operations": w.operations,
            "bytes": w.bytes,
            "cpu_s": w.cpu_workload_s + w.cpu_daemon_s,
            "cpu_daemon_s": w.cpu_daemon_s,
            "fuse_requests": w.fuse_requests,
        }
        for o in observations
        if o.valid
        for w in o.workloads
        if w.failure is None
    ]
    return pd.DataFrame(rows)
