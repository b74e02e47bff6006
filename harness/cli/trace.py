"""``coldbench trace`` shows what a start really reads of its image, and what the image could do without."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.model.modes import lazy_modes, tracer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lazyfs.messages import Touch
    from harness.model.observation import Observation
    from harness.model.plan import PlannedCase
    from harness.session.reads import Part, Reads
    from harness.session.setups import Setups

ROWS = 15


def trace(
    scenario: str = typer.Argument(..., metavar="SCENARIO", help="A scenario's file or name."),
    mode: str = typer.Option(
        tracer().name,
        "--mode",
        help="estargz (reads by file), soci (of large layers), erofs (by blocks of 64 KiB, mapped back to files).",
    ),
    shape: str = typer.Option("unlimited", "--shape", help="A shape's name or an inline form."),
    out: Path | None = typer.Option(
        None, "--out", metavar="FILE", help="Write the files read, in first-touch order, as a prefetch list."
    ),
    pack: Path | None = typer.Option(
        None, "--pack", metavar="FILE", help="Run a further start and write what it asks for, for a start pack."
    ),
    rows: int = typer.Option(ROWS, "--rows", min=1, help="Lines of each table."),
    registry: str = typer.Option("", "--registry", metavar="URL", help="Use this registry instead of one's own."),
    offline: bool = typer.Option(
        False, "--offline", help="Use images as they are in the cache; ask no registry what their tags mean now."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Run one start and list what it reads: per layer, per package directory, and what it never touches.

    The list of --out serves `prefetch = [...]` of a scenario, `coldbench convert estargz --prioritize FILE` and
    `coldbench index erofs --prefetch FILE`, the recording of --pack serves `coldbench index erofs --pack FILE`.
    """
    from harness import scenarios
    from harness.cli.progress import make_progress
    from harness.errors import UsageError
    from harness.model.near_miss import near_miss
    from harness.model.shape import parse_shape
    from harness.session import reads, traces
    from harness.session.launching import Launcher
    from harness.session.materials import side_case

    seen = {known.name: known for known in lazy_modes()}
    if mode not in seen:
        hint = near_miss(mode, seen) or f"; expected one of {', '.join(seen)}"
        raise UsageError(f"--mode {mode}: no mode whose reads can be seen{hint}")
    loaded = scenarios.load_one(scenarios.find(scenario), "coldbench trace")
    case = side_case(loaded, seen[mode], shape=parse_shape(shape))
    for option, file in (("--out", out), ("--pack", pack)):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{option} {file}: there is no directory {file.parent}")
    with make_progress(sys.stderr) as progress, Launcher(progress, offline=offline) as launcher:
        setups = launcher.side_setups(loaded, registry)
        observation, touches, found = _run(setups, case)
        recorded = traces.recorded(touches, observation.time_to_ready_s or 0.0)
        paths = recorded.paths
        if seen[mode].tracer:
            # The newest trace is what `prefetch = "trace"` uses.
            traces.save(traces.place(launcher.cache, observation.image_digest, loaded.workload), recorded)
        recording = setups.side.record(loaded) if pack is not None else None
    if out is not None:
        _write("--out", out, "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"))
    if pack is not None and recording is not None:
        _write("--pack", pack, recording.encode())
    if as_json:
        print(json.dumps(_document(observation, found, touches), indent=2))
    else:
        _print(observation, found, reads.most_read(found), rows)
        if out is not None:
            print(f"{len(paths)} files in first-touch order: {out}")
        if pack is not None and recording is not None:
            print(f"{len(recording.ranges)} reads in the order of asking: {pack}")


def _write(option: str, file: Path, data: bytes) -> None:
    from harness.errors import UsageError

    try:
        file.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from None


def _run(setups: Setups, case: PlannedCase) -> tuple[Observation, list[Touch], Reads]:
    from harness.oci.location import open_source
    from harness.session import reads
    from harness.session.image_files import list_files

    scenario = setups.scenarios[case.case.scenario]
    material = setups.material(scenario)
    local = setups.preparer.local(scenario)
    with setups.interrupts.allowed(), open_source(local.name) as source:
        files = material.files or list_files(source, local.image, setups.preparer.cache.root)
    observation, touches = setups.side.trace(case)
    return observation, touches, reads.analyse(files, touches, len(local.image.layers))


def _document(observation: Observation, found: Reads, touches: list[Touch]) -> dict[str, object]:
    return {
        "scenario": observation.case.scenario,
        "mode": observation.case.mode,
        "shape": observation.case.shape,
        "image_digest": observation.image_digest,
        "time_to_ready_s": observation.time_to_ready_s,
        "received_before_ready_bytes": observation.wire_before_ready.received_bytes,
        "image": found.image.as_dict(),
        "layers": [part.as_dict() for part in found.layers],
        "packages": [part.as_dict() for part in found.packages],
        "unread": [part.as_dict() for part in found.unread],
        "replaced_files_read": list(found.unknown),
        "first_touches": [dataclasses.asdict(touch) for touch in touches],
    }


def _print(observation: Observation, found: Reads, most: Sequence[Part], rows: int) -> None:
    from harness.cli.tables import console as make_console

    image = found.image
    console = make_console()
    console.print(
        f"{observation.case.scenario} under {observation.case.mode} on {observation.case.shape}: "
        f"ready after {observation.time_to_ready_s:.2f} s\n"
        f"{image.files_read} of {image.files} files touched ({_share(image.files_read, image.files)}), "
        f"{_mb(image.bytes_read)} of {_mb(image.bytes)} MB read ({_share(image.bytes_read, image.bytes)})",
        markup=False,
    )
    _table(console, "layer", found.layers, len(found.layers))
    _table(console, "read most", most, rows)
    unread = found.unread
    _table(console, "never touched", unread, rows, read=False)
    console.print(
        f"{len(unread)} package directories with {sum(p.files for p in unread)} files and "
        f"{_mb(sum(p.bytes for p in unread))} MB were never touched; this start could do without them.",
        markup=False,
    )


def _table(console: Any, title: str, parts: Sequence[Part], rows: int, *, read: bool = True) -> None:
    from rich.table import Table

    if not parts:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for column in ("files", "MB", "touched", "read, MB", "share") if read else ("files", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in [*parts[:rows], *_sum_of(parts[rows:])]:
        cells = [str(part.files), _mb(part.bytes), str(part.files_read), _mb(part.bytes_read)]
        table.add_row(part.name, *(([*cells, _share(part.bytes_read, part.bytes)]) if read else cells[:2]))
    console.print(table)


def _sum_of(parts: Sequence[Part]) -> list[Part]:
    """Returns all parts summed up in one line; no line where there are no parts."""
    from harness.session.reads import Part

    if not parts:
        return []
    names = ("files", "bytes", "files_read", "bytes_read")
    return [Part(f"… {len(parts)} more", *(sum(getattr(part, name) for part in parts) for name in names))]


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def register(app: typer.Typer) -> None:
    app.command()(trace)
