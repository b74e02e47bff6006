"""``coldbench report`` as scripts use it: output, exit codes, and what is wrong with a session."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import NothingToCompare, UsageError
from harness.session.store import OBSERVATIONS
from tests.report.observations import write_session

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.files

load_commands()


def report(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


@pytest.fixture
def session(tmp_path: Path) -> Path:
    write_session(tmp_path / "s")
    return tmp_path / "s"


def rewrite(session: Path, **changes: object) -> None:
    """Change fields of every observation in the file."""
    path = session / OBSERVATIONS
    lines = [json.loads(line) | changes for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_a_report_says_where_it_is(session: Path, tmp_path: Path) -> None:
    """The table on stdout, the files in the session's directory or where ``--out`` says."""
    result = report(str(session))
    assert result.exit_code == 0
    assert "overlay2:sequential" in result.stdout
    assert f"Report: {session / 'report.html'}" in result.stdout
    report(str(session), "--out", str(tmp_path / "there"))
    assert (tmp_path / "there" / "report.html").is_file()


def test_json_is_all_that_is_printed(session: Path) -> None:
    """Scripts read the document from stdout."""
    assert json.loads(report(str(session), "--json").stdout)["session"] == str(session)


def test_nothing_but_failures_ends_with_6(session: Path) -> None:
    """The report is written and says why; there is nothing to compare with."""
    rewrite(session, status="failed", time_to_ready_s=None, failure={"kind": "NotReady", "message": "late"})
    result = report(str(session))
    assert isinstance(result.exception, NothingToCompare)
    assert result.exception.exit_code == 6
    assert "no trial counts" in str(result.exception)
    assert "NotReady: late" in result.stdout
    assert (session / "report.html").is_file()


def test_a_session_without_trials_ends_with_6(session: Path) -> None:
    """It says how to go on."""
    (session / OBSERVATIONS).write_text("")
    result = report(str(session))
    assert isinstance(result.exception, NothingToCompare)
    assert "coldbench run --resume --out" in str(result.exception)


@pytest.mark.parametrize("changes", [{"time_to_ready_s": 0}, {"schema_version": 99}, {"trial": 1}, {"block": "x"}])
def test_what_cannot_be_read_ends_with_2(session: Path, changes: dict[str, object]) -> None:
    """One line, and never the exit code of a regression."""
    rewrite(session, **changes)
    result = report(str(session))
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
    assert OBSERVATIONS in str(result.exception)


def test_no_session_there(tmp_path: Path) -> None:
    """The message says what a session is."""
    result = report(str(tmp_path))
    assert isinstance(result.exception, UsageError)
    assert "expected a session's directory" in str(result.exception)
