"""The comparison as a JSON document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.gate.schemas import schema
from harness.report.comparison import compare
from harness.report.document import make_document
from tests.report.observations import session, write_session

if TYPE_CHECKING:
    from pathlib import Path


def test_never_is_null() -> None:
    """JSON has no infinity: where a mode never loses what it saved, the break-even is null."""
    groups = compare(session())
    never = [r for r in groups[0].runtime if r.break_even is not None and r.break_even.seconds == float("inf")]
    assert never
    document = json.loads(make_document("s", "r", groups).model_dump_json(), parse_constant=pytest.fail)
    for line in never:
        (found,) = (
            r for r in document["groups"][0]["runtime"]
            if (r["workload"], r["temperature"], r["label"]) == (line.workload, line.temperature, line.label)
        )  # fmt: skip
        assert found["break_even"]["seconds"] is None


def test_failed_trials_are_no_numbers() -> None:
    """A case without a valid trial keeps its line, with nulls and the reasons."""
    failed = [o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in session(2)]
    for line in make_document("s", "r", compare(failed)).groups[0].lines:
        assert line.ready is None
        assert line.excluded


@pytest.mark.files
def test_report_prints_it(tmp_path: Path) -> None:
    """``report --json`` prints a document by the shipped schema, and writes the files it names."""
    write_session(tmp_path / "one")
    load_commands()
    result = CliRunner().invoke(app, ["report", str(tmp_path / "one"), "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("comparison"))
    assert document["session"] == str(tmp_path / "one")
    assert (tmp_path / "one" / "report.html").is_file()
    assert len(document["groups"][0]["lines"]) == 4
