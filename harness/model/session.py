"""A header says what a session is before its first trial: plan, seed, scenarios, host and versions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.model.observation import SCHEMA_VERSION, Frozen
from harness.model.plan import Plan
from harness.model.scenario import Scenario


class SessionHeader(Frozen):
    """The content of ``session.json``. Written once; what happens later goes to files that only grow."""

    schema_version: int = SCHEMA_VERSION
    coldbench_version: str
    session: str
    created_at: str
    """UTC, ISO 8601."""
    plan: Plan
    scenarios: dict[str, Scenario]
    """By name, complete: the files may have changed since."""
    scenario_files: dict[str, str] = Field(default_factory=dict)
    """Where each scenario was read from."""
    registry: str = ""
    """URL of the registry the user named; empty for the session's own."""
    workloads: bool = True
    """False when the run-time workloads were left out (``--no-workloads``)."""
    host: dict[str, Any] = Field(default_factory=dict)
    """Kernel, CPU model, cgroup version, file systems, load, steal, git commit."""
    commit: str = ""
    """Of what is measured, as the CI system names it (``COLDBENCH_COMMIT``, ``GITHUB_SHA``, ``CI_COMMIT_SHA``)."""
    command: str = ""
    """What started it, as one types it, without its seed and its directory; empty in sessions from before 2027."""
    shard: str = ""
    """``2/5``: this session runs the second of five parts of the plan; empty for all of it."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Tools and libraries by name."""

    @property
    def seed(self) -> int:
        return self.plan.seed


class Preparation(Frozen):
    """One artefact made out of band, and what it cost; a line of ``preparations.jsonl``."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    form: str
    """``image``, ``estargz``, ``soci``, ``erofs``; ``trace``: a prefetch list; ``application``: the workload's CPU."""
    digest: str
    """Digest of the manifest (or index) that was made; of the image for the last two."""
    cached: bool
    """Whether it was there from an earlier session; its cost is then zero."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    bytes: int = 0
    """Bytes of the layers, or of the index."""
    details: dict[str, Any] = Field(default_factory=dict)
