"""``coldbench aa SCENARIO`` compares the same with the same, to know how often a gate on this host is wrong."""

from __future__ import annotations

import secrets
import sys
from contextlib import ExitStack
from pathlib import Path

import typer


def aa(
    scenario: str = typer.Argument(..., metavar="SCENARIO|DIR", help="A scenario, or the directory of an A/A session."),
    inject: str = typer.Option("", "--inject", metavar="10%", help="Slow one side by this much: gives the power."),
    mode: list[str] = typer.Option([], "--mode", metavar="MODE[:PRESET]", help="Only these modes (repeatable)."),
    shape: list[str] = typer.Option([], "--shape", help="A shape's name or an inline form (repeatable)."),
    blocks: int = typer.Option(30, "--blocks", min=6, help="Blocks of the A/A session."),
    gate_blocks: int | None = typer.Option(None, "--gate-blocks", min=6, help="Blocks of the gates drawn from it."),
    seed: int | None = typer.Option(None, "--seed", help="Seed of the order of trials; drawn when left out."),
    out: Path | None = typer.Option(None, "--out", metavar="DIR", help="The session's directory."),
    registry: str = typer.Option("", "--registry", metavar="URL", help="Use this registry instead of one's own."),
    no_workloads: bool = typer.Option(False, "--no-workloads", help="Leave out what is measured after ready."),
    no_background: bool = typer.Option(
        False, "--no-background", help="Do not wait for what lazy modes fetch after ready."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Run a scenario against itself, and show false-alarm rate, noise per metric, margin to use and steady counters.

    The record is kept for hosts of this class, and the gate prints it. With the directory of an A/A session nothing is
    run: it is analysed again.
    """
    from harness import scenarios
    from harness.cli.progress import make_progress
    from harness.cli.quantities import share
    from harness.gate.aa_running import analyse, header_of, injected_share, run
    from harness.gate.aa_wording import markdown
    from harness.gate.sides import parse
    from harness.model.plan import Selection
    from harness.model.shape import parse_shape
    from harness.session.launching import Launcher
    from harness.session.store import HEADER

    slower = share(inject, "--inject") if inject else 0.0
    if (Path(scenario) / HEADER).is_file():
        side = parse(scenario)
        result = analyse(side, gate_blocks=gate_blocks or 20, inject=injected_share(side.header))
        print(result.record.model_dump_json(indent=1) if as_json else markdown(result))
        return
    file = scenarios.find(scenario)
    loaded = scenarios.load_one(file, "coldbench aa")
    selection = Selection.model_validate(
        {
            "modes": mode,
            "shapes": [parse_shape(text) for text in shape],
            "blocks": blocks,
            "background": not no_background,
        }
    )
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    header = header_of(loaded, file, selection, drawn, inject=slower, registry=registry, workloads=not no_workloads)
    with ExitStack() as stack:
        progress = stack.enter_context(make_progress(sys.stderr))
        launcher = stack.enter_context(Launcher(progress))
        if registry:
            launcher.endpoint(registry)
        stack.enter_context(
            launcher.cache.lock("gate", lambda: print("coldbench: a gate is measuring here; waiting", file=sys.stderr))
        )
        directory = out or Path("results") / header.session
        result = run(launcher, header, directory, gate_blocks=gate_blocks or min(20, blocks), inject=slower)
    print(result.record.model_dump_json(indent=1) if as_json else markdown(result))
    print(f"session: {result.directory}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    app.command()(aa)
