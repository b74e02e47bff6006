"""What a session says about itself before its first trial, made from scenarios and what is chosen of them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness import __version__, scenarios
from harness.machine.host import collect
from harness.model.session import SessionHeader
from harness.session.engines import runnable_plan
from harness.session.run import versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.plan import Selection


def make_header(
    names: Sequence[str], selection: Selection, *, seed: int | None = None, registry: str = "", workloads: bool = True
) -> SessionHeader:
    """The header of a session of these scenarios (names or files); the seed is drawn where none is given.

    Raises:
        UsageError: a scenario cannot be found or loaded, or nothing of it is chosen.
        HostUnfit: an engine that is wanted cannot run here.
    """
    files = [scenarios.find(name) for name in names]
    chosen = [scenarios.load(path) for path in files]
    loaded = {scenario.name: scenario for scenario in chosen}
    now = datetime.now(UTC)
    return SessionHeader(
        coldbench_version=__version__,
        session=f"{now:%Y%m%d-%H%M%S}-{'+'.join(loaded)}"[:80],
        created_at=now.isoformat(timespec="seconds"),
        plan=runnable_plan(chosen, secrets.randbelow(1 << 31) if seed is None else seed, selection),
        scenarios=loaded,
        scenario_files={scenario.name: str(path) for scenario, path in zip(chosen, files, strict=True)},
        registry=registry,
        workloads=workloads,
        host=collect().model_dump(mode="json"),
        versions=versions(),
    )
