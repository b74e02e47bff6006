"""This module keeps A/A records in the cache: one directory per host class, one file per scenario and run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.gate.aa import AaRecord
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from harness.oci.cache import Cache


def directory(cache: Cache, host_class: str) -> Path:
    """Returns the directory with the records of hosts of one class."""
    return cache.root / "aa" / host_class


def keep(cache: Cache, record: AaRecord) -> Path:
    """Writes a record; older ones of the same scenario stay, since together they show how days differ."""
    folder = directory(cache, record.host_class)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.scenario}-{record.session}.json"
    write_atomically(path, record.model_dump_json(indent=1).encode() + b"\n")
    return path


def records(cache: Cache, host_class: str, scenario: str) -> list[AaRecord]:
    """Returns the records of a scenario on hosts of this class, the newest last; it passes over files that cannot be
    read.
    """
    found = []
    for path in sorted(directory(cache, host_class).glob("*.json")):
        try:
            record = AaRecord.model_validate(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, ValidationError):
            continue
        if record.scenario == scenario:
            found.append(record)
    return sorted(found, key=lambda record: record.created_at)


def latest(cache: Cache, host_class: str, scenario: str) -> AaRecord | None:
    """Returns the newest record of same against same (not of an injected run)."""
    plain = [record for record in records(cache, host_class, scenario) if not record.injected]
    return plain[-1] if plain else None


def between_days(kept: list[AaRecord], metric: str = "time-to-ready") -> float | None:
    """Says how noisy a stored baseline is: the largest over the smallest median of a metric between A/A records, in the
    worst case.

    None with fewer than two records.
    """
    medians: dict[str, list[float]] = {}
    for record in kept:
        if not record.injected:
            for line in record.noise:
                if line.metric == metric:
                    medians.setdefault(line.case, []).append(line.median)
    spreads = [max(values) / min(values) for values in medians.values() if len(values) > 1 and min(values) > 0]
    return max(spreads) if spreads else None
