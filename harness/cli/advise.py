"""``coldbench advise`` says which mode to use on which machine, and what to change about the image."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.scenario import Scenario
    from harness.model.session import SessionHeader
    from harness.report.contents import Contents
    from harness.report.worth import Variant

#: Machines that are asked about where none is named: the small ones of each provider, without credits and with.
SHAPES = (
    "gcp-e2-micro", "gcp-e2-small", "aws-t3.micro:drained", "aws-t3.micro", "fly-shared-cpu-1x", "azure-b1s:drained",
    "kubernetes-250m", "cpu=1,memory=2G", "cpu=2,memory=4G",
)  # fmt: skip
ROWS = 12


def advise(
    target: str = typer.Argument(
        ..., metavar="SESSION|SCENARIO", help="A session's directory, or what to measure first."
    ),
    shape: list[str] = typer.Option([], "--shape", help="Ask about this machine (repeatable; a list of small ones)."),
    starts: float = typer.Option(100.0, "--starts", min=0, help="Cold starts a day, all machines together."),
    builds: float = typer.Option(1.0, "--builds", min=0, help="Builds of the image a day."),
    rows: int = typer.Option(ROWS, "--rows", min=1, help="Lines of each table."),
    no_trace: bool = typer.Option(
        False, "--no-trace", help="Do not run the start and its commands once to see what they read."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Say which mode to use on which machine, what the image could do without, and what a lazy form of it is worth.

    Of a scenario two blocks are measured first. What was not measured is predicted from the parts that were, and marked
    so. Packages to leave out are those that neither the start nor the scenario's commands read, and nothing that was
    read needs.
    """
    from harness.cli.advice_tables import show
    from harness.cli.tables import console
    from harness.model.shape import parse_shape
    from harness.report.advice import advise as make
    from harness.session import store

    shapes = [parse_shape(text) for text in shape or SHAPES]
    directory = _session(target)
    header, observations = store.load(directory)
    _check(directory, [o.valid for o in observations])
    made = []
    for scenario in header.scenarios.values():
        seen = _look(directory, header, scenario, trace=not no_trace)
        made.append(
            make(
                header, observations, store.load_preparations(directory), scenario.name, shapes,
                contents=seen.contents, read_in=seen.read_in, variants=seen.variants, notes=seen.notes,
            )
        )  # fmt: skip
    if as_json:
        print(json.dumps([_plain(dataclasses.asdict(advice)) for advice in made], indent=2))
        return
    for advice in made:
        show(console(), advice, starts, builds, rows)


def _check(directory: Path, valid: Sequence[bool]) -> None:
    from harness.errors import NothingToCompare

    if not any(valid):
        raise NothingToCompare(
            f"{directory}: no trial counts, so there is nothing to advise from; see coldbench report"
        )


def _session(target: str) -> Path:
    """Returns the session to advise from; of a scenario it measures two blocks."""
    from harness.cli.run import run_session, typed
    from harness.model.plan import Selection
    from harness.session.opening import RESULTS, RunOptions
    from harness.session.store import HEADER

    if (Path(target) / HEADER).is_file():
        return Path(target)
    from harness import scenarios

    path = scenarios.find(target)
    name = scenarios.load(path).name
    out = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-advise-{name}"
    options = RunOptions(
        scenarios=(str(path),), selection=Selection(blocks=2), out=out, workloads=False, command=typed()
    )
    run_session(options)
    print(f"measured two blocks: {out}", file=sys.stderr)
    return out


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Holds what is known of an image and of what was read of it."""

    contents: Contents | None
    read_in: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def _look(directory: Path, header: SessionHeader, scenario: Scenario, *, trace: bool) -> _Seen:
    """Looks at the image as it lies in the cache; without it, at what the session itself keeps."""
    from harness.errors import ColdbenchError
    from harness.images.catalog import obtain
    from harness.images.layer_packing import light_growth
    from harness.images.packages import read_packages
    from harness.oci.cache import Cache
    from harness.oci.location import open_source
    from harness.report.contents import look
    from harness.session import inventory, store
    from harness.session.image_files import list_files

    cache = Cache.default()
    digest = next((p.digest for p in store.load_preparations(directory) if p.scenario == scenario.name), "")
    kept = inventory.load(directory, digest) if digest else None
    try:
        obtained = obtain(scenario.image, cache, offline=True, pinned="")
        with open_source(obtained.layout) as source:
            image = source.resolve()
            if digest and image.descriptor.digest != digest:
                raise ColdbenchError("the image has changed since it was measured")
            files = list_files(source, image, cache.root)
            packages = read_packages(source, image, frozenset(f.path for f in files if f.kind == "file"))
            growth = light_growth(source, image)
    except ColdbenchError as error:
        why = f"the image is not here ({error}): packages, layers and compression are not looked at"
        return _Seen(None, "", (), (why,))
    notes: list[str] = []
    read, read_in = _reads(scenario, trace=trace, notes=notes)
    if read is None and kept is not None and kept.reads is not None:
        read, read_in = kept.reads, "a start"
    unpacked = sum(file.size for file in files if file.kind == "file")
    packed = all(layer.compression not in {None, "none"} for layer in image.layers)
    variants = _variants(unpacked / max(1, image.compressed_bytes), growth) if packed else ()
    if read is None:
        return _Seen(None, "", variants, (*notes, "no start was traced, so what it reads is not known"))
    if not packages:
        notes.append("the image holds no package database (dpkg, pip, npm), so only directories are named")
    history = [
        str(entry.get("created_by", "")) for entry in image.config.get("history") or () if not entry.get("empty_layer")
    ]
    contents = look(files, read, packages, [layer.size for layer in image.layers], history)
    return _Seen(contents, read_in, variants, tuple(notes))


def _variants(unpacked: float, light: float) -> tuple[Variant, ...]:
    from harness.report.worth import Variant

    return Variant("gzip -1", light, inflates=True), Variant("not compressed", max(1.0, unpacked), inflates=False)


def _reads(scenario: Scenario, *, trace: bool, notes: list[str]) -> tuple[tuple[str, ...] | None, str]:
    """Returns what a start and the scenario's commands read: they are run once as root, or the result is kept from
    then.
    """
    from harness.cli.progress import make_progress
    from harness.errors import ColdbenchError, Interrupted
    from harness.model.modes import tracer
    from harness.session.launching import Launcher
    from harness.session.materials import side_case

    if not trace or os.geteuid() != 0:
        notes.append("reads are those of a start alone" + ("" if trace is False else "; as root, its commands' too"))
        return None, ""
    commands = sum(bool(workload.arguments) for workload in scenario.runtime.workloads)
    try:
        with make_progress(sys.stderr) as progress, Launcher(progress, offline=True) as launcher:
            setups = launcher.side_setups(scenario)
            paths = setups.rehearsals.trace_use(side_case(scenario, tracer()))
    except Interrupted:
        raise
    except ColdbenchError as error:
        notes.append(f"the start with its commands could not be traced ({error})")
        return None, ""
    return paths, f"a start and {commands} command{'' if commands == 1 else 's'} after it" if commands else "a start"


def _plain(value: Any) -> Any:
    """Turns a value into what JSON can hold, which has neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def register(app: typer.Typer) -> None:
    app.command()(advise)
