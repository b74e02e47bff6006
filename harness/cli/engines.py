"""``coldbench engines`` lists the container engines that can be measured, what of them is here, and how to get the
rest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.engines.protocol import Availability
    from harness.model.modes import Mode


def engines(json_wanted: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List engines with the programs found, their modes and presets, and what keeps any of them from running here."""
    found = look()
    if json_wanted:
        print(json.dumps([as_json(name, modes, reasons) for name, modes, reasons in found], indent=2))
        return
    from harness.cli.tables import console

    print_engines(console(), found)


def look() -> list[tuple[str, tuple[Mode, ...], dict[str, Availability]]]:
    """Looks at every engine: its modes, and whether it can run, by ``mode:preset`` and, under the
    empty name, at all.
    """
    from harness.engines import make_engine
    from harness.model.engine import default_choice
    from harness.model.modes import ENGINES

    found = []
    for name in ENGINES:
        engine = make_engine(default_choice(name))
        asked = [(f"{mode.name}:{p.name}", mode.name, p.name) for mode in engine.modes() for p in mode.presets]
        found.append(
            (name, engine.modes(), {key: engine.available(mode, p) for key, mode, p in [("", "", ""), *asked]})
        )
    return found


def print_engines(console: Console, found: list[tuple[str, tuple[Mode, ...], dict[str, Availability]]]) -> None:
    """Prints a few lines for each engine."""
    from rich.markup import escape

    for name, modes, answers in found:
        at_all = answers[""]
        mark = "[yellow]missing[/]" if at_all.reason else "[green]ok[/]"
        programs = ", ".join(f"{p}{f' ({p.path})' if p.path else ''}" for p in at_all.programs)
        console.print(f"[bold]{name}[/]  {mark}  {escape(programs)}", soft_wrap=True, highlight=False)
        for mode in modes:
            presets = ", ".join(preset.name for preset in mode.presets)
            console.print(f"  {mode.name}: {presets}", highlight=False)
        for reason in dict.fromkeys(a.reason for a in answers.values() if a.reason):
            console.print(f"  [yellow]![/] {escape(reason)}", soft_wrap=True, highlight=False)


def as_json(name: str, modes: tuple[Mode, ...], answers: dict[str, Availability]) -> dict[str, object]:
    return {
        "engine": name,
        "available": not answers[""].reason,
        "reason": answers[""].reason,
        "programs": [{"name": p.name, "path": p.path, "version": p.version} for p in answers[""].programs],
        "presets": [
            {"mode": mode.name, "preset": preset.name, "reason": answers[f"{mode.name}:{preset.name}"].reason}
            for mode in modes
            for preset in mode.presets
        ],
    }


def register(app: typer.Typer) -> None:
    app.command()(engines)
