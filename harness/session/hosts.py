"""This module keeps facts of the hosts of a campaign or a merged session in ``hosts.jsonl``, one line per host.

A session of one host has its facts in its header. Where several take part, observations carry a host's name, and this
file says what is behind the name; a host that changed (a new kernel) has a second line, and the last one counts.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOSTS = "hosts.jsonl"
#: What is true of a moment, not of a host.
MOMENTARY = ("steal_share", "load_per_core")


def load(session: Path) -> dict[str, dict[str, Any]]:
    """Returns facts by host name; empty where the session has one host only. A torn last line is passed over."""
    path = session / HOSTS
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            facts = json.loads(line)
            found[str(facts["name"])] = facts
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}:{number}: not a host's facts; remove the line") from None
    return found


def append(session: Path, facts: Mapping[str, Any]) -> None:
    """Adds a host, unless the file says the same of it already; it is on disk when this returns."""
    steady = {key: value for key, value in facts.items() if key not in MOMENTARY}
    if load(session).get(str(facts["name"])) == json.loads(json.dumps(steady)):
        return
    with open(session / HOSTS, "ab") as file:
        file.write(json.dumps(steady).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
