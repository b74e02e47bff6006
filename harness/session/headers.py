"""This module makes the header of every session that a command starts: plan, host and versions."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import __version__, scenarios
from harness.machine.host import collect
from harness.model.axes import points
from harness.model.plan import choose_after_ready
from harness.model.session import SessionHeader
from harness.session.engines import runnable_plan
from harness.session.run import versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.model.plan import Selection
    from harness.model.scenario import Scenario


def make_header(
    names: Sequence[str],
    selection: Selection,
    *,
    seed: int | None = None,
    registry: str = "",
    workloads: bool = True,
    command: str = "",
    faults: bool = False,
) -> SessionHeader:
    """Makes the header of a session of these scenarios (names or files); the seed is drawn where none is given.

    With ``faults`` the plan holds the trials of what fails after ready, where a scenario names any.

    Raises:
        UsageError: a scenario cannot be found or loaded, or nothing of it is chosen.
        HostUnfit: an engine that is wanted cannot run here.
    """
    files = [scenarios.find(name) for name in names]
    chosen = [scenarios.load(path) for path in files]
    return new_header(
        chosen,
        {scenario.name: str(path) for scenario, path in zip(chosen, files, strict=True)},
        secrets.randbelow(1 << 31) if seed is None else seed,
        selection,
        registry=registry,
        workloads=workloads,
        command=command,
        faults=faults,
    )


def commit() -> str:
    """Returns the commit that is measured, where the environment names one."""
    names = ("COLDBENCH_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def new_header(
    scenarios: Sequence[Scenario],
    files: Mapping[str, str],
    seed: int,
    selection: Selection | None = None,
    *,
    registry: str = "",
    workloads: bool = True,
    faults: bool = False,
    kind: str = "",
    command: str = "",
) -> SessionHeader:
    """Makes a header, with this host as it is now.

    ``files`` says by name where scenarios come from, ``kind`` goes into the session's name. Raises UsageError where the
    plan is empty, HostUnfit where an engine cannot run here.
    """
    now = datetime.now(UTC)
    scenarios = [choose_after_ready(scenario, selection) if selection else scenario for scenario in scenarios]
    every = [(scenario.name, point) for scenario in scenarios for point in points(scenario)]
    plan = runnable_plan([point for _name, point in every], seed, selection, registry=registry, faults=faults)
    named = "+".join(scenario.name for scenario in scenarios)
    return SessionHeader(
        coldbench_version=__version__,
        session=f"{now:%Y%m%d-%H%M%S}-{f'{kind}-' if kind else ''}{named}"[:80],
        created_at=now.isoformat(timespec="seconds"),
        plan=plan,
        scenarios={point.name: point for _name, point in every},
        scenario_files={point.name: files[name] for name, point in every if name in files},
        registry=registry,
        workloads=workloads,
        commit=commit(),
        command=command,
        host=collect().model_dump(mode="json"),
        versions=versions(),
    )
