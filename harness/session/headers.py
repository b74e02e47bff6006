"""The header of a session that is about to start: plan, host, versions, one place for every command that runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import __version__
from harness.machine.host import collect
from harness.model.session import SessionHeader
from harness.session.engines import runnable_plan
from harness.session.run import versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.model.plan import Selection
    from harness.model.scenario import Scenario


def new_header(
    scenarios: Sequence[Scenario],
    files: Mapping[str, str],
    seed: int,
    selection: Selection | None = None,
    *,
    registry: str = "",
    workloads: bool = True,
    kind: str = "",
) -> SessionHeader:
    """A header that looks at this host now; ``files`` says by name where scenarios come from, ``kind`` goes into the
    session's name. Raises UsageError where the plan is empty, HostUnfit where an engine cannot run here."""
    now = datetime.now(UTC)
    names = "+".join(scenario.name for scenario in scenarios)
    return SessionHeader(
        coldbench_version=__version__,
        session=f"{now:%Y%m%d-%H%M%S}-{f'{kind}-' if kind else ''}{names}"[:80],
        created_at=now.isoformat(timespec="seconds"),
        plan=runnable_plan(scenarios, seed, selection),
        scenarios={scenario.name: scenario for scenario in scenarios},
        scenario_files=dict(files),
        registry=registry,
        workloads=workloads,
        host=collect().model_dump(mode="json"),
        versions=versions(),
    )
