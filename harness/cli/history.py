"""``coldbench history DIR…`` shows how cases developed over stored sessions, and where they changed."""

from __future__ import annotations

from pathlib import Path

import typer


def history(
    directories: list[Path] = typer.Argument(..., metavar="DIR…", help="Sessions' directories, as results/*."),
    metric: list[str] = typer.Option([], "--metric", help="Only these metrics (repeatable)."),
    case: str = typer.Option("", "--case", help="Only cases whose key holds this text."),
    change_points: bool = typer.Option(True, "--change-points/--no-change-points", help="Look for change points."),
    p_value: float = typer.Option(0.001, "--p-value", min=0.0, max=1.0, help="Largest p-value of a change point."),
    figure: Path | None = typer.Option(None, "--figure", metavar="FILE.svg", help="Also draw the lines."),
    as_json: bool = typer.Option(False, "--json", help="Print the lines as JSON instead of the table."),
) -> None:
    """Show trends by commit or date, one line per case, metric and kind of host; no line mixes hosts."""
    from harness.errors import NothingToCompare, UsageError
    from harness.gate import history_output
    from harness.gate.history import trends
    from harness.model.metrics import check_name
    from harness.session.store import HEADER

    try:
        wanted = [check_name(name) for name in metric]
    except ValueError as error:
        raise UsageError(f"--metric: {error}") from None
    # A glob over results also names files and reports; a directory that was named alone must be a session.
    named = [path for path in directories if len(directories) == 1 or (path / HEADER).is_file()]
    found = trends(named, wanted, p_value=p_value, change_points=change_points)
    found = [trend for trend in found if case in trend.case]
    if not found:
        raise NothingToCompare(f"no case holds {case!r}; leave --case out to see all")
    print(history_output.document(found) if as_json else history_output.markdown(found))
    if figure is not None:
        figure.write_text(history_output.figure(found))


def register(app: typer.Typer) -> None:
    app.command()(history)
