"""The CI files: valid YAML, and every coldbench command in them is one that this program takes, options included."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from harness.cli.main import app, load_commands

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "action.yml", *sorted((ROOT / "docs" / "ci").glob("*.yml"))]


def scripts(node: Any) -> list[str]:
    """Every shell script of a workflow."""
    if isinstance(node, dict):
        found = [text for key, text in node.items() if key == "run" and isinstance(text, str)]
        found += [line for key, lines in node.items() if key == "script" for line in lines]
        return found + [text for value in node.values() for text in scripts(value)]
    if isinstance(node, list):
        return [text for value in node for text in scripts(value)]
    return []


def commands(text: str) -> list[list[str]]:
    """coldbench command lines of a script; expressions of the CI system stand as plain words."""
    plain = re.sub(r"\$\{\{[^}]*\}\}", "1", text)
    plain = re.sub(r"\$\{BASELINE:\+([^}]*)\}", r"\1", plain).replace("$ARGUMENTS", "--max-blocks 20")
    found = []
    for line in plain.splitlines():
        for part in re.split(r"&&|\|\||;", line):
            if re.search(r"(^|\s|/)coldbench (gate|run|merge|compare|aa|plan|history|report)\b", part):
                words = shlex.split(part.split(">>")[0])
                at = next(i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "coldbench")
                found.append(words[at + 1 :])
    return found


ALL = [
    (path, words) for path in FILES for text in scripts(yaml.safe_load(path.read_text())) for words in commands(text)
]


@pytest.mark.parametrize(("path", "words"), ALL, ids=lambda v: v.stem if isinstance(v, Path) else v[0])
def test_commands_are_taken(path: Path, words: list[str]) -> None:
    """The command line parses: command, options and values exist."""
    load_commands()
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], list(words[1:]), resilient_parsing=False)


def test_every_file_has_a_command() -> None:
    """No file of these is without a coldbench command, so that the test above cannot pass by finding none."""
    assert {path for path, _ in ALL} | {ROOT / "docs" / "ci" / "github.yml"} == set(FILES)
    assert "uses: coldbench/coldbench@main" in (ROOT / "docs" / "ci" / "github.yml").read_text()


def test_action_inputs_are_the_ones_used() -> None:
    """What the example workflow gives to the action are its inputs, and its arguments are those of the gate."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = yaml.safe_load((ROOT / "docs" / "ci" / "github.yml").read_text())["jobs"]["gate"]["steps"]
    used = next(step["with"] for step in steps if str(step.get("uses", "")).startswith("coldbench/"))
    assert set(used) <= set(action["inputs"])
    load_commands()
    command = typer.main.get_command(app).commands["gate"]  # type: ignore[attr-defined]
    command.make_context("gate", [used["scenario"], *shlex.split(used["arguments"])])
