"""``coldbench run``: measure cold starts of scenarios, trial by trial, into a session that can be resumed."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.model.plan import Selection
    from harness.model.session import SessionHeader
    from harness.session.run import Outcome
    from harness.session.store import Store


def run(
    scenario: list[str] | None = typer.Argument(None, metavar="SCENARIO…", help="Scenario files or names."),
    mode: list[str] = typer.Option([], "--mode", metavar="MODE[:PRESET]", help="Only these modes (repeatable)."),
    preset: list[str] = typer.Option([], "--preset", help="These presets of the chosen modes (repeatable)."),
    engine: list[str] = typer.Option([], "--engine", help="embedded, docker or containerd (repeatable)."),
    shape: list[str] = typer.Option(
        [], "--shape", help="A shape's name or cpu=0.25,memory=1G,bandwidth=1Gbit,rtt=10ms (repeatable)."
    ),
    distance: list[str] = typer.Option([], "--distance", help="none, near, far, slow or rtt=10ms (repeatable)."),
    blocks: int | None = typer.Option(None, "--blocks", min=1, help="Trials of every case."),
    seed: int | None = typer.Option(None, "--seed", help="Seed of the order of trials; drawn when left out."),
    out: Path | None = typer.Option(
        None, "--out", metavar="DIR", help="The session's directory (default: results/TIME-NAME)."
    ),
    resume: bool = typer.Option(False, "--resume", help="Continue the session in --out where it stopped."),
    retry_failed: bool = typer.Option(False, "--retry-failed", help="With --resume: run failed trials again, too."),
    registry: str = typer.Option("", "--registry", metavar="URL", help="Use this registry instead of one's own."),
    keep_going: bool = typer.Option(
        False, "--keep-going", help="Go on when an image cannot be had, or a workload fails by itself."
    ),
    no_workloads: bool = typer.Option(False, "--no-workloads", help="Leave out what is measured after ready."),
    offline: bool = typer.Option(
        False, "--offline", help="Use images as they are in the cache; ask no registry what their tags mean now."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the session's directory and counts as JSON."),
) -> None:
    """Run scenarios: blocks of cold starts in random order, each on a fresh simulated machine.

    Ctrl-C stops cleanly; `--resume --out DIR` goes on where a session stopped.
    """
    from harness.cli.progress import make_progress
    from harness.errors import ColdbenchError, UsageError
    from harness.session.header import make_header
    from harness.session.launching import Launcher

    if retry_failed and not resume:
        raise UsageError("--retry-failed goes with --resume --out DIR")
    if resume and (scenario or mode or preset or engine or shape or distance or blocks or seed is not None):
        raise UsageError(
            "--resume continues a session as it was planned: give --out DIR and nothing that changes the plan"
        )
    if resume and out is None:
        raise UsageError("--resume needs --out DIR, the directory of the session to continue")
    if not resume and not scenario:
        raise UsageError("name a scenario (`coldbench scenarios` lists them)")
    header = None
    if not resume:
        selection = _selection(mode, preset, engine, shape, distance, blocks)
        header = make_header(scenario or [], selection, seed=seed, registry=registry, workloads=not no_workloads)
    with ExitStack() as stack:
        progress = stack.enter_context(make_progress(sys.stderr))
        launcher = stack.enter_context(Launcher(progress, offline=offline))
        if registry and header is not None:
            launcher.endpoint(registry)  # before a directory is made: it may not be there at all
        for reason in header.plan.left_out if header is not None else ():
            print(f"left out: {reason}", file=sys.stderr)
        store = stack.enter_context(_open(out, header, retry_failed))
        try:
            outcome = launcher.run(store, keep_going=keep_going)
        except ColdbenchError as error:
            if error.exit_code == 130:
                print(f"coldbench: {len(store.finished)} of {len(store.header.plan.trials)} trials are recorded; "
                      f"go on with: coldbench run --resume --out {store.directory}", file=sys.stderr)  # fmt: skip
            raise
        directory, total = store.directory, len(store.header.plan.trials)
    _finish(directory, outcome, total, as_json)


def _selection(
    modes: list[str],
    presets: list[str],
    engines: list[str],
    shapes: list[str],
    distances: list[str],
    blocks: int | None,
) -> Selection:
    from harness.errors import UsageError
    from harness.model.modes import ENGINES
    from harness.model.near_miss import near_miss
    from harness.model.plan import Selection
    from harness.model.shape import parse_distance, parse_shape

    for engine in engines:
        if engine not in ENGINES:
            hint = near_miss(engine, ENGINES) or f"; expected one of {', '.join(ENGINES)}"
            raise UsageError(f"--engine {engine}: no such engine{hint}")
    return Selection.model_validate(
        {
            "modes": modes,
            "presets": presets,
            "engines": engines,
            "shapes": [parse_shape(text) for text in shapes],
            "distances": [parse_distance(text) for text in distances],
            "blocks": blocks,
        }
    )


def _open(out: Path | None, header: SessionHeader | None, retry_failed: bool) -> Store:
    from harness.session.store import Store

    if header is None:
        assert out is not None
        return Store.resume(out, retry_failed)
    return Store.create(out or Path("results") / header.session, header)


def _finish(directory: Path, outcome: Outcome, total: int, as_json: bool) -> None:
    recorded = outcome.ok + outcome.invalid + outcome.failed
    if as_json:
        counts = {"ok": outcome.ok, "invalid": outcome.invalid, "failed": outcome.failed}
        print(json.dumps({"session": str(directory), "trials": total, "recorded": recorded, **counts}))
    else:
        print(f"{recorded} trials: {outcome.ok} ok, {outcome.invalid} invalid, {outcome.failed} failed")
        print(f"session: {directory}   report: coldbench report {directory}")
    if outcome.failed:
        raise typer.Exit(5)


def register(app: typer.Typer) -> None:
    app.command()(run)
