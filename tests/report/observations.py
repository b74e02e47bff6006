"""Observations made up for the report's tests: plausible, with a failed and an invalid trial among them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from harness.model.observation import (
    SCHEMA_VERSION,
    Bound,
    Case,
    CreditSample,
    Failure,
    Invalidity,
    Observation,
    PhaseUsage,
    Wire,
    WorkloadResult,
)
from harness.model.plan import Selection, make_plan
from harness.model.session import SessionHeader
from harness.model.timeline import Span
from harness.scenarios import find, load
from harness.session.store import Store

if TYPE_CHECKING:
    from pathlib import Path

FACTORS = {
    ("overlay2", "sequential"): (80.0, 1.0),
    ("overlay2", "tuned"): (30.0, 1.0),
    ("soci", "tuned"): (4.5, 1.8),
    ("erofs", "tuned"): (3.4, 1.01),
}


def case(mode: str, preset: str) -> Case:
    return Case.model_validate(
        {"scenario": "python-data", "mode": mode, "preset": preset, "engine": "embedded", "shape": "gcp-e2-micro"}
    )


def observation(mode: str, preset: str, block: int, *, seed: int = 1) -> Observation:
    """One valid trial with a timeline, phases and two run-time workloads."""
    rng = random.Random(f"{mode}{preset}{block}{seed}")
    base, overhead = FACTORS[mode, preset]
    ready = base * rng.uniform(0.95, 1.05)
    lazy = mode != "overlay2"
    first = [("mount", 0.1, 0.2)] if lazy else [("fetch", 0.05, 0.4 * ready), ("unpack", 0.4 * ready, 0.9 * ready)]
    spans = [("resolve", 0.0, 0.05), *first, ("start", 0.92 * ready, 0.93 * ready), ("ready", 0.93 * ready, ready)]
    received = 40e6 if lazy else 340e6
    return Observation(
        coldbench_version="0",
        session="s",
        trial=block * 10 + list(FACTORS).index((mode, preset)),
        block=block,
        case=case(mode, preset),
        started_at="2026-01-01T00:00:00Z",
        image_digest="sha256:" + "0" * 64,
        status="ok",
        time_to_ready_s=ready,
        timeline=tuple(Span(name=n, start_s=s, end_s=e) for n, s, e in spans),
        phases=(
            PhaseUsage(
                phase="pull",
                wall_s=0.9 * ready,
                cpu_user_s=0.15 * ready,
                cpu_system_s=0.07 * ready,
                throttled_s=0.6 * ready,
                nr_periods=100,
                nr_throttled=80,
            ),
            PhaseUsage(
                phase="start",
                wall_s=0.1 * ready,
                cpu_user_s=0.02 * ready,
                cpu_system_s=0.01 * ready,
                throttled_s=0.05 * ready,
                nr_periods=10,
                nr_throttled=8,
            ),
        ),
        memory_peak_bytes=200_000_000,
        wire=Wire(received_bytes=int(received), requests=12),
        wire_before_ready=Wire(received_bytes=int(received), requests=12),
        credits=tuple(CreditSample(t_s=t, balance_core_s=10 - t, quota_cores=1) for t in (0.0, 1.0, 2.0)),
        workloads=tuple(
            WorkloadResult(
                workload=w,
                temperature=t,
                wall_s=0.5 * rng.uniform(0.97, 1.03) * overhead * (1.0 if t == "warm" else 1.3),
                operations=1000,
                cpu_workload_s=0.1,
                fuse_requests=500 if lazy else 0,
            )
            for w in ("stat-walk", "import pandas")
            for t in ("cold", "warm")
        ),
        bound=Bound(seconds=0.5 * base),
    )


def session(blocks: int = 7) -> list[Observation]:
    """All four cases in every block, one trial failed, one invalid."""
    out = [observation(mode, preset, b) for b in range(blocks) for mode, preset in FACTORS]
    out[3] = out[3].model_copy(
        update={
            "status": "failed",
            "time_to_ready_s": None,
            "failure": Failure(kind="NotReady", message="not ready after 300 s"),
        }
    )
    out[-2] = out[-2].model_copy(update={"invalid": (Invalidity(rule="not-lazy", reason="fetched 99 % of the image"),)})
    return out


def header() -> SessionHeader:
    """What a session of one block begins with."""
    scenario = load(find("python-data"))
    return SessionHeader(
        schema_version=SCHEMA_VERSION,
        coldbench_version="0",
        session="s",
        created_at="2026-01-01T00:00:00+00:00",
        plan=make_plan([scenario], 1, Selection()),
        scenarios={scenario.name: scenario},
    )


def write_session(directory: Path) -> None:
    """A session with made-up observations, written as a run writes it."""
    with Store.create(directory, header()) as store:
        for observation in session():
            store.append(observation)
