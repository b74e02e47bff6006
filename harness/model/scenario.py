"""This module describes a scenario: image, workload, readiness, what to compare, how to measure, and what fails a
build.

These models are what a file in ``scenarios/`` says. Shorthands are expanded on the way in ("soci" is a mode with its
default preset), so that a loaded scenario has one form only. Unknown keys are refused; ``harness.scenarios`` turns the
errors into messages with file, line and key path.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from harness.errors import UsageError
from harness.model import modes as mode_table
from harness.model.axes import Axes
from harness.model.engine import EmbeddedChoice, EngineChoice, EngineName, EngineTables, expand_engines
from harness.model.faults import Faults  # noqa: TC001 - pydantic reads it at run time
from harness.model.image import ImageSpec  # noqa: TC001 - pydantic reads it at run time
from harness.model.metrics import METRICS, check_name, family, setting
from harness.model.near_miss import near_miss
from harness.model.shape import Distance, Shape, parse_distance, parse_shape
from harness.model.storm import Storm  # noqa: TC001 - pydantic reads it at run time
from harness.model.workload import Many, Name, Runtime, Seconds, Table, Workload, refuse_repeats

Option = bool | int | float | str


def _mode_name(name: str) -> str:
    """Refuses a name that no engine has."""
    known = mode_table.mode_names()
    if name not in known:
        raise ValueError(f"expected a mode ({', '.join(known)}), got {name!r}{near_miss(name, known)}")
    return name


ModeName = Annotated[str, AfterValidator(_mode_name), Field(json_schema_extra={"enum": list(mode_table.mode_names())})]


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


class LazyOptions(Table):
    """Holds policies of all lazy modes of a scenario; a mode's own table overrides them."""

    prefetch: Prefetch = "image"
    background: bool = Field(default=True, description="Fetch the rest of the image after the start.")
    options: dict[str, Option] = Field(default_factory=dict, description="Further policies of the mode, by name.")


class ModeChoice(Table):
    """Names one way to compare: a mode with its preset, and what it changes of the scenario's lazy options."""

    mode: ModeName
    preset: str = Field(default="", description="A named set of policies; each engine's default when left out.")
    label: str = Field(
        default="", pattern=r"^[a-z0-9-]*$", description="Tells apart two entries of the same mode and preset."
    )
    prefetch: Prefetch | None = None
    background: bool | None = None
    record: Many[str] = Field(
        default=(), description="Presets with a start pack: record this command, and not the workload's."
    )
    options: dict[str, Option] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_preset(self) -> ModeChoice:
        known = mode_table.preset_names(self.mode)
        if self.preset and self.preset not in known:
            raise ValueError(mode_table.unknown_preset(self.mode, self.preset, known))
        return self

    def on(self, engine: str) -> ModeChoice | None:
        """Returns this entry as an engine runs it, the preset named; None where the engine has no such mode or
        preset.
        """
        preset = mode_table.offers(engine, self.mode, self.preset)
        return None if preset is None else self.model_copy(update={"preset": preset.name})

    @property
    def variant(self) -> str:
        """Returns the preset, and the label after a ``+``; it tells this choice from others of its mode."""
        preset = self.preset or mode_table.default_preset(self.mode)
        return f"{preset}+{self.label}" if self.label else preset

    @property
    def key(self) -> str:
        """Returns ``mode:preset[+label]``, as the command line writes it."""
        return f"{self.mode}:{self.variant}"


def parse_mode(text: str) -> dict[str, str]:
    """Expands ``mode[:preset[+label]]``.

    Raises:
        ValueError: no such mode (its message names the nearest).
    """
    mode, _, rest = text.partition(":")
    preset, _, label = rest.partition("+")
    _mode_name(mode)
    return {"mode": mode, **({"preset": preset} if preset else {}), **({"label": label} if label else {})}


def _expand_mode(value: object) -> object:
    return parse_mode(value) if isinstance(value, str) else value


