"""Sessions made up for comparisons: two sides of one scenario in the same blocks, with a host's noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.model.observation import LazyUsage, Observation, PhaseUsage, Wire, WorkloadResult
from harness.model.plan import Plan, PlannedCase, make_plan
from harness.model.session import SessionHeader
from harness.model.timeline import Span
from harness.scenarios import parse
from harness.session.store import HEADER, OBSERVATIONS
from tests.stats import noise

if TYPE_CHECKING:
    from pathlib import Path

    from harness.model.scenario import Scenario

SCENARIO = """
name = "app"
shapes = ["cpu=0.25,memory=1G"]
modes = ["overlay2:tuned", "erofs"]
blocks = 12
[image]
ref = "docker://registry.example/app:1"
[workload]
readiness = { kind = "exit" }
[runtime]
workloads = ["stat-walk"]
temperatures = ["cold", "warm"]
"""
HOST = {"machine": "x86_64", "cpu_model": "Example CPU", "cores": 2, "virtualised": True, "cgroup_version": 2,
        "kernel": "6.1.0", "memory_bytes": 4 << 30}  # fmt: skip
DIGESTS = {"app": "sha256:" + "a" * 64, "app.baseline": "sha256:" + "b" * 64}


def scenario(name: str = "app", extra: str = "") -> Scenario:
    """The scenario of these sessions under another name; ``extra`` is more TOML."""
    return parse(SCENARIO + extra, "app.toml").model_copy(update={"name": name})


def header(names: tuple[str, ...] = ("app",), session: str = "s", blocks: int = 12, extra: str = "") -> SessionHeader:
    scenarios = {name: scenario(name, extra).model_copy(update={"blocks": blocks}) for name in names}
    return SessionHeader(
        coldbench_version="0",
        session=session,
        created_at="2026-01-01T00:00:00+00:00",
        plan=make_plan(list(scenarios.values()), 1),
        scenarios=scenarios,
        host=HOST,
    )


def observation(
    case: PlannedCase, trial: int, block: int, ready: float, *, wall: float = 1.0, host: str = "", requests: int = 40
) -> Observation:
    """A valid trial whose times follow from ``ready`` and ``wall``."""
    lazy = case.lazy
    return Observation(
        coldbench_version="0",
        session="s",
        trial=trial,
        block=block,
        case=case.case,
        started_at=f"2026-01-01T00:{block % 60:02d}:00+00:00",
        host=host,
        image_digest=DIGESTS.get(case.case.scenario, DIGESTS["app"]),
        status="ok",
        time_to_ready_s=ready,
        timeline=(
            Span(name="resolve", start_s=0.0, end_s=0.05),
            Span(name="mount" if lazy else "unpack", start_s=0.05, end_s=0.6 * ready),
            Span(name="ready", start_s=0.6 * ready, end_s=ready),
        ),
        phases=(
            PhaseUsage(
                phase="start", wall_s=ready, cpu_user_s=0.2 * ready, cpu_system_s=0.05 * ready, throttled_s=0.5,
                nr_periods=10, nr_throttled=5,
            ),
        ),
        disk_written_bytes=1_000_000,
        wire=Wire(received_bytes=20_000_000, requests=requests),
        wire_before_ready=Wire(received_bytes=20_000_000, requests=requests),
        lazy=LazyUsage(
            layers_lazy=3, layers_unpacked=0, bytes_fetched_before_ready=9_000_000, bytes_fetched=20_000_000,
            requests_before_ready=requests, requests=requests, spans_fetched=30, spans_total=60,
            bytes_inflated=30_000_000, digest_mismatches=0, retries=0,
        )
        if lazy
        else None,
        workloads=tuple(
            WorkloadResult(workload="stat-walk", temperature=t, wall_s=0.1 * wall, operations=10, cpu_workload_s=0.05)
            for t in ("cold", "warm")
        ),
    )  # fmt: skip


def trials(
    plan: Plan, seed: int = 1, *, kind: str = "steady", slower: dict[str, float] | None = None, host: str = ""
) -> list[Observation]:
    """One observation for every trial of a plan; ``slower`` multiplies the times of scenarios."""
    rng = np.random.default_rng(seed)
    n = len(plan.trials)
    ready, wall = np.exp(noise.KINDS[kind](rng, n)), np.exp(noise.KINDS[kind](rng, n))
    cases = {case.case.key: case for case in plan.cases}
    made = []
    for i, trial in enumerate(plan.trials):
        case = cases[trial.case]
        factor = (slower or {}).get(case.case.scenario, 1.0) * (1.0 if case.lazy else 3.0)
        made.append(
            observation(case, trial.trial, trial.block, float(factor * ready[i]), wall=float(wall[i]), host=host)
        )
    return made


def write(directory: Path, head: SessionHeader, observations: list[Observation]) -> Path:
    """Store a session in the form a run leaves it, without waiting for the disk after every line."""
    directory.mkdir(parents=True)
    (directory / HEADER).write_text(head.model_dump_json(indent=1) + "\n")
    (directory / OBSERVATIONS).write_text("".join(o.model_dump_json() + "\n" for o in observations))
    return directory
