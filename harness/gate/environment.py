"""This module says what two sessions were measured on and with, and which differences make their times incomparable.

Differences are listed before any ratio. A *decisive* one refuses the comparison of times: another processor, another
workload, another VM size. Counters of images do not depend on the host and are compared all the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.gate.sides import Side
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario

#: Facts of a host that make its times another class of times.
CLASS_FACTS = ("machine", "cpu_model", "cores", "virtualised", "cgroup_version")
#: Facts that are listed when they differ, and let a comparison go on.
LISTED_FACTS = ("kernel", "memory_bytes", "governor", "file_systems", "git_commit")


@dataclass(frozen=True, slots=True)
class Difference:
    """Names one thing that is not the same on both sides."""

    what: str
    baseline: str
    candidate: str
    decisive: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.baseline or 'not recorded'} against {self.candidate or 'not recorded'}"


def host_class(facts: Mapping[str, Any]) -> str:
    """Returns a short name for hosts whose times may be compared: it is the same for equal processors, cores and
    control groups.
    """
    text = "\n".join(f"{name}={facts.get(name)}" for name in CLASS_FACTS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe(facts: Mapping[str, Any]) -> str:
    """Describes a host in a line."""
    cores, memory = facts.get("cores"), facts.get("memory_bytes")
    parts = [str(facts.get("cpu_model") or "unknown processor")]
    parts += [f"{cores} cores"] if cores else []
    parts += [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int | float) and memory else []
    parts += [f"kernel {facts['kernel']}"] if facts.get("kernel") else []
    return ", ".join(parts)


def differences(candidate: Side, baseline: Side) -> list[Difference]:
    """Lists all differences, decisive ones first."""
    found = list(_all(candidate, baseline))
    return sorted(found, key=lambda d: not d.decisive)


def _all(candidate: Side, baseline: Side) -> Iterator[Difference]:
    mine, theirs = candidate.header, baseline.header
    if mine.session != theirs.session:
        for fact in (*CLASS_FACTS, *LISTED_FACTS):
            a, b = _say(theirs.host.get(fact)), _say(mine.host.get(fact))
            if a != b:
                yield Difference(fact.replace("_", " "), a, b, fact in CLASS_FACTS)
        tools = [(f"tool {k}", "tools", k) for k in _keys(mine.host.get("tools"), theirs.host.get("tools"))]
        for what, table, key in tools:
            a, b = _say((theirs.host.get(table) or {}).get(key)), _say((mine.host.get(table) or {}).get(key))
            if a != b:
                yield Difference(what, a, b)
        for name in _keys(mine.versions, theirs.versions):
            if mine.versions.get(name) != theirs.versions.get(name):
                yield Difference(f"version of {name}", theirs.versions.get(name, ""), mine.versions.get(name, ""))
        if mine.registry != theirs.registry:
            yield Difference("registry", theirs.registry or "its own", mine.registry or "its own")
        yield from _shapes(candidate, baseline)
    yield from _scenarios(candidate, baseline)
    if candidate.digests != baseline.digests:
        yield Difference("image", _short(baseline.digests), _short(candidate.digests))


def _scenarios(candidate: Side, baseline: Side) -> Iterator[Difference]:
    mine, theirs = _scenario(candidate), _scenario(baseline)
    if mine is None or theirs is None:
        return
    for what, a, b in (
        ("workload", theirs.workload, mine.workload),
        ("run-time workloads", theirs.runtime, mine.runtime),
        ("policies of lazy modes", theirs.lazy, mine.lazy),
    ):
        if a != b:
            yield Difference(what, _changed(a, b), _changed(b, a), decisive=what != "policies of lazy modes")


def _scenario(side: Side) -> Scenario | None:
    names = {o.case.scenario for o in side.observations}
    return side.header.scenarios.get(names.pop()) if len(names) == 1 else None


def _shapes(candidate: Side, baseline: Side) -> Iterator[Difference]:
    """Names sizes of the same name that are not the same size."""
    mine = {case.shape.label: case for case in candidate.header.plan.cases}
    theirs: dict[str, PlannedCase] = {case.shape.label: case for case in baseline.header.plan.cases}
    for label in mine.keys() & theirs.keys():
        a, b = theirs[label].shape, mine[label].shape
        ignored = {"sources", "note", "aliases"}
        if a.model_dump(exclude=ignored) != b.model_dump(exclude=ignored):
            yield Difference(f"shape {label}", _changed(a, b), _changed(b, a), decisive=True)


def _changed(one: Any, other: Any) -> str:
    a, b = one.model_dump(), other.model_dump()
    return ", ".join(f"{key} {_say(a[key])}" for key in a if a[key] != b.get(key))


def _keys(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[str]:
    return list(dict.fromkeys([*(other or {}), *(one or {})]))


def _say(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return "" if value is None else str(value)


def _short(digests: tuple[str, ...]) -> str:
    return ", ".join(digest[:19] for digest in digests)
