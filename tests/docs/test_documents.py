"""The documents' links lead somewhere, their commands exist, and the project speaks of itself alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files(path: Path) -> None:
    """Every relative link of a document names a file or directory of the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_commands_exist(path: Path) -> None:
    """Every ``coldbench COMMAND`` in a code span or block is a command of the program."""
    from typer.main import get_command

    from harness.cli.main import app, load_commands

    load_commands()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    text = path.read_text()
    spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.+)$", text, re.MULTILINE)
    for span in spans:
        found = re.match(r"(?:sudo )?coldbench ([a-z][a-z-]*)", span.strip())
        if found:
            assert found.group(1) in commands, span


def test_shipped_files_name_no_private_path_or_host() -> None:
    """Nothing that git tracks mentions a directory of one machine."""
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False, text=True
    ).stdout.split("\0")
    private = re.compile(rb"/var/" + rb"tmp/cb|/wor" + rb"k/(?:main|shared)")
    for name in tracked:
        path = ROOT / name
        if name and path.is_file() and not path.is_symlink() and path.suffix in {".md", ".py", ".toml", ".json", ""}:
            found = private.search(path.read_bytes())
            assert found is None, f"{name}: {found}"


def test_the_reference_names_every_command_and_option() -> None:
    """The site's page of commands is made from the program: each command has its section, each option its row."""
    from typer.main import get_command

    from harness.cli import reference
    from harness.cli.main import app, load_commands

    page = reference.markdown()
    load_commands()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"`coldbench {name}" in page
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden and not hasattr(command, "commands"):
                assert option.opts[0] in page, f"{name} {option.opts[0]}"
