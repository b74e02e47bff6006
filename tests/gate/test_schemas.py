"""The shipped JSON Schemas."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.gate.schemas import SCHEMAS, file_name, schema, schema_text

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", SCHEMAS)
def test_shipped_schema_is_current(name: str) -> None:
    """docs/schema holds what the models say now (``coldbench scenarios schema NAME`` prints it)."""
    shipped = ROOT / "docs" / "schema" / file_name(name)
    assert shipped.read_text("utf-8") == schema_text(name)
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_scenarios_satisfy_it(path: Path) -> None:
    """An editor that completes by the schema finds nothing wrong with the shipped scenarios."""
    jsonschema.validate(tomllib.loads(path.read_text("utf-8")), schema("scenario"))
