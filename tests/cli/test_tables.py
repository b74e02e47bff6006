"""Where tables are printed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.cli.tables import FILE_COLUMNS, console
from harness.cli.terminal_report import print_report
from harness.report.comparison import compare
from harness.report.publish import Published
from tests.report.observations import session

if TYPE_CHECKING:
    import pytest


def test_a_pipe_is_wide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Long paths stay on one line where no terminal sets the width; COLUMNS has the last word."""
    path = "/" + "d" * 120
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print(path)
    assert capsys.readouterr().out == f"{path}\n"
    assert console().width == FILE_COLUMNS
    monkeypatch.setenv("COLUMNS", "40")
    assert console().width == 40


def test_a_report_on_a_terminal_has_tables_that_fit() -> None:
    """The answer in a frame, then columns: no line is wider than the terminal, and what is not proven is there, too."""
    stream = io.StringIO()
    published = Published(Path("s"), Path("s.html"), Path("s.md"), "# text", tuple(compare(session())))
    print_report(published, Console(file=stream, width=120, force_terminal=False))
    text = stream.getvalue()
    assert "Use erofs:tuned" in text
    assert "What each start used" in text
    assert "| --- |" not in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_report_in_a_pipe_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    """What reads a pipe gets the text that is stored beside the page."""
    print_report(Published(Path("s"), Path("s.html"), Path("s.md"), "# text", ()))
    assert capsys.readouterr().out == "# text\n"
