"""This module brings stored objects of earlier versions to today's, one version at a time, when they are read.

Headers, observations and preparations share one version number, so a migration looks at what it is given and changes
what it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.model.modes import RENAMED

if TYPE_CHECKING:
    from collections.abc import Callable


def _to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Makes version 2: a case's label is a field beside its preset, and presets that were renamed have their new
    names.
    """
    if "case" in data:
        _split_case(data["case"])
    if "plan" in data:
        for planned in data["plan"].get("cases", []):
            _split_case(planned["case"])
            _rename(planned["choice"])
        for trial in data["plan"].get("trials", []):
            trial["case"] = _renamed_key(trial["case"])
    for scenario in data.get("scenarios", {}).values():
        for entry in scenario.get("modes", []):
            _rename(entry)
        gate = scenario.get("gate", {})
        if gate.get("baseline"):
            gate["baseline"] = _renamed_name(gate["baseline"])
    return data


def _rename(entry: dict[str, Any]) -> None:
    entry["preset"] = RENAMED.get((entry["mode"], entry.get("preset", "")), entry.get("preset", ""))


def _split_case(case: dict[str, Any]) -> None:
    case["preset"], _, case["label"] = case["preset"].partition("+")
    _rename(case)


def _renamed_name(name: str) -> str:
    """Returns ``mode:preset[+label]`` with today's name of the preset."""
    mode, _, rest = name.partition(":")
    preset, plus, label = rest.partition("+")
    return f"{mode}:{RENAMED.get((mode, preset), preset)}{plus}{label}" if rest else name


def _renamed_key(key: str) -> str:
    """Returns a case's key, ``scenario/mode:preset[+label]/engine/…``, with today's name of the preset."""
    scenario, _, rest = key.partition("/")
    name, _, others = rest.partition("/")
    return f"{scenario}/{_renamed_name(name)}/{others}"


#: The migration from version N to N+1, by N.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2}
