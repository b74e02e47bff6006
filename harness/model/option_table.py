"""This module makes the table of options that docs/options.md and ``coldbench scenarios options`` show.

What an option means is said once, below its field in ``harness.model.policy``; here it is read from there.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.modes import EMBEDDED, ENGINES
from harness.model.policy import FOREVER_S, LazyPolicy, PullPolicy, options_of

if TYPE_CHECKING:
    from harness.model.modes import Mode, Preset
    from harness.model.policy import Option


@dataclass(frozen=True, slots=True)
class Row:
    """Describes one option: what it takes, its value in each preset that it does something in, and what it means."""

    name: str
    takes: str
    defaults: dict[str, str]
    """Holds the values by ``mode:preset``, as a scenario writes it."""
    meaning: str


def meanings(policy: type[LazyPolicy] | type[PullPolicy]) -> dict[str, str]:
    """Returns the text below each field of a policy, in one line without the markup of docstrings."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(policy))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for item, after in zip(body.body, body.body[1:], strict=False):
        said = after.value if isinstance(after, ast.Expr) else None
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(said, ast.Constant):
            text = " ".join(str(said.value).split())
            found[item.target.id] = re.sub(r" \(``harness\.[^)]*\)", "", text).replace("``", "`")
    return found


def rows(policy: type[LazyPolicy] | type[PullPolicy]) -> list[Row]:
    """Returns the options of one kind of policy."""
    having = [(mode, preset) for mode in ENGINES[EMBEDDED] for preset in mode.presets]
    mine = [(mode, preset) for mode, preset in having if isinstance(preset.policy, policy)]
    said = meanings(policy)
    return [
        Row(
            name,
            option.takes,
            {f"{m.name}:{p.name}": default_of(p, option) for m, p in mine if name in m.options(p)},
            said.get(name, ""),
        )
        for name, option in options_of(policy).items()
    ]


def rows_of(mode: Mode, preset: Preset) -> list[Row]:
    """Returns the options that one preset takes."""
    name = f"{mode.name}:{preset.name}"
    return [row for policy in (PullPolicy, LazyPolicy) for row in rows(policy) if name in row.defaults]


def default_of(preset: Preset, option: Option) -> str:
    """Returns a preset's own value of an option, as a scenario writes it."""
    value = getattr(preset.policy, option.name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "for ever" if value >= FOREVER_S else f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def markdown() -> str:
    """Returns docs/options.md as a whole."""
    out = [
        "# Options of modes and presets",
        "",
        "`options` of a mode's entry, or of `[lazy]` for all lazy modes of a scenario, changes single policies of",
        "a preset. An option that a preset does not take is refused when the scenario is loaded, and so is a value",
        "out of range. Times are in seconds, sizes in bytes. Each preset's own value is shown; a dash says that the",
        "option does nothing there.",
        "",
        "This page is made by `python -m harness.model.option_table`; `coldbench scenarios options MODE[:PRESET]`",
        "prints the options of one preset.",
    ]
    for title, policy in (
        ("Full pulls", PullPolicy),
        ("Lazy modes, and the full pull through their daemon", LazyPolicy),
    ):
        table = rows(policy)
        columns = list(dict.fromkeys(name for row in table for name in row.defaults))
        out += ["", f"## {title}", "", f"| option | takes | {' | '.join(f'`{c}`' for c in columns)} |"]
        out.append("|---" * (2 + len(columns)) + "|")
        out += [
            f"| `{row.name}` | {row.takes} | {' | '.join(row.defaults.get(c, '-') for c in columns)} |" for row in table
        ]
        out.append("")
        out += [f"- `{row.name}`: {row.meaning}" for row in table]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/options.md").write_text(markdown(), "utf-8")
