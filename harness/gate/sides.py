"""This module finds a side of a comparison: the trials of one session, or the part of them that the user names.

On the command line a side is ``DIR`` or ``DIR#key=value,key=value``: ``results/a#mode=soci,shape=gcp-e2-micro``. What
both sides name (or what names one of them) is what is compared; all other coordinates of a case must agree for two
cases to be a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.model.near_miss import near_miss
from harness.session import inventory, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.model.observation import Case, Observation
    from harness.model.session import SessionHeader
    from harness.session.inventory import Inventory

#: What a side can be told apart by.
COORDINATES = ("scenario", "mode", "engine", "shape", "distance", "image")


@dataclass(frozen=True)
class Side:
    """Holds the trials of a session that a selection lets through; ``selection`` maps coordinates to what was asked
    for.
    """

    name: str
    header: SessionHeader
    observations: tuple[Observation, ...]
    selection: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Returns the digests of the images its trials started."""
        return tuple(dict.fromkeys(o.image_digest for o in self.observations if o.image_digest))

    def inventory(self, digest: str) -> Inventory | None:
        """Returns what is known of an image of this side."""
        return None if self.directory is None else inventory.load(self.directory, digest)


@dataclass(frozen=True)
class Pair:
    """Holds two cases that differ in nothing but what is compared; ``name`` says what they have in common."""

    name: str
    candidate: tuple[Observation, ...]
    baseline: tuple[Observation, ...]
    side_by_side: bool
    """Says whether both ran in the same blocks of one session."""


def coordinates(o: Observation) -> dict[str, str]:
    """Returns where a trial stands: the value of each coordinate by its name."""
    case: Case = o.case
    return {
        "scenario": case.scenario,
        "mode": f"{case.mode}:{case.variant}",
        "engine": case.engine,
        "shape": case.shape,
        "distance": case.distance,
        "image": o.image_digest,
    }


def parse(text: str) -> Side:
    """Finds the side that a user wrote.

    Raises:
        UsageError: no session there, an unknown coordinate, or a selection that lets nothing through.
    """
    directory, _, wanted = text.partition("#")
    selection: dict[str, str] = {}
    for part in filter(None, wanted.split(",")):
        key, equals, value = part.partition("=")
        if key not in COORDINATES or not equals:
            hint = near_miss(key, COORDINATES) or f"; expected one of {', '.join(COORDINATES)}, as in mode=soci"
            raise UsageError(f"{text}: {part!r} is no selection{hint}")
        selection[key] = value
    header, observations = store.load(directory)
    return select(Side(directory, header, tuple(observations), {}, Path(directory)), selection, text)


def select(side: Side, selection: Mapping[str, str], name: str) -> Side:
    """Returns the part of a side that a selection lets through. Raises UsageError where that is nothing."""
    chosen = tuple(o for o in side.observations if _matches(coordinates(o), selection))
    if side.observations and not chosen:

        def alone(key: str) -> bool:
            return any(_matches(coordinates(o), {key: selection[key]}) for o in side.observations)

        key = next((key for key in selection if not alone(key)), next(iter(selection)))
        there = ", ".join(dict.fromkeys(coordinates(o)[key] for o in side.observations))
        raise UsageError(f"{name}: no trial has {key}={selection[key]}; there are {there}")
    return Side(name, side.header, chosen, {**side.selection, **selection}, side.directory)


def _matches(at: Mapping[str, str], selection: Mapping[str, str]) -> bool:
    """Says whether a case is selected; a mode may be named without its preset, an image by the beginning of its
    digest.
    """
    open_ended = {"mode": (":",), "image": ("",)}
    for key, value in selection.items():
        wanted = f"sha256:{value}" if key == "image" and not value.startswith("sha256:") else value
        if at[key] != wanted and not any(at[key].startswith(wanted + after) for after in open_ended.get(key, ())):
            return False
    return True


def pairs(candidate: Side, baseline: Side) -> tuple[list[Pair], list[str]]:
    """Pairs the cases of both sides that belong together, and says in a sentence for each other one that it has no
    partner.

    Raises:
        UsageError: several cases of a side have the same partner: the selection leaves open which is meant. Or the
            shape's limits held for other things on the two sides.
    """
    varied = set(candidate.selection) | set(baseline.selection) | {"image"}
    mine, theirs = _cases(candidate, varied), _cases(baseline, varied)
    same = candidate.header.session == baseline.header.session
    found = [Pair(name, tuple(mine[name]), tuple(theirs[name]), same) for name in mine if name in theirs]
    for pair in found:
        _refuse_mixed_limits(pair, candidate.name, baseline.name)
    alone = [f"{name}: only in the candidate" for name in mine if name not in theirs]
    alone += [f"{name}: only in the baseline" for name in theirs if name not in mine]
    return found, alone


def _refuse_mixed_limits(pair: Pair, candidate: str, baseline: str) -> None:
    """Raises UsageError where the shape's limits held for other things on the two sides, and nothing overrules this.

    A Docker that runs already is outside of the shape's limits: no ratio with a machine's start means anything.
    """
    cases = [o.case for o in (*pair.candidate, *pair.baseline)]
    held = {case.limits: f"{case.mode}:{case.variant} ({case.engine})" for case in cases}
    if len(held) > 1:
        raise UsageError(
            f"{baseline} and {candidate} cannot be compared: under {held['container']} of an engine that runs already "
            f"the shape's limits held for the container only, under {held['machine']} for the whole machine. Compare "
            "two sessions of one kind, or measure Docker without host"
        )


def _cases(side: Side, varied: set[str]) -> dict[str, list[Observation]]:
    grouped: dict[str, list[Observation]] = {}
    cases: dict[str, str] = {}
    for o in side.observations:
        at = coordinates(o)
        name = _name({key: value for key, value in at.items() if key not in varied}) or "all"
        other = cases.setdefault(name, o.case.key)
        if other != o.case.key:
            raise UsageError(
                f"{side.name}: {o.case.key} and {other} would be compared with the same case; select one of them, "
                f"as in DIR#mode={at['mode']}"
            )
        grouped.setdefault(name, []).append(o)
    return grouped


def _name(at: Mapping[str, str]) -> str:
    """Returns a case's name in tables; what is as usual is not said."""
    usual = {"engine": "embedded", "distance": "none"}
    return " ".join(value for key, value in at.items() if usual.get(key) != value)
