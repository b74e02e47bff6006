"""This module finds, loads and checks scenario files.

Every problem becomes ``file:line: key.path: what was expected, got …``.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from harness.errors import ScenarioError, UsageError
from harness.model.axes import Axes, points
from harness.model.keylines import key_lines
from harness.model.near_miss import near_miss
from harness.model.scenario import Scenario
from harness.model.settings import wrong_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What each kind of pydantic error expects, in a reader's words.
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a table with the key {discriminator}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "too_short": "at least {min_length} element(s)",
    "too_long": "at most {max_length} element(s)",
}


def directories() -> list[Path]:
    """Lists where a scenario named without a path is looked for: ``./scenarios``, then the shipped ones."""
    package = Path(__file__).parent
    shipped = package / "_scenarios"
    found = [Path("scenarios"), shipped if shipped.is_dir() else package.parent / "scenarios"]
    unique = {path.resolve(): path for path in reversed(found) if path.is_dir()}
    return list(reversed(unique.values()))


def available() -> dict[str, Path]:
    """Lists all scenarios in reach by name (file name without ``.toml``); the nearer directory wins."""
    files: dict[str, Path] = {}
    for directory in directories():
        for path in sorted(directory.glob("*.toml")):
            files.setdefault(path.stem, path)
    return files


def find(name: str) -> Path:
    """Finds the file of a scenario given as a path or a name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name.endswith(".toml") or "/" in name:
        raise UsageError(f"{name}: no such scenario file")
    known = available()
    if name not in known:
        hint = near_miss(name, known) or f"; there are {', '.join(known) or 'none'}"
        raise UsageError(f"no scenario called {name!r}{hint}")
    return known[name]


def load(name: str | Path) -> Scenario:
    """Reads and checks one scenario file.

    Raises:
        UsageError: no such file.
        ScenarioError: the file is wrong; one line per problem.
    """
    path = find(name) if isinstance(name, str) else name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: expected a readable UTF-8 file ({error})") from None
    return parse(text, str(path))


def load_one(name: str | Path, purpose: str) -> Scenario:
    """Reads a scenario without axes; ``purpose`` names what takes only such a one.

    Raises:
        UsageError: no such file, or it has axes.
        ScenarioError: the file is wrong.
    """
    scenario = load(name)
    there = len(points(scenario))
    if scenario.axes != Axes():
        raise UsageError(
            f"scenario {scenario.name} has axes ({there} points), and {purpose} takes one: write the values of one "
            "point into a file of its own, without [axes]"
        )
    return scenario


def parse(text: str, file: str) -> Scenario:
    """Checks a scenario's text; ``file`` is what messages call it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        line, what = (
            (at[1], message[: at.start()])
            if at
            else (str(text.count("\n") + 1), message.removesuffix(" (at end of document)"))
        )
        raise ScenarioError(f"{file}:{line}: expected TOML: {what}") from None
    try:
        scenario = Scenario.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ScenarioError("\n".join(_messages(error, data, text, file))) from None
    lines = key_lines(text)
    wrong = [(_line_of(error.path, lines), _dotted(error.path), error) for error in wrong_settings(scenario)]
    if wrong:
        raise ScenarioError("\n".join(f"{file}:{line}: {where}: {error}" for line, where, error in wrong))
    return scenario


def _line_of(path: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]) -> int:
    """Returns the line of a key, or of the nearest table around it that the text spells out."""
    return next(lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines)


def _messages(error: ValidationError, data: dict[str, Any], text: str, file: str) -> list[str]:
    lines = key_lines(text)
    merged: dict[tuple[str | int, ...], list[str]] = {}
    gots: dict[tuple[str | int, ...], str] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # enough elements, some of which are wrong: they have messages of their own
        path = _data_path(item["loc"], data, missing=item["type"] == "missing")
        if item["type"] == "union_tag_invalid":
            path = (*path, item["ctx"]["discriminator"].strip("'"))
        expected, got = _describe(item)
        merged.setdefault(path, [])
        if expected not in merged[path]:
            merged[path].append(expected)
        gots[path] = got
    out = []
    for path, expectations in merged.items():
        line = _line_of(path, lines)
        where = _dotted(path)
        out.append((line, f"{file}:{line}: {where + ': ' if where else ''}{_either(expectations)}{gots[path]}"))
    return [message for _, message in sorted(out)]


def _either(expectations: list[str]) -> str:
    """Joins what several members of a union expected, where each refused a value: any of it would do."""
    return " or ".join([expectations[0], *(text.removeprefix("expected ") for text in expectations[1:])])


def _data_path(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> tuple[str | int, ...]:
    """Returns a pydantic location without the names of union members it mentions on the way."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
            path.append(part)
        elif missing and position == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _describe(item: Any) -> tuple[str, str]:
    """Says what was expected, and what was got instead (empty where the first says it all)."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "expected this key, which is missing", ""
    if kind == "extra_forbidden":
        known = _known_keys(item["loc"])
        word = str(item["loc"][-1])
        return f"unknown key{near_miss(word, known) or '; expected one of ' + ', '.join(known)}", ""
    if kind == "value_error":
        return str(context["error"]), ""
    expected = _EXPECTED.get(kind)
    if kind == "union_tag_invalid":
        item = {**item, "input": context["tag"]}
    text = expected.format_map(context) if expected else str(item["msg"])
    return f"expected {text}", f", got {json.dumps(item['input'], ensure_ascii=False, default=str)}"


def _known_keys(loc: tuple[str | int, ...]) -> list[str]:
    """Lists the keys of the table in which the last part of a location was refused."""
    models: list[type[BaseModel]] = [Scenario]
    for part in loc[:-1]:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        found = [model for field in fields for model in _models_in(field.annotation)]
        found += [model for field in fields for meta in field.metadata for model in _models_in(meta)]
        models = found or [m for m in models if _tagged(m, part)] or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _tagged(model: type[BaseModel], tag: str | int) -> bool:
    kind = model.model_fields.get("kind")
    return model.__name__ == tag or (kind is not None and tag in typing.get_args(kind.annotation))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
