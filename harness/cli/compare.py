"""``coldbench compare A B`` compares two sessions, or two parts of them, and first says how their
environments differ.
"""

from __future__ import annotations

import typer


def compare(
    baseline: str = typer.Argument(..., metavar="BASELINE", help="DIR or DIR#key=value,…: a session or a part of it."),
    candidate: str = typer.Argument(..., metavar="CANDIDATE", help="The same; may be another part of one session."),
    margin: float = typer.Option(0.05, "--margin", min=0.0, max=1.0, help="Relative change that matters."),
    anyway: bool = typer.Option(False, "--anyway", help="Also what is not comparable; every output then says so."),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare two sessions, modes, engines, shapes, images or scenarios, case by case.

    Parts of sessions are named by coordinates: `coldbench compare results/a#mode=overlay2:tuned results/a#mode=erofs`.
    """
    from harness.gate.comparing import compare_sides
    from harness.gate.document import document
    from harness.gate.sides import parse
    from harness.gate.wording import markdown

    one, other = parse(baseline), parse(candidate)
    compared = compare_sides(other, one, margin=margin, anyway=anyway)
    print(document(compared) if as_json else markdown(compared))


def register(app: typer.Typer) -> None:
    app.command()(compare)
