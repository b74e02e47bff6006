"""``coldbench export SESSION...`` writes sessions as Parquet, CSV or pytest-benchmark's JSON."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer


class Format(StrEnum):
    """Names the forms that can be written."""

    PARQUET = "parquet"
    CSV = "csv"
    PYTEST_BENCHMARK = "pytest-benchmark"


def export(
    sessions: list[str] = typer.Argument(..., help="Directories of sessions, or patterns in quotes ('results/*')."),
    out: Path = typer.Option(Path("export"), "--out", metavar="DIR", help="Where the files go."),
    kind: Format = typer.Option(Format.CSV, "--format", help="Tables of all trials, or one benchmark per case."),
) -> None:
    """Write sessions for other programs: one table per kind of fact, or a file that pytest-benchmark compares."""
    from harness.report.exports import export_benchmarks, export_frames
    from harness.report.sessions import load

    loaded = load(sessions)
    if kind is Format.PYTEST_BENCHMARK:
        written = export_benchmarks(loaded, out)
    else:
        written = export_frames(loaded, out, kind.value)
    for path in written:
        print(path)


def register(app: typer.Typer) -> None:
    app.command()(export)
