"""``coldbench plan SCENARIO|DIR --detect 5%`` says how many blocks and minutes a change needs, from the spread seen
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.model.scenario import Gate


def plan(
    scenario: str = typer.Argument(
        ..., metavar="SCENARIO|DIR", help="A scenario with a kept A/A run, or any session's directory."
    ),
    detect: str = typer.Option("5%", "--detect", help="The change to find 95 times of 100."),
) -> None:
    """Say how many blocks a change needs, and how long that takes, from the spread that trials have
    shown on this host.
    """
    from harness import scenarios
    from harness.cli.quantities import share
    from harness.errors import NothingToCompare
    from harness.gate import planning
    from harness.gate.aa_store import latest
    from harness.gate.environment import host_class
    from harness.gate.wording import percent, table
    from harness.machine.host import collect
    from harness.oci.cache import Cache
    from harness.session.store import HEADER, load

    change = share(detect, "--detect")
    minutes: float | None = None
    gate: Gate
    if (Path(scenario) / HEADER).is_file():
        header, observations = load(scenario)
        spreads = planning.spreads_of_session(observations)
        minutes = planning.block_minutes(observations)
        gate, source = next(iter(header.scenarios.values())).gate, f"session {scenario}"
    else:
        loaded = scenarios.load(scenarios.find(scenario))
        record = latest(Cache.default(), host_class(collect(0.0).model_dump(mode="json")), loaded.name)
        if record is None:
            raise NothingToCompare(
                f"no A/A run of {loaded.name} is kept for hosts like this one; run: coldbench aa {scenario}, or name a "
                "session's directory"
            )
        spreads, gate = planning.spreads_of_record(record), loaded.gate
        minutes, source = record.block_minutes, f"A/A run of {record.created_at[:10]}, {record.blocks} blocks"
    decide = [key for key in spreads if key[1] in gate.metrics]
    found = planning.needs(spreads, change, gate.metrics, alpha=gate.alpha, tests=len(decide), minutes=minutes)
    rows = []
    for need in found:
        blocks = "no number is enough" if need.blocks is None else str(need.blocks)
        takes = "" if need.minutes is None else f"{need.minutes:.0f}"
        rows.append([need.case, need.metric, percent(need.spread_log), blocks, takes])
    print("\n".join(table(("case", "metric", "spread of a block", "blocks", "minutes"), rows)))
    known = [need.blocks for need in found if need.blocks is not None]
    print()
    print(
        f"To find a change of {percent(change)} 95 times of 100, with false alarms at {percent(gate.alpha)} over "
        f"{len(decide)} verdicts and a margin of {percent(change / 2)} ([gate] margin = {change / 2:g}): "
        + (f"{max(known)} blocks" if len(known) == len(found) else "no number of blocks is enough for every metric")
        + (f", about {max(known) * minutes:.0f} minutes" if known and minutes and len(known) == len(found) else "")
        + f". Spread from {source}."
    )


def register(app: typer.Typer) -> None:
    app.command()(plan)