class Timeouts(Table):
    """Limits the waits of a trial, in seconds."""

    deploy_s: Seconds = Field(default=3600.0, description="From T0 until the container's process runs.")
    background_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="For the background fetch after ready; running out is no failure. 0: nobody waits for it.",
    )
    teardown_s: Seconds = Field(default=60.0, description="For stopping the container and the daemons.")


MetricKey = Annotated[str, AfterValidator(check_name)]


class Gate(Table):
    """Says when a comparison fails a build."""

    margin: float = Field(default=0.05, gt=0, lt=1, description="Relative change that matters.")
    metrics: Many[MetricKey] = Field(
        default=("time-to-ready", "cpu-to-ready", "runtime-relative"),
        min_length=1,
        description="Times that decide; they are corrected together. Image metrics and counters are always looked at.",
    )
    thresholds: dict[MetricKey, Annotated[float, Field(ge=0, lt=10)]] = Field(
        default_factory=dict, description="Relative change of a metric, or of a part of it, that is let pass."
    )
    ignore: Many[MetricKey] = Field(default=(), description="Metrics that are shown and never fail a build.")
    alpha: float = Field(default=0.01, gt=0, le=0.2, description="Rate of false alarms of one session.")
    baseline: str = Field(
        default="", description="mode[:preset] the others are compared with; the first mode by default."
    )
    confirm: bool = Field(default=True, description="A regression fails only when a second session finds it again.")

    @model_validator(mode="after")
    def _check_metrics(self) -> Gate:
        refuse_repeats(list(self.metrics), "metric")
        for key in self.metrics:
            if METRICS[family(key)].kind != "time":
                raise ValueError(f"metric {key!r} does not scatter and needs no interval: leave it out of metrics")
        return self

    def margin_of(self, metric: str) -> float:
        """Returns the relative change of a time that matters: the metric's own threshold, else the margin."""
        named = setting(metric, self.thresholds)
        return self.margin if named is None else named


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
    """Holds one file of ``scenarios/``."""

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
        default=(ModeChoice(mode=mode_table.OVERLAY2.name),), min_length=1
    )
    engines: Annotated[
        Many[EngineChoice],
        BeforeValidator(
            expand_engines,
            json_schema_input_type=list[EngineName | EngineChoice] | EngineTables,
        ),
    ] = Field(default=(EmbeddedChoice(),), min_length=1, description="A list of names, or a table for each engine.")
    blocks: int = Field(
        default=6, ge=1, le=10_000, description="Trials of every case; fewer than 6 never give a verdict."
    )
    timeouts: Timeouts = Timeouts()
    lazy: LazyOptions = LazyOptions()
    runtime: Runtime = Runtime()
    gate: Gate = Gate()
    axes: Axes = Axes()
    faults: Faults | None = Field(default=None, description="What fails after ready, in trials of their own.")
    storm: Storm | None = Field(default=None, description="Start several machines at the same moment in each trial.")

    @model_validator(mode="after")
    def _check_repeats(self) -> Scenario:
        refuse_repeats([m.key for m in self.modes], "mode", "; give one of them a label")
        refuse_repeats([e.engine for e in self.engines], "engine")
        refuse_repeats([s.label for s in self.shapes], "shape")
        return self

    @model_validator(mode="after")
    def _check_axes(self) -> Scenario:
        if self.axes.machines and self.storm is None:
            raise ValueError("axes.machines: expected a table [storm], whose machines it varies, as machines = 1")
        if self.storm is not None and self.runtime.workloads:
            raise ValueError("storm: expected no runtime.workloads; a storm measures starts alone")
        if self.storm is not None and self.faults is not None:
            raise ValueError("storm: expected no faults beside it; what fails after ready is looked at on one machine")
        if self.axes.read_percent and self.workload.reads is None:
            raise ValueError("axes.read_percent: expected workload.reads, which it varies, as reads = { percent = 10 }")
        return self
