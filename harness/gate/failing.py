"""This module makes a gate that ended in an error leave the same files as one with a verdict, and say that there is
none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import NothingToCompare, UsageError
from harness.gate.result import Failure, GateResult
from harness.session.store import HEADER

if TYPE_CHECKING:
    from harness.errors import ColdbenchError
    from harness.gate.baseline import Baseline
    from harness.gate.running import GateRun
    from harness.model.scenario import Scenario


def failed_gate(
    error: ColdbenchError,
    scenario: Scenario,
    file: Path,
    *,
    baseline: Baseline | None,
    run: GateRun | None,
    out: Path | None,
    repeat: str,
    lines_of_file: dict[str, int],
) -> GateResult:
    """Makes the result of a gate of ``scenario`` that ``error`` ended.

    ``baseline`` and ``run`` are None where the gate did not get so far.
    """
    place = (run.directory if run else None) or out or _unnamed(scenario)
    directory: Path | None = place
    if run is None or not run.begun:
        # A session that is not this gate's is another gate's, and so is what that one wrote beside it. A wrong
        # command line leaves nothing in a place that nobody named.
        foreign = (place / HEADER).exists()
        directory = None if foreign or (out is None and isinstance(error, UsageError | NothingToCompare)) else place
    return GateResult(
        scenario=scenario.name,
        file=str(file),
        baseline=baseline.text if baseline else "",
        host=run.host if run else "",
        directory=directory,
        repeat=repeat,
        unconfirmed=tuple(run.open_regressions) if run else (),
        blocks=run.blocks_run if run else 0,
        most_blocks=run.most_blocks if run else 0,
        alpha=scenario.gate.alpha,
        lines_of_file=lines_of_file,
        failure=Failure(error.kind, str(error), error.exit_code),
    )


def _unnamed(scenario: Scenario) -> Path:
    """Names where a gate that never had a session leaves its files when no directory was named."""
    return Path("results") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-gate-{scenario.name}"[:80]
