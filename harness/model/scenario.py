"""A scenario: an image, a workload with its readiness condition, what to compare, how to measure, and what gates.

These models are what a file in ``scenarios/`` says. Shorthands are expanded on the way in ("soci" is a mode with its
default preset), so that a loaded scenario has one form only. Unknown keys are refused; ``harness.scenarios`` turns the
errors into messages with file, line and key path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from harness.errors import UsageError
from harness.model.image import ImageSpec  # noqa: TC001 - pydantic reads it at run time
from harness.model.shape import Distance, Shape, parse_distance, parse_shape
from harness.model.workload import Many, Name, Runtime, Seconds, Table, Workload, near_miss, refuse_repeats

#: Presets of each mode, the default one first.
PRESETS: dict[str, tuple[str, ...]] = {
    "overlay2": ("docker-like", "tuned"),
    "estargz": ("tuned", "reference"),
    "soci": ("tuned", "reference"),
    "erofs": ("tuned", "eager"),
}

ModeName = Literal["overlay2", "estargz", "soci", "erofs"]
EngineName = Literal["embedded", "docker", "containerd"]
Option = bool | int | float | str


def lazy(mode: str, preset: str) -> bool:
    """Whether a container of this mode starts before its image is there: the one place that knows."""
    return mode != "overlay2" and preset != "eager"


def _prefetch(value: object) -> object:
    if isinstance(value, str) and value not in {"image", "none", "trace"}:
        raise ValueError(f'expected "image", "none", "trace" or a list of paths, got {value!r}')
    return value


Prefetch = Annotated[
    Literal["image", "none", "trace"] | Many[str],
    BeforeValidator(_prefetch),
    Field(
        description='What to fetch before it is asked for: "image" (the list the image carries, if it does), "none", '
        'a list of paths in order, or "trace" (recorded by an earlier trial).'
    ),
]


def through_fuse(mode: str) -> bool:
    """Whether bytes of a mode's root file system come over FUSE, also where a preset fetches all of them first."""
    return mode != "overlay2"


class LazyOptions(Table):
    """Policies of all lazy modes of a scenario; a mode's own table overrides them."""

    prefetch: Prefetch = "image"
    background: bool = Field(default=True, description="Fetch the rest of the image after the start.")
    options: dict[str, Option] = Field(default_factory=dict, description="Further policies of the mode, by name.")


class ModeChoice(Table):
    """One way to compare: a mode with its preset, and what it changes of the scenario's lazy options."""

    mode: ModeName
    preset: str = Field(default="", description="A named set of policies; the mode's default when left out.")
    label: str = Field(
        default="", pattern=r"^[a-z0-9-]*$", description="Tells apart two entries of the same mode and preset."
    )
    prefetch: Prefetch | None = None
    background: bool | None = None
    options: dict[str, Option] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") in PRESETS and not data.get("preset"):
            return {**data, "preset": PRESETS[data["mode"]][0]}
        return data

    @model_validator(mode="after")
    def _check_preset(self) -> ModeChoice:
        presets = PRESETS[self.mode]
        if self.preset not in presets:
            raise ValueError(f"expected a preset of mode {self.mode} ({', '.join(presets)}), got {self.preset!r}")
        if self.mode == "overlay2" and (self.prefetch is not None or self.background is not None):
            raise ValueError("mode overlay2 fetches everything first: it has no prefetch and no background fetch")
        return self

    @property
    def variant(self) -> str:
        """Preset, and label after a ``+``: what tells this choice from others of its mode."""
        return f"{self.preset}+{self.label}" if self.label else self.preset

    @property
    def key(self) -> str:
        """``mode:preset[+label]``, as the command line writes it."""
        return f"{self.mode}:{self.variant}"


def parse_mode(text: str) -> dict[str, str]:
    """Expand ``mode[:preset[+label]]``.

    Raises:
        ValueError: no such mode (its message names the nearest).
    """
    mode, _, rest = text.partition(":")
    preset, _, label = rest.partition("+")
    if mode not in PRESETS:
        raise ValueError(f"expected a mode ({', '.join(PRESETS)}), got {mode!r}{near_miss(mode, PRESETS)}")
    return {"mode": mode, **({"preset": preset} if preset else {}), **({"label": label} if label else {})}


def _expand_mode(value: object) -> object:
    return parse_mode(value) if isinstance(value, str) else value


class Timeouts(Table):
    """Longest waits of a trial, in seconds."""

    deploy_s: Seconds = Field(default=3600.0, description="From T0 until the container's process runs.")
    background_s: Seconds = Field(
        default=600.0, description="For the background fetch after ready; running out is no failure."
    )
    teardown_s: Seconds = Field(default=60.0, description="For stopping the container and the daemons.")


class Gate(Table):
    """When a comparison fails a build."""

    margin: float = Field(default=0.05, gt=0, lt=1, description="Relative change that matters.")
    metrics: Many[Literal["time-to-ready", "runtime-overhead"]] = ("time-to-ready", "runtime-overhead")
    baseline: str = Field(
        default="", description="mode[:preset] the others are compared with; the first mode by default."
    )
    confirm: bool = Field(default=True, description="A regression fails only when a second session finds it again.")


def _expand_shape(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_shape(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _expand_distance(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_distance(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


class Scenario(Table):
    """One file of ``scenarios/``."""

    name: Name
    description: str = ""
    image: ImageSpec
    workload: Workload
    shapes: Many[Annotated[Shape, BeforeValidator(_expand_shape, json_schema_input_type=str | Shape)]] = Field(
        default_factory=lambda: (parse_shape("unlimited"),), min_length=1, description="VM sizes: names or definitions."
    )
    distance: Annotated[Distance, BeforeValidator(_expand_distance, json_schema_input_type=str | Distance)] = Field(
        default=Distance(), description="How far the registry is: a preset, or a definition."
    )
    modes: Many[Annotated[ModeChoice, BeforeValidator(_expand_mode, json_schema_input_type=str | ModeChoice)]] = Field(
        default=(ModeChoice(mode="overlay2"),), min_length=1
    )
    engines: Many[EngineName] = Field(default=("embedded",), min_length=1)
    blocks: int = Field(
        default=6, ge=1, le=10_000, description="Trials of every case; fewer than 6 never give a verdict."
    )
    timeouts: Timeouts = Timeouts()
    lazy: LazyOptions = LazyOptions()
    runtime: Runtime = Runtime()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _check_repeats(self) -> Scenario:
        refuse_repeats([m.key for m in self.modes], "mode", "; give one of them a label")
        refuse_repeats(list(self.engines), "engine")
        refuse_repeats([s.label for s in self.shapes], "shape")
        return self
