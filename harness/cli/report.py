"""``coldbench report SESSION`` writes one self-contained HTML file and a Markdown summary."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    session: Path = typer.Argument(..., help="A session's directory under results/."),
    out: Path | None = typer.Option(
        None, "--out", help="Where to write report.html and report.md (the session's own)."
    ),
    figures: Path | None = typer.Option(None, "--figures", metavar="DIR", help="Also write each figure as an SVG."),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON instead of the table."),
) -> None:
    """Render a session: table, timelines, CPU, bytes, run-time overhead; prints the table and the report's place."""
    from harness.cli.terminal_report import print_report
    from harness.errors import NothingToCompare
    from harness.report.publish import publish, write_figures

    published = publish(session, out)
    drawn = write_figures(published.groups, figures) if figures is not None else []
    if as_json:
        print(published.as_json())
    else:
        print_report(published)
        for path in drawn:
            print(f"Figure: {path}")
        print(f"Report: {published.html_path}")
    if not published.counted:
        raise NothingToCompare(f"{session}: no trial counts: all failed or are invalid; the report says why")


def register(app: typer.Typer) -> None:
    app.command()(report)
