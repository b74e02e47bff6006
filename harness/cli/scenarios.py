"""``coldbench scenarios`` lists and checks scenario files, and prints their JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.model.image import ImageSpec

group = typer.Typer(invoke_without_command=True, help="List, check and describe scenario files.", no_args_is_help=False)


@group.callback()
def _list(
    context: typer.Context,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    if context.invoked_subcommand is not None:
        return
    from harness import scenarios
    from harness.errors import ScenarioError

    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    for path in scenarios.available().values():
        try:
            scenario = scenarios.load(path)
        except ScenarioError as error:
            wrong.append(str(error))
            continue
        rows.append(
            {
                "name": scenario.name,
                "file": str(path),
                "image": _image_label(scenario.image),
                "readiness": scenario.workload.readiness.kind,
                "modes": [mode.key for mode in scenario.modes],
                "shapes": [shape.label for shape in scenario.shapes],
                "blocks": scenario.blocks,
                "description": scenario.description,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    if wrong:
        raise ScenarioError("\n".join(wrong))


def _image_label(image: ImageSpec) -> str:
    """Says where the image comes from, in a few words."""
    if image.recipe is not None:
        return "recipe: " + " + ".join(dict.fromkeys(layer.kind for layer in image.recipe.layers))
    if image.layout is not None:
        return f"oci:{image.layout}"
    return image.ref or image.archive or ""


def _print_table(rows: list[dict[str, object]]) -> None:
    from rich.table import Table

    from harness.cli.tables import console

    table = Table(box=None, header_style="bold")
    for column in ("name", "image", "ready on", "modes", "description"):
        table.add_column(column, overflow="fold")
    for row in rows:
        modes = row["modes"] if isinstance(row["modes"], list) else []
        short = " ".join(dict.fromkeys(mode.partition(":")[0] for mode in modes))
        table.add_row(str(row["name"]), str(row["image"]), str(row["readiness"]), short, str(row["description"]))
    console().print(table)


@group.command()
def check(
    files: list[str] = typer.Argument(..., metavar="FILE…", help="Scenario files or names."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON list: each file with its problems."),
) -> None:
    """Check scenario files; every problem is one line with file, line, key and what was expected."""
    from harness import scenarios
    from harness.errors import ScenarioError, UsageError

    wrong: list[str] = []
    rows: list[dict[str, object]] = []
    for name in files:
        problems: list[str] = []
        try:
            scenarios.load(name)
        except UsageError as error:
            wrong.append(str(error))
            problems = str(error).splitlines()
        rows.append({"file": name, "ok": not problems, "problems": problems})
        if not problems and not as_json:
            print(f"{name}: ok")
    if as_json:
        print(json.dumps(rows, indent=2))
    if wrong:
        raise ScenarioError("\n".join(wrong))


@group.command()
def options(
    mode: str = typer.Argument(..., metavar="MODE[:PRESET]", help="A mode, with a preset or its default one."),
    as_json: bool = typer.Option(False, "--json", help="Print the options as JSON."),
) -> None:
    """List the options of a mode and preset: what each takes, the preset's own value, and what it means."""
    from harness.errors import UsageError
    from harness.model.modes import find
    from harness.model.option_table import rows_of
    from harness.model.scenario import parse_mode

    try:
        wanted = parse_mode(mode)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = find(wanted["mode"])
    preset = found.preset(wanted.get("preset", ""))
    name = f"{found.name}:{preset.name}"
    rows = [
        {"option": row.name, "takes": row.takes, "default": row.defaults[name], "meaning": row.meaning}
        for row in rows_of(found, preset)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"{name} takes no options")
        return
    from rich.markup import escape
    from rich.table import Table

    from harness.cli.tables import console

    table = Table(box=None, header_style="bold")
    for column in ("option", "takes", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    console().print(table)


@group.command()
def schema(
    what: str = typer.Argument(
        "scenario",
        help="scenario, observation, fault, session, preparation, comparison, compare, gate or history.",
    ),
) -> None:
    """Print a JSON Schema: of scenario files, of the stored form of a session, or of what --json prints."""
    from harness.errors import UsageError
    from harness.gate.schemas import SCHEMAS, schema_text

    if what not in SCHEMAS:
        raise UsageError(f"schema {what!r}: expected one of {', '.join(SCHEMAS)}")
    print(schema_text(what), end="")


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="scenarios")
