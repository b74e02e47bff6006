"""Where tables are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli.tables import FILE_COLUMNS, console

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
