"""This module chooses what a gate compares with: another image, mode or engine in the same blocks, or a stored session.

Side by side is the best: whatever drifts on the host falls on both sides alike. A stored session saves half of the
trials and brings in what changed on the host since; the gate says how old it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.errors import NothingToCompare, UsageError
from harness.gate.sides import Side, pairs, select
from harness.model import modes
from harness.model.image import ImageSpec
from harness.model.near_miss import near_miss
from harness.oci.reference import parse_reference
from harness.scenarios import find, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.sides import Pair
    from harness.model.observation import Observation
    from harness.model.scenario import Scenario
    from harness.model.session import SessionHeader

Kind = Literal["image", "mode", "engine", "session", "again"]

#: Ends the name of the scenario that stands for the other side.
SUFFIX = {"image": ".baseline", "again": ".again"}


@dataclass(frozen=True)
class Baseline:
    """Describes a baseline: ``value`` is a reference, a mode, an engine; ``side`` is there for a stored session only.

    Kind "again" is the same scenario once more: an A/A run.
    """

    kind: Kind
    value: str = ""
    side: Side | None = None

    @property
    def counters_decide(self) -> bool:
        """Says whether counters decide: two modes or engines do different things by nature, so
        theirs are only shown.
        """
        return self.kind in {"image", "session", "again"}

    @property
    def text(self) -> str:
        """Says what it is, in words."""
        said = {
            "image": f"image {self.value}, side by side",
            "mode": f"mode {self.value}, side by side",
            "engine": f"engine {self.value}, side by side",
            "session": f"stored session {self.value}",
            "again": "itself",
        }
        return said[self.kind]

    def scenarios(self, scenario: Scenario) -> list[Scenario]:
        """Lists what the session runs: the scenario, and its other side where that is a scenario of its own."""
        if self.kind == "image":
            other = {"name": scenario.name + SUFFIX["image"], "image": image_spec(self.value)}
            return [scenario, scenario.model_copy(update=other)]
        if self.kind == "again":
            return [scenario, scenario.model_copy(update={"name": scenario.name + SUFFIX["again"]})]
        return [scenario]

    def pairs(
        self, header: SessionHeader, observations: Sequence[Observation], side: Side
    ) -> tuple[list[Pair], list[str]]:
        """Pairs the session's cases, candidate first, and tells what has no partner; ``side`` is all of the session."""
        whole = replace(side, observations=tuple(observations))
        name = next(iter(header.scenarios))
        if self.kind in SUFFIX:
            other = name + SUFFIX[self.kind]
            return self._two(whole, {"scenario": name}, {"scenario": other})
        if self.kind == "session":
            assert self.side is not None
            return pairs(whole, self.side)
        if self.kind == "engine":
            engines = [engine for engine in _seen(whole, "engine") if engine != self.value]
            return self._many(whole, "engine", engines)
        baseline = next((mode for mode in _seen(whole, "mode") if _is(mode, self.value)), self.value)
        return self._many(whole, "mode", [mode for mode in _seen(whole, "mode") if mode != baseline])

    def _two(self, whole: Side, mine: dict[str, str], theirs: dict[str, str]) -> tuple[list[Pair], list[str]]:
        seen = set(_seen(whole, "scenario"))
        if not {mine["scenario"], theirs["scenario"]} <= seen:
            return [], []  # the first trials of a session have not reached both sides yet
        return pairs(select(whole, mine, "candidate"), select(whole, theirs, "baseline"))

    def _many(self, whole: Side, key: str, candidates: Sequence[str]) -> tuple[list[Pair], list[str]]:
        found: list[Pair] = []
        alone: list[str] = []
        if not any(_is(value, self.value) for value in _seen(whole, key)):
            return [], []
        baseline = select(whole, {key: self.value}, "baseline")
        for candidate in candidates:
            more, without = pairs(select(whole, {key: candidate}, "candidate"), baseline)
            found += [replace(pair, name=f"{candidate} {pair.name}") for pair in more]
            alone += [f"{candidate} {text}" for text in without]
        return found, list(dict.fromkeys(alone))


def _seen(side: Side, key: str) -> list[str]:
    from harness.gate.sides import coordinates

    return list(dict.fromkeys(coordinates(o)[key] for o in side.observations))


def _is(value: str, wanted: str) -> bool:
    return value == wanted or value.startswith(f"{wanted}:")


def image_spec(text: str) -> ImageSpec:
    """Returns the image that a user named: ``scenario:NAME``, ``oci:DIR[:TAG]``, an archive, or a
    registry reference.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "scenario":
        return load(find(rest)).image
    key = {"oci": "layout", "oci-archive": "archive", "docker-archive": "archive"}.get(scheme, "ref")
    value = text if key == "ref" else rest
    return ImageSpec.model_validate({key: value})


def modes_to_run(scenario: Scenario, chosen: Baseline, named: Sequence[str]) -> list[str]:
    """Returns the modes of the session, empty for the scenario's own: those named, and the baseline's where it is a
    mode.
    """
    if chosen.kind != "mode":
        return list(named)
    own = [entry.key for entry in scenario.modes]
    if not named and any(_is(key, chosen.value) for key in own):
        return []
    return [*(named or own), chosen.value]


def choose(scenario: Scenario, image: str, mode: str, engine: str, stored: str) -> Baseline:
    """Chooses the baseline that options name; without one it takes the scenario's own, which is a mode.

    Raises:
        UsageError: more than one is named, or an unknown mode or engine.
        NothingToCompare: none is named, and the scenario has one mode only.
    """
    from harness.gate.sides import parse
    from harness.model.plan import choose_modes

    given = {"--baseline-image": image, "--baseline-mode": mode, "--baseline-engine": engine, "--baseline": stored}
    named = [option for option, value in given.items() if value]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)}: a gate has one baseline; leave the others out")
    if image:
        spec = image_spec(image)
        if spec.ref:
            parse_reference(spec.ref)  # a name that is none is told before the candidate's image is prepared
        return Baseline("image", image)
    if engine:
        if engine not in modes.ENGINES:
            hint = near_miss(engine, modes.ENGINES) or f"; expected one of {', '.join(modes.ENGINES)}"
            raise UsageError(f"--baseline-engine {engine}: no such engine{hint}")
        return Baseline("engine", engine)
    if stored:
        side = parse(stored)
        if not any(o.valid for o in side.observations):
            raise NothingToCompare(f"{stored}: the baseline holds no valid trial; name another session")
        return Baseline("session", stored, side)
    if mode:
        choose_modes(scenario, [mode], [], option="--baseline-mode")
    wanted = mode or scenario.gate.baseline or scenario.modes[0].key
    if not mode and len(scenario.modes) < 2:
        raise NothingToCompare(
            f"scenario {scenario.name} has one mode and no baseline is named: give --baseline-image REF, "
            "--baseline-mode MODE, --baseline-engine ENGINE, or --baseline DIR (a stored session)"
        )
    return Baseline("mode", wanted)
