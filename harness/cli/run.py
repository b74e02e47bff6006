"""``coldbench run`` measures cold starts of scenarios, trial by trial, into a session that can be resumed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.model.plan import Selection
    from harness.session.opening import RunOptions
    from harness.session.run import Outcome


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
    workload: list[str] = typer.Option([], "--workload", metavar="NAME", help="Only these workloads (repeatable)."),
    temperature: list[str] = typer.Option(
        [], "--temperature", help="Workloads at these only: cold, warm, stale or evicted (repeatable)."
    ),
    no_background: bool = typer.Option(
        False, "--no-background", help="Do not wait for what lazy modes fetch after ready; independence is not seen."
    ),
    no_faults: bool = typer.Option(False, "--no-faults", help="Leave out the trials of what fails after ready."),
    shard: str = typer.Option("", "--shard", metavar="K/N", help="Run the K-th of N parts of the plan; needs --seed."),
    scheduler: str = typer.Option(
        "", "--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask scheduler (docs/campaign.md)."
    ),
    offline: bool = typer.Option(
        False, "--offline", help="Use images as they are in the cache; ask no registry what their tags mean now."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the session's directory and counts as JSON."),
) -> None:
    """Run scenarios in blocks of cold starts in random order, each on a fresh simulated machine.

    Ctrl-C stops cleanly; `--resume --out DIR` goes on where a session stopped.
    """
    from harness.errors import UsageError
    from harness.session.opening import RunOptions

    options = RunOptions(
        scenarios=tuple(scenario or ()),
        selection=select(
            mode, preset, engine, shape, distance, blocks, workload, temperature, background=not no_background
        ),
        seed=seed,
        out=out,
        command=typed("--seed", "--out"),
        resume=resume,
        retry_failed=retry_failed,
        registry=registry,
        keep_going=keep_going,
        workloads=not no_workloads,
        faults=not no_faults,
        offline=offline,
        shard=shard,
    )
    if shard and scheduler:
        raise UsageError("--shard and --scheduler: a scheduler hands out the blocks itself; leave --shard out")
    directory, outcome, total = run_campaign(options, scheduler) if scheduler else run_session(options)
    recorded = outcome.ok + outcome.invalid + outcome.failed
    if as_json:
        counts = {"ok": outcome.ok, "invalid": outcome.invalid, "failed": outcome.failed}
        print(json.dumps({"session": str(directory), "trials": total, "recorded": recorded, **counts}))
    else:
        print(counted(outcome))
        print(f"session: {directory}   report: coldbench report {directory}")
    if outcome.failed:
        raise typer.Exit(5)


def run_session(options: RunOptions) -> tuple[Path, Outcome, int]:
    """Opens the session and runs it, with progress on stderr; returns its directory, its counts, and the trials of its
    plan.
    """
    from harness.cli.progress import make_progress
    from harness.session.opening import open_session

    options.check()
    with make_progress(sys.stderr) as progress, open_session(options, progress) as session:
        for reason in () if options.resume else session.store.header.plan.left_out:
            print(f"left out: {reason}", file=sys.stderr)
        outcome = session.run()
        return session.directory, outcome, session.total


def run_campaign(options: RunOptions, scheduler: str) -> tuple[Path, Outcome, int]:
    """Runs the session's blocks on a scheduler's workers; this process keeps the session and needs no root."""
    from harness.cli.progress import make_progress
    from harness.errors import UsageError
    from harness.session.campaign import Campaign

    def say(text: str) -> None:
        print(f"coldbench: {text}", file=sys.stderr)

    options.check()
    header = options.header()
    if header is not None and any(trial.fault for trial in header.plan.trials):
        raise UsageError("--scheduler: workers do not run the trials of [faults]; add --no-faults, or run them here")
    with make_progress(sys.stderr) as progress, options.open_store(header) as store:
        outcome = Campaign(scheduler, store, progress, say).run()
        return store.directory, outcome, len(store.header.plan.trials)


def counted(outcome: Outcome) -> str:
    """Says in one line how the trials ended."""
    recorded = outcome.ok + outcome.invalid + outcome.failed
    return f"{recorded} trials: {outcome.ok} ok, {outcome.invalid} invalid, {outcome.failed} failed"


def typed(*without: str) -> str:
    """Returns the command line as it was typed, but for these options and their values."""
    words = [Path(sys.argv[0]).name]
    rest = iter(sys.argv[1:])
    for word in rest:
        if word in without:
            next(rest, None)
        elif not word.startswith(tuple(f"{option}=" for option in without)):
            words.append(word)
    return shlex.join(words)


def select(
    modes: list[str],
    presets: list[str],
    engines: list[str],
    shapes: list[str],
    distances: list[str],
    blocks: int | None,
    workloads: list[str] = [],  # noqa: B006 - never changed
    temperatures: list[str] = [],  # noqa: B006
    *,
    background: bool = True,
) -> Selection:
    """Returns what the options of a command choose of its scenarios. Raises UsageError for what there is not."""
    from harness.errors import UsageError
    from harness.model.modes import ENGINES
    from harness.model.near_miss import near_miss
    from harness.model.plan import Selection
    from harness.model.shape import parse_distance, parse_shape
    from harness.model.workload import TEMPERATURES

    for temperature in temperatures:
        if temperature not in TEMPERATURES:
            hint = near_miss(temperature, TEMPERATURES) or f"; expected one of {', '.join(TEMPERATURES)}"
            raise UsageError(f"--temperature {temperature}: no such temperature{hint}")
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
            "workloads": workloads,
            "temperatures": temperatures,
            "background": background,
        }
    )


def register(app: typer.Typer) -> None:
    app.command()(run)
