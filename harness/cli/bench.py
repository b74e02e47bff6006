"""``coldbench bench`` runs a scenario and prints its report; ``nox -s bench`` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def bench(
    scenario: list[str] = typer.Argument(["quickstart"], metavar="SCENARIO…", help="Scenario files or names."),
    mode: list[str] = typer.Option([], "--mode", metavar="MODE[:PRESET]", help="Only these modes (repeatable)."),
    engine: list[str] = typer.Option(
        [], "--engine", metavar="NAME", help="Also this engine, beside the scenario's own (repeatable)."
    ),
    shape: list[str] = typer.Option([], "--shape", help="A shape's name or an inline form (repeatable)."),
    blocks: int | None = typer.Option(None, "--blocks", min=1, help="Trials of every case (the scenario's number)."),
    seed: int | None = typer.Option(None, "--seed", help="Seed of the order of trials; drawn when left out."),
    out: Path | None = typer.Option(None, "--out", metavar="DIR", help="The session's directory."),
    registry: str = typer.Option("", "--registry", metavar="URL", help="Use this registry instead of one's own."),
    no_workloads: bool = typer.Option(False, "--no-workloads", help="Leave out what is measured after ready."),
    offline: bool = typer.Option(
        False, "--offline", help="Use images as they are in the cache; ask no registry what their tags mean now."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON; all else goes to stderr."),
) -> None:
    """Run scenarios under every mode they name, then print the comparison and where the report is."""
    from harness.cli.run import counted, run_session, select, typed
    from harness.cli.terminal_report import print_report
    from harness.report.publish import publish
    from harness.session.opening import RunOptions

    options = RunOptions(
        scenarios=tuple(scenario),
        selection=select(mode, [], _with(scenario, engine), shape, [], blocks),
        seed=seed,
        out=out,
        command=typed("--seed", "--out"),
        registry=registry,
        workloads=not no_workloads,
        offline=offline,
    )
    directory, outcome, _total = run_session(options)
    print(counted(outcome), file=sys.stderr if as_json else sys.stdout)
    published = publish(directory)
    if as_json:
        print(published.as_json())
    else:
        print()
        print_report(published)
        print(f"Report: {published.html_path.resolve()}")
    if outcome.failed:
        # Failed trials are part of the comparison, which shows them with their reasons.
        raise typer.Exit(5)


def _with(scenarios: list[str], further: list[str]) -> list[str]:
    """Returns all engines to run where some are asked for: those that the scenarios must have, and then these."""
    if not further:
        return []
    from harness.model.engine import is_optional
    from harness.scenarios import find, load

    entries = [entry for name in scenarios for entry in load(find(name)).engines]
    return [*(entry.engine for entry in entries if not is_optional(entry)), *further]


def register(app: typer.Typer) -> None:
    app.command()(bench)
