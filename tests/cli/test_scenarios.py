"""``coldbench scenarios check`` as scripts use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from harness.cli.scenarios import group
from harness.errors import ScenarioError, UsageError
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


def test_options_of_a_preset() -> None:
    """The list of what a preset takes, for people and as JSON; what does nothing there is not on it."""
    rows = json.loads(CliRunner().invoke(group, ["options", "soci:reference", "--json"]).stdout)
    in_flight = next(row for row in rows if row["option"] == "in_flight")
    assert (in_flight["takes"], in_flight["default"]) == ("a whole number from 1 to 256", "16")
    assert not {"handover", "region_bytes", "prefetch", "eager"} & {row["option"] for row in rows}
    printed = CliRunner().invoke(group, ["options", "overlay2"]).stdout
    assert "decoder" in printed
    assert "one of isal, zlib" in printed


def test_options_of_what_is_not_there() -> None:
    """A wrong mode or preset is told with the right ones."""
    result = CliRunner().invoke(group, ["options", "soci:quick"])
    assert isinstance(result.exception, UsageError)
    assert "expected a preset of mode soci (tuned, reference, pyfuse3), got 'quick'" in str(result.exception)
    assert "did you mean 'soci'" in str(CliRunner().invoke(group, ["options", "sozi"]).exception)
