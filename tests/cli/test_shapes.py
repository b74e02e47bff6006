"""``coldbench shapes``: all of them, one of them, and names that are none."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import UsageError

load_commands()


def shapes(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["shapes", *arguments])


def test_every_shape_is_listed() -> None:
    """Both forms of a shape with credits, the one a bare name means marked; distances below."""
    text = shapes().stdout
    assert "gcp-e2-micro:fresh" in text
    assert "gcp-e2-micro:drained" in text
    assert "*" in text
    assert "far" in text


def test_shapes_as_json() -> None:
    """Every figure by its name, with the one that is meant by a bare name told."""
    document = json.loads(shapes("--json").stdout)
    forms = [s for s in document["shapes"] if s["label"].startswith("gcp-e2-micro")]
    assert [s["default"] for s in forms].count(True) == 1
    assert {d["name"] for d in document["distances"]} >= {"none", "near", "far"}


def test_one_shape_in_full() -> None:
    """An inline form is read as a scenario reads it; a named one says where its figures come from."""
    (shape,) = json.loads(shapes("cpu=0.25,memory=1G", "--json").stdout)["shapes"]
    assert shape["memory_bytes"] == 1 << 30
    assert "brackets it" in shapes("gcp-e2-micro").stdout.replace("\n", " ")


def test_a_shape_that_is_not_there() -> None:
    """The nearest name is told."""
    result = shapes("gcp-e2-mico")
    assert isinstance(result.exception, UsageError)
    assert "gcp-e2-micro" in str(result.exception)
