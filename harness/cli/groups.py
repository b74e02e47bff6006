"""This module makes the command groups that several command modules share: ``coldbench image``, ``convert``,
``index``.
"""

from __future__ import annotations

import typer

image = typer.Typer(no_args_is_help=True, help="Build, push and inspect images.")
convert = typer.Typer(
    no_args_is_help=True, help="Convert an image to a lazily pullable form, or compress its layers otherwise."
)
index = typer.Typer(no_args_is_help=True, help="Write an index beside an unchanged image.")


def register(app: typer.Typer) -> None:
    """Attaches the groups; their commands attach themselves when their modules are imported."""
    app.add_typer(image, name="image")
    app.add_typer(convert, name="convert")
    app.add_typer(index, name="index")
