"""Wrong command lines of ``coldbench run``, ``trace`` and ``scenarios``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import run, scenarios, trace
from harness.errors import UsageError
from tests.test_scenarios import GOOD

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer()
run.register(app)
scenarios.register(app)
trace.register(app)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory holds one good scenario file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.toml").write_text(GOOD, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name a scenario"),
        (["run", "nothing.toml"], "nothing.toml: no such scenario file"),
        (["run", "web.toml", "web.toml"], "'web' is there twice"),
        (["run", "--resume"], "--resume needs --out"),
        (["run", "--resume", "--out", "s", "--mode", "soci"], "as it was planned"),
        (["run", "web.toml", "--retry-failed"], "--retry-failed goes with --resume"),
        (["trace", "web.toml", "--mode", "overlay2"], "no mode whose reads can be seen"),
        (["trace", "web.toml", "--out", "nowhere/list"], "there is no directory nowhere"),
        (["run", "web.toml", "--mode", "overlay"], "--mode overlay: expected a mode"),
        (["run", "web.toml", "--preset", "tunde"], "did you mean 'tuned'"),
        (["run", "web.toml", "--shape", "gcp-e2-mico"], "did you mean gcp-e2-micro"),
        (["run", "web.toml", "--distance", "farr"], "did you mean far"),
        (["run", "web.toml", "--engine", "embeded"], "did you mean 'embedded'"),
        (["run", "web.toml", "--registry", "ftp://x"], "expected https://HOST"),
        (["run", "web.toml", "--registry", "http://registry.example"], "expected https; plain HTTP is for loopback"),
        (["scenarios", "check", "web.toml", "wep.toml"], "wep.toml: no such scenario file"),
        (["scenarios", "schema", "scenari"], "expected one of scenario, observation"),
    ],
)
def test_usage_errors(directory: Path, arguments: list[str], message: str) -> None:
    """What the user got wrong is one line and exit code 2, and no session is begun."""
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError), result.exception
    assert message in str(result.exception)
    assert not (directory / "results").exists()
    assert not (directory / "s").exists()


def test_listing(directory: Path) -> None:
    """``scenarios`` lists what is in reach with its image, readiness and modes; a wrong file is named, not hidden."""
    (directory / "scenarios").mkdir()
    (directory / "web.toml").rename(directory / "scenarios" / "web.toml")
    result = CliRunner().invoke(app, ["scenarios", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["web"]["readiness"] == "http"
    assert rows["web"]["modes"] == ["overlay2:sequential", "soci:tuned", "soci:tuned+traced"]
    assert rows["web"]["image"] == "docker://registry.example/web:1"
    (directory / "scenarios" / "bad.toml").write_text("name = 1", "utf-8")
    result = CliRunner().invoke(app, ["scenarios"])
    assert "web" in result.stdout
    assert "bad.toml:1: name: expected a string, got 1" in str(result.exception)
