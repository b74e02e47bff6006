"""This module writes the reference of all commands as Markdown, out of the program itself, for the documentation
site.
"""

from __future__ import annotations

from typing import Any

from typer.main import get_command

_HEAD = """# Commands

`coldbench --help` and `coldbench COMMAND --help` say the same in a terminal. Options stand before or after arguments.
"""


def markdown() -> str:
    """Describes every command with its arguments, options and defaults, in alphabetical order."""
    from harness.cli.main import app, load_commands

    load_commands()
    root: Any = get_command(app)
    return "\n".join([_HEAD, *_commands("coldbench", root)])


def _commands(prefix: str, group: Any) -> list[str]:
    out: list[str] = []
    for name in sorted(group.commands):
        command = group.commands[name]
        if hasattr(command, "commands"):
            out += _commands(f"{prefix} {name}", command)
        else:
            out += _command(f"{prefix} {name}", command)
    return out


def _command(name: str, command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([name, *("[OPTIONS]" if options else "",), *(_usage(a) for a in arguments)]).replace("  ", " ")
    out = [f"## `{name}`", "", _plain(command.help), "", f"    {usage.strip()}", ""]
    rows = [(f"`{_usage(a)}`", _plain(getattr(a, "help", ""))) for a in arguments]
    context = command.make_context(name, [], resilient_parsing=True)
    rows += [_row(o, context) for o in options if not o.hidden]
    if rows:
        out += ["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows), ""]
    return out


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name or "").upper()
    name += "..." if argument.nargs == -1 and not name.endswith("…") else ""
    return name if argument.required else f"[{name}]"


def _row(option: Any, context: Any) -> tuple[str, str]:
    flags, said = option.get_help_record(context)
    return f"`{flags}`", _plain(said)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "\\<")
