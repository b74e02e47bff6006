"""This module makes the JSON Schemas of scenario files, the stored form and what is printed, from the models.

``docs/schema`` ships them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.gate.document import DOCUMENT_VERSION as GATE_VERSION
from harness.gate.document import ComparedPart, GatePart
from harness.gate.history_output import DOCUMENT_VERSION as HISTORY_VERSION
from harness.gate.history_output import HistoryPart
from harness.model.faults import FaultObservation
from harness.model.observation import SCHEMA_VERSION, Observation
from harness.model.scenario import Scenario
from harness.model.session import Preparation, SessionHeader
from harness.report.document import DOCUMENT_VERSION as REPORT_VERSION
from harness.report.document import Comparison

if TYPE_CHECKING:
    from pydantic import BaseModel

#: What each schema describes: the model, and a title.
SCHEMAS: dict[str, tuple[type[BaseModel], str]] = {
    "scenario": (Scenario, "coldbench scenario (a TOML file in scenarios/)"),
    "observation": (Observation, "coldbench observation (a line of observations.jsonl)"),
    "fault": (FaultObservation, "coldbench fault trial (a line of faults.jsonl)"),
    "session": (SessionHeader, "coldbench session header (session.json)"),
    "preparation": (Preparation, "coldbench preparation (a line of preparations.jsonl)"),
    "comparison": (Comparison, "coldbench comparison (what report --json and bench --json print)"),
    "compare": (ComparedPart, "coldbench compare (what compare --json prints)"),
    "gate": (GatePart, "coldbench gate (gate.json)"),
    "history": (HistoryPart, "coldbench history (what history --json prints)"),
}
#: Forms that are written for others and never read back, with their versions.
PRINTED = {
    "comparison": REPORT_VERSION,
    "compare": GATE_VERSION,
    "gate": GATE_VERSION,
    "history": HISTORY_VERSION,
}


def schema(name: str) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of what ``name`` calls: a key of ``SCHEMAS``."""
    model, title = SCHEMAS[name]
    content = model.model_json_schema(mode="serialization" if name in PRINTED else "validation")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    if name in PRINTED:
        head["description"] = f"Printed form, version {PRINTED[name]}."
    elif name != "scenario":
        head["description"] = f"Stored form, version {SCHEMA_VERSION}."
    return {**content, **head}


def schema_text(name: str) -> str:
    """Returns the schema as the shipped file holds it."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def file_name(name: str) -> str:
    """Returns the name of the shipped file in ``docs/schema``."""
    return f"{name}.schema.json"
