"""Trends over stored sessions: one line per case, metric and host class; change points; table, JSON, figure."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import MissingTool, NothingToCompare, UsageError
from harness.gate.history import trends
from harness.gate.schemas import schema
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def days(path: Path, factors: list[float], *, cores: int = 2) -> list[Path]:
    """One session a day, its starts slower by each factor; noise of 1 % between days."""
    rng = np.random.default_rng(5)
    made = []
    for day, factor in enumerate(factors):
        head = sessions.header(session=f"{cores}-{day}", blocks=2)
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
        head = head.model_copy(
            update={
                "created_at": at.isoformat(), "commit": f"c0ffee{day:04d}", "host": {**sessions.HOST, "cores": cores}
            }
        )  # fmt: skip
        scale = factor * float(np.exp(rng.normal(0, 0.01)))
        cases = {case.case.key: case for case in head.plan.cases}
        trials = [sessions.observation(cases[t.case], t.trial, t.block, scale) for t in head.plan.trials]
        made.append(sessions.write(path / f"s{cores}-{day}", head, trials))
    return made


def test_a_change_is_found_where_it_is(tmp_path: Path) -> None:
    """Ten sessions, then ten slower by a fifth: one change point, at the eleventh, by its commit."""
    found = trends(days(tmp_path, [1.0] * 10 + [1.2] * 10), ["time-to-ready"])
    assert len(found) == 2  # two modes
    for trend in found:
        assert [change.index for change in trend.changes] == [10]
        assert trend.changes[0].after / trend.changes[0].before == pytest.approx(1.2, rel=0.02)
        assert trend.points[10].commit == "c0ffee0010"


def test_hosts_are_never_in_one_line(tmp_path: Path) -> None:
    """Sessions of hosts of another class are lines of their own, so a faster host is no change point."""
    paths = days(tmp_path, [1.0] * 6, cores=2) + days(tmp_path, [0.5] * 6, cores=8)
    found = trends(paths, ["time-to-ready"])
    assert len(found) == 4
    assert {len(trend.points) for trend in found} == {6}
    assert not any(trend.changes for trend in found)


def test_steady_lines_have_no_change_points(tmp_path: Path) -> None:
    """Forty equal sessions: noise alone is no change."""
    assert not any(trend.changes for trend in trends(days(tmp_path, [1.0] * 40), ["time-to-ready"]))


def test_table_json_and_figure(tmp_path: Path) -> None:
    """The command prints a table with the commit of a change, or JSON, and draws an SVG; files are passed over."""
    load_commands()
    days(tmp_path, [1.0] * 8 + [1.5] * 8)
    (tmp_path / "notes.txt").write_text("not a session")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    svg = tmp_path / "trend.svg"
    said = CliRunner().invoke(app, ["history", *paths, "--metric", "time-to-ready", "--figure", str(svg)])
    assert said.exit_code == 0, said.output
    assert "c0ffee0008: +5" in said.stdout
    assert svg.read_text().startswith("<?xml")
    data = json.loads(CliRunner().invoke(app, ["history", *paths, "--case", "erofs", "--json"]).stdout)
    jsonschema.validate(data, schema("history"))
    assert any(trend["changes"] for trend in data["trends"])
    assert {trend["metric"] for trend in data["trends"]} >= {"time-to-ready", "cpu-to-ready"}
    assert all("erofs" in trend["case"] for trend in data["trends"])


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    """A directory without a session, an unknown metric, sessions without a valid trial."""
    load_commands()
    with pytest.raises(UsageError, match=r"no session\.json"):
        trends([tmp_path])
    with pytest.raises(UsageError, match="did you mean 'time-to-ready'"):
        CliRunner().invoke(app, ["history", str(tmp_path), "--metric", "time-to-redy"], catch_exceptions=False)
    head = sessions.header(session="empty")
    with pytest.raises(NothingToCompare):
        trends([sessions.write(tmp_path / "e", head, [])])


def test_without_otava_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named; without change points the lines are there all the same."""
    paths = days(tmp_path, [1.0] * 5)
    monkeypatch.setitem(sys.modules, "otava.series", None)
    with pytest.raises(MissingTool, match=r"coldbench\[history\]"):
        trends(paths)
    assert trends(paths, change_points=False)
