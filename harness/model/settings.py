"""This module makes the settings of a scenario's entry on one engine: its policy's options and its prefetch list.

A scenario says some things for all its lazy modes (``[lazy]``) and some for one entry. Here the two become one, each is
checked against what the mode and preset really take, and what would be dropped is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.model import modes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.modes import Mode, Preset
    from harness.model.scenario import ModeChoice, Scenario

Path = tuple[str | int, ...]
Value = bool | int | float | str


class WrongSetting(UsageError):
    """Tells of a setting that would do nothing or something else; ``path`` is where the scenario says it."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds what one entry runs with, beside its mode and preset."""

    prefetch: str | tuple[str, ...] = "none"
    """Is ``image``, ``none``, ``trace``, or the list itself."""
    options: dict[str, Value] = field(default_factory=dict)
    """Holds what differs from the preset's own policy, as the engine is told."""
    record: tuple[str, ...] = ()
    """Holds the command whose start is recorded for the start pack; empty: the workload's own."""

    @property
    def prefetch_kind(self) -> str:
        """Returns the prefetch list in one word: a list of paths is a ``list``."""
        return self.prefetch if isinstance(self.prefetch, str) else "list"


def settings_of(scenario: Scenario, choice: ModeChoice, engine: str, where: Path = ()) -> Settings | None:
    """Returns the settings of an entry on an engine; None where the engine has no such mode or preset.

    ``where`` is the entry's place in the scenario, for messages.

    Raises:
        WrongSetting: an option that is unknown or does nothing there, or a value that it does not take.
    """
    preset = modes.offers(engine, choice.mode, choice.preset)
    if preset is None:
        return None
    mode = modes.find(choice.mode, engine)
    own = _checked(mode, preset, choice.options, (*where, "options"))
    if choice.record and not preset.follows_pack:
        raise WrongSetting(f"{mode.name}:{preset.name} follows no start pack: it has no record", (*where, "record"))
    if not preset.takes_prefetch:
        for name in ("prefetch", "background"):
            if getattr(choice, name) is not None:
                message = f"{mode.name}:{preset.name} fetches everything first: it has no {name}"
                raise WrongSetting(message if preset.policy else _as_shipped(mode, preset, name), (*where, name))
        return Settings(options=own)
    shared = _checked(mode, preset, scenario.lazy.options, ("lazy", "options"))
    prefetch = choice.prefetch if choice.prefetch is not None else scenario.lazy.prefetch
    background = choice.background if choice.background is not None else scenario.lazy.background
    options = {**shared, **own}
    if prefetch == "none":
        options["prefetch"] = False
    if not background:
        options["background"] = False
    return Settings(prefetch, options, tuple(choice.record))


def _as_shipped(mode: Mode, preset: Preset, name: str) -> str:
    return f"{mode.name}:{preset.name} has the engine's own policies: it takes no {name}"


def _checked(mode: Mode, preset: Preset, options: dict[str, Value], where: Path) -> dict[str, Value]:
    try:
        return modes.checked_options(mode, preset, options)
    except UsageError as error:
        raise WrongSetting(str(error), where) from None


def wrong_settings(scenario: Scenario) -> Iterator[WrongSetting]:
    """Yields everything that is wrong with the entries of a scenario on the engines it names, each thing once.

    That is a setting that would be dropped, an entry that no engine runs, two entries that would run the same, and a
    baseline that is no entry.
    """
    engines = [chosen.engine for chosen in scenario.engines]
    said: set[tuple[Path, str]] = set()
    for engine in engines:
        for wrong in _wrong_on(scenario, engine):
            if (wrong.path, str(wrong)) not in said:
                said.add((wrong.path, str(wrong)))
                yield wrong
    for number, choice in enumerate(scenario.modes):
        if all(modes.offers(engine, choice.mode, choice.preset) is None for engine in engines):
            message = f"no engine of this scenario ({', '.join(engines)}) runs {choice.key}"
            yield WrongSetting(message, ("modes", number))
    yield from _wrong_baseline(scenario)


def _wrong_on(scenario: Scenario, engine: str) -> Iterator[WrongSetting]:
    seen: dict[tuple[object, ...], int] = {}
    for number, choice in enumerate(scenario.modes):
        try:
            settings = settings_of(scenario, choice, engine, ("modes", number))
        except WrongSetting as wrong:
            yield wrong
            continue
        if settings is None:
            continue
        key = (choice.mode, *_runs_as(choice, engine, settings))
        if key in seen:
            first = scenario.modes[seen[key]].key
            message = f"{choice.key} would run the same as {first}: same mode, policies and prefetch list"
            yield WrongSetting(message, ("modes", number))
        seen.setdefault(key, number)


def _runs_as(choice: ModeChoice, engine: str, settings: Settings) -> Iterator[object]:
    """Yields everything that decides what a trial does, apart from its mode."""
    preset = modes.offers(engine, choice.mode, choice.preset)
    assert preset is not None
    yield settings.prefetch
    yield settings.record
    if preset.policy is None:
        yield preset.name
    else:
        yield modes.policy_of(choice.mode, preset.name, settings.options)


def _wrong_baseline(scenario: Scenario) -> Iterator[WrongSetting]:
    """Checks that the gate's baseline is one of the entries."""
    baseline = scenario.gate.baseline
    if baseline and not any(baseline in {choice.mode, choice.key} for choice in scenario.modes):
        known = ", ".join(choice.key for choice in scenario.modes)
        yield WrongSetting(f"expected one of the scenario's modes ({known}), got {baseline!r}", ("gate", "baseline"))
