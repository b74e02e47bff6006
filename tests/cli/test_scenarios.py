"""``coldbench scenarios check`` as scripts use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from harness.cli.scenarios import group
from harness.errors import ScenarioError
from tests.test_scenarios import GOOD

if TYPE_CHECKING:
    from pathlib import Path


def test_check_as_json(tmp_path: Path) -> None:
    """Every file is listed, a wrong one with its problems; the exit code is the same as without ``--json``."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(GOOD, "utf-8")
    bad.write_text(GOOD.replace("blocks = 6", "blocks = 0"), "utf-8")
    result = CliRunner().invoke(group, ["check", str(good), str(bad), "--json"])
    assert isinstance(result.exception, ScenarioError)
    rows = json.loads(result.stdout)
    assert [(row["file"], row["ok"]) for row in rows] == [(str(good), True), (str(bad), False)]
    assert rows[1]["problems"] == [f"{bad}:6: blocks: expected a number of at least 1, got 0"]
