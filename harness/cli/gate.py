"""``coldbench gate SCENARIO`` fails a build when a start got slower or larger, and only then."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.gate.baseline import Baseline
    from harness.gate.result import GateResult
    from harness.gate.running import GateRun
    from harness.model.scenario import Scenario


def gate(
    scenario: str = typer.Argument(..., metavar="SCENARIO", help="A scenario's file or name: the candidate."),
    baseline_image: str = typer.Option("", "--baseline-image", metavar="REF", help="Against this image, side by side."),
    baseline_mode: str = typer.Option("", "--baseline-mode", metavar="MODE", help="Against this mode, side by side."),
    baseline_engine: str = typer.Option("", "--baseline-engine", metavar="ENGINE", help="Against this engine."),
    baseline: str = typer.Option("", "--baseline", metavar="DIR", help="Against a stored session of a like host."),
    mode: list[str] = typer.Option([], "--mode", metavar="MODE[:PRESET]", help="Only these modes (repeatable)."),
    shape: list[str] = typer.Option([], "--shape", help="A shape's name or an inline form (repeatable)."),
    blocks: int | None = typer.Option(None, "--blocks", min=6, help="Blocks before the first verdict."),
    max_blocks: int | None = typer.Option(
        None, "--max-blocks", help="Go on while inconclusive, up to this; the error rate is kept by alpha spending."
    ),
    seed: int | None = typer.Option(None, "--seed", help="Seed of the order of trials; drawn when left out."),
    out: Path | None = typer.Option(None, "--out", metavar="DIR", help="The session's directory."),
    registry: str = typer.Option("", "--registry", metavar="URL", help="Use this registry instead of one's own."),
    counters_only: bool = typer.Option(False, "--counters-only", help="Only what does not scatter; no timing."),
    no_workloads: bool = typer.Option(False, "--no-workloads", help="Leave out what is measured after ready."),
    no_background: bool = typer.Option(
        False, "--no-background", help="Do not wait for what lazy modes fetch after ready."
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit code 3 where nothing could be decided."),
    anyway: bool = typer.Option(False, "--anyway", help="Also against a session that is not comparable."),
) -> None:
    """Compare a candidate with a baseline; exit 1 on a confirmed regression, with its reasons.

    Image metrics and counters are compared first, then times in paired blocks. Writes summary.md, comment.md, junit.xml
    and gate.json beside the session, and annotations where GitHub Actions runs it; also where it ends in an error.
    """
    from harness import scenarios
    from harness.cli.progress import make_progress
    from harness.errors import ColdbenchError, UsageError
    from harness.gate import outputs
    from harness.gate.baseline import choose, modes_to_run
    from harness.gate.environment import differences
    from harness.gate.failing import failed_gate
    from harness.gate.running import GateRun
    from harness.gate.sides import Side
    from harness.model.plan import Selection
    from harness.model.shape import parse_shape
    from harness.session.headers import new_header
    from harness.session.launching import Launcher

    try:
        file = scenarios.find(scenario)
        loaded = scenarios.load_one(file, "coldbench gate")
    except ColdbenchError as error:
        _annotate([outputs.error_command(str(error))])
        raise
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    repeat = shlex.join(["coldbench", "gate", *sys.argv[2:], *([] if seed is not None else ["--seed", str(drawn)])])
    chosen: Baseline | None = None
    run: GateRun | None = None
    try:
        chosen = choose(loaded, baseline_image, baseline_mode, baseline_engine, baseline)
        first = blocks or max(loaded.blocks, 6)
        if max_blocks is not None and max_blocks < first:
            raise UsageError(
                f"--max-blocks {max_blocks} is below the {first} blocks before the first verdict; raise it"
            )
        selection = Selection.model_validate(
            {
                "modes": modes_to_run(loaded, chosen, mode),
                "engines": [*(engine.engine for engine in loaded.engines), chosen.value]
                if chosen.kind == "engine"
                else [],
                "shapes": [parse_shape(text) for text in shape],
                "background": not no_background,
            }
        )
        if chosen.side is not None and not anyway:
            header = new_header([loaded], {}, 0, selection)
            decisive = [str(d) for d in differences(Side("now", header, ()), chosen.side) if d.decisive]
            if decisive:
                raise UsageError(
                    f"{baseline} is no baseline for this host and scenario: {'; '.join(decisive)}. Measure side by "
                    "side (--baseline-image), or compare --anyway"
                )
        with ExitStack() as stack:
            progress = stack.enter_context(make_progress(sys.stderr))
            launcher = stack.enter_context(Launcher(progress, trace_starts=True))
            if registry:
                launcher.endpoint(registry)

            def waiting() -> None:
                print("coldbench: another gate is measuring on this host; waiting for it to end", file=sys.stderr)

            stack.enter_context(launcher.cache.lock("gate", waiting))
            run = GateRun(
                launcher, loaded, file, chosen, selection, first, max_blocks or first, drawn, out,
                registry=registry, workloads=not no_workloads, strict=strict, anyway=anyway, timed=not counters_only,
                repeat=repeat, lines_of_file=_lines(file, loaded),
            )  # fmt: skip
            result = run.run()
    except ColdbenchError as error:
        _tell(
            failed_gate(
                error, loaded, file, baseline=chosen, run=run, out=out, repeat=repeat,
                lines_of_file=_lines(file, loaded),
            )
        )  # fmt: skip
        raise
    _tell(result)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _lines(file: Path, scenario: Scenario) -> dict[str, int]:
    """Returns where the scenario file speaks of each metric; the empty key: of the gate, else of the image."""
    from harness.model.keylines import key_lines

    lines = key_lines(file.read_text("utf-8"))
    found = {"": lines.get(("gate",), lines.get(("image",), 1))}
    for key in scenario.gate.thresholds:
        if ("gate", "thresholds", key) in lines:
            found[key] = lines["gate", "thresholds", key]
    if ("image",) in lines or any(path[:1] == ("image",) for path in lines):
        at = min(line for path, line in lines.items() if path[:1] == ("image",))
        for key in ("image-bytes", "image-layers", "image-files", "image-unpacked-bytes"):
            found.setdefault(key, at)
    return found


def _tell(result: GateResult) -> None:
    """Prints the summary and GitHub's annotations, and writes the files."""
    from harness.gate import outputs

    print(outputs.summary(result))
    _annotate(outputs.workflow_commands(result))
    try:
        written = outputs.write(result)
    except OSError as error:
        if result.failure is None:
            raise
        # What went wrong first is what has to be mended; often it is the reason for this as well.
        print(f"coldbench: the summary could not be written ({error.strerror})", file=sys.stderr)
        return
    if written:
        print("written: " + " ".join(str(path) for path in written), file=sys.stderr)


def _annotate(commands: list[str]) -> None:
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in commands:
            print(line)


def register(app: typer.Typer) -> None:
    app.command()(gate)
