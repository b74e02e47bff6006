"""This module describes a session's header: what the session is before its first trial (plan, seed, scenarios, host,
versions).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.model.details import PreparationDetails
from harness.model.observation import SCHEMA_VERSION, Frozen
from harness.model.plan import Plan
from harness.model.scenario import Scenario


class SessionHeader(Frozen):
    """Holds the content of ``session.json``. It is written once; what happens later goes to files that only grow."""

    schema_version: int = SCHEMA_VERSION
    coldbench_version: str
    session: str
    created_at: str
    """Says when it was made: UTC, ISO 8601."""
    plan: Plan
    scenarios: dict[str, Scenario]
    """Holds the scenarios by name, complete: the files may have changed since."""
    scenario_files: dict[str, str] = Field(default_factory=dict)
    """Says where each scenario was read from."""
    registry: str = ""
    """Holds the URL of the registry the user named; empty for the session's own."""
    workloads: bool = True
    """Is False when the run-time workloads were left out (``--no-workloads``)."""
    host: dict[str, Any] = Field(default_factory=dict)
    """Describes the host: kernel, CPU model, cgroup version, file systems, load, steal, git commit."""
    commit: str = ""
    """Names the commit that is measured, as the CI system gives it (``COLDBENCH_COMMIT``, ``GITHUB_SHA``,
    ``CI_COMMIT_SHA``).
    """
    command: str = ""
    """Holds the command that started it, as one types it, without its seed and its directory; empty in sessions from
    before 2027.
    """
    shard: str = ""
    """Names the part of the plan that this session runs (``2/5``: the second of five); empty for all of it."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Holds the versions of tools and libraries by name."""

    @property
    def seed(self) -> int:
        return self.plan.seed


class Preparation(Frozen):
    """Records one artefact made out of band, and what it cost; a line of ``preparations.jsonl``."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    form: str
    """Is ``image``, ``estargz``, ``soci`` or ``erofs``; ``trace`` is a prefetch list, ``application`` the workload's
    CPU.
    """
    digest: str
    """Holds the digest of the manifest (or index) that was made; for the last two, the image's."""
    cached: bool
    """Says whether it was there from an earlier session; its cost is then zero."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    bytes: int = 0
    """Counts bytes of the layers, or of the index."""
    details: PreparationDetails = PreparationDetails()
