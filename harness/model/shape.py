"""This module describes shapes (a VM's size) and distances (how far its registry is), read from ``data/shapes.toml``.

A shape with CPU credits has two forms. A *fresh* one has the credits it has at boot. A *drained* one has none left, and
gets none on credit. The two differ by an order of magnitude in a pull, so every result names its form.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import UsageError
from harness.model import quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Form = Literal["fresh", "drained"]

DEFAULT_PERIOD_US = 100_000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distance(_Frozen):
    """Says how far the registry is: what a request waits for beside the machine's own bandwidth."""

    name: str = "none"
    rtt_ms: float = Field(default=0.0, ge=0)
    first_byte_ms: float = Field(default=0.0, ge=0)
    """Counts the time from a request's arrival at the registry to the first byte of its answer."""
    per_connection_bytes_s: int | None = Field(default=None, gt=0)
    total_bytes_s: int | None = Field(default=None, gt=0)
    """Limits what the way to the registry carries in all; the machine's own bandwidth holds where it is lower."""

    @property
    def latency_s(self) -> float:
        """Returns the seconds from a request on an open connection to the first byte of its answer."""
        return (self.rtt_ms + self.first_byte_ms) / 1e3

    @property
    def delays(self) -> bool:
        """Says whether connections or requests have to be held back, one by one."""
        return bool(self.rtt_ms or self.first_byte_ms or self.per_connection_bytes_s)


#: Object stores give 85-90 MB/s per connection and a first byte after tens of milliseconds (small ranges) to 200 ms.
DISTANCES: Mapping[str, Distance] = {
    "none": Distance(),
    "near": Distance(name="near", rtt_ms=1, first_byte_ms=30, per_connection_bytes_s=90_000_000),
    "far": Distance(name="far", rtt_ms=80, first_byte_ms=150, per_connection_bytes_s=25_000_000),
    "slow": Distance(name="slow", total_bytes_s=3_000_000),
}


class Credits(_Frozen):
    """Describes a credit bucket in core-seconds: earned all the time at the baseline's rate, spent only above the
    baseline.
    """

    earned_core_s_per_h: float = Field(ge=0)
    cap_core_s: float = Field(ge=0)
    """Limits what can be earned and kept; what was there at boot does not count towards it."""
    at_boot_core_s: float = Field(ge=0)
    surplus: bool = False
    """Says whether it bursts on when nothing is left, and is charged for it ("unlimited" of EC2's T3)."""


class Network(_Frozen):
    """Limits bandwidth in each direction. With a bucket, ``burst_bits_s`` holds until it is empty, then
    ``rate_bits_s``.
    """

    rate_bits_s: int = Field(gt=0)
    burst_bits_s: int | None = Field(default=None, gt=0)
    bucket_bytes: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_bucket(self) -> Network:
        if (self.burst_bits_s is None) != (self.bucket_bytes is None):
            raise ValueError("burst_bits_s and bucket_bytes belong together")
        if self.burst_bits_s is not None and self.burst_bits_s < self.rate_bits_s:
            raise ValueError("burst_bits_s is below rate_bits_s")
        return self

    @property
    def peak_bits_s(self) -> int:
        """Returns the highest rate this network ever gives."""
        return self.burst_bits_s or self.rate_bits_s


class Disk(_Frozen):
    """Limits the disk, for reads and for writes."""

    iops: int | None = Field(default=None, gt=0)
    bytes_per_s: int | None = Field(default=None, gt=0)


class Shape(_Frozen):
    """Describes one VM size in one form. ``None`` means "not limited"."""

    name: str
    form: Form = "fresh"
    vcpus: int | None = Field(default=None, gt=0)
    baseline_cores: float | None = Field(default=None, gt=0)
    burst_cores: float | None = Field(default=None, gt=0)
    """Limits the cores while credits last; it is the vCPUs unless stated."""
    credits: Credits | None = None
    memory_bytes: int | None = Field(default=None, ge=16 << 20)
    network: Network | None = None
    disk: Disk | None = None
    disk_size_bytes: int | None = Field(default=None, ge=16 << 20)
    """Says how large the scratch disk is; None leaves it to the machine, which has room for any image."""
    period_us: int = Field(default=DEFAULT_PERIOD_US, ge=1_000, le=1_000_000)
    distance: Distance | None = None
    """Says how far the registry is; only an inline definition has one (``rtt=…``), and it replaces the setting."""
    aliases: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _check_cpu(self) -> Shape:
        if self.credits is not None and self.baseline_cores is None:
            raise ValueError("a shape with credits needs baseline_cores")
        ceiling = self.ceiling_cores
        if self.baseline_cores is not None and ceiling is not None and ceiling < self.baseline_cores:
            raise ValueError("burst_cores (or vcpus) is below baseline_cores")
        return self

    @property
    def ceiling_cores(self) -> float | None:
        """Returns the cores while credits last; without credits there is nothing above the baseline."""
        if self.credits is None:
            return self.baseline_cores
        return self.burst_cores if self.burst_cores is not None else self.vcpus

    @property
    def label(self) -> str:
        """Returns the name that results carry; it says the form wherever the form matters."""
        return f"{self.name}:{self.form}" if self.credits is not None else self.name

    @property
    def rate_bits_s(self) -> int | None:
        """Returns the sustained rate of the network."""
        return self.network.rate_bits_s if self.network else None

    def drained(self) -> Shape:
        """Returns the same VM with its credits spent (standard mode where the vendor has an unlimited one)."""
        if self.credits is None:
            return self
        spent = self.credits.model_copy(update={"at_boot_core_s": 0.0, "surplus": False})
        return self.model_copy(update={"form": "drained", "credits": spent})


class ShapeBook:
    """Holds all named shapes in their forms, looked up by ``NAME`` (the default form), ``NAME:fresh``,
    ``NAME:drained``.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._forms: dict[str, dict[Form, Shape]] = {}
        self._default: dict[str, Form] = {}
        self._names: dict[str, str] = {}
        for entry in entries:
            fields = dict(entry)
            default: Form = fields.pop("default", "fresh")
            shape = Shape.model_validate(fields)
            forms: dict[Form, Shape] = {"fresh": shape}
            if shape.credits is not None:
                forms["drained"] = shape.drained()
            self._forms[shape.name] = forms
            self._default[shape.name] = default
            for name in (shape.name, *shape.aliases):
                self._names[name] = shape.name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._forms)

    def __iter__(self) -> Any:
        """Yields every shape in every form, in the data file's order."""
        return (shape for forms in self._forms.values() for shape in forms.values())

    def get(self, text: str) -> Shape:
        """Returns the shape named ``NAME`` or ``NAME:FORM``; ``UsageError`` with the nearest names if there is none."""
        name, _, form = text.partition(":")
        if name not in self._names:
            near = difflib.get_close_matches(name, self._names, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; `coldbench shapes` lists them"
            raise UsageError(f"unknown shape '{name}'{hint}")
        canonical = self._names[name]
        forms = self._forms[canonical]
        if not form:
            return forms[self._default[canonical]]
        if form not in ("fresh", "drained"):
            raise UsageError(f"shape '{text}': unknown form '{form}', expected fresh or drained")
        if form not in forms:
            raise UsageError(f"shape '{text}': {canonical} has no credits, so it has no {form} form")
        return forms["fresh" if form == "fresh" else "drained"]


@functools.cache
def load_shapes() -> ShapeBook:
    """Returns the shapes shipped with the program."""
    text = (resources.files("harness.model") / "data" / "shapes.toml").read_text("utf-8")
    return ShapeBook(tomllib.loads(text)["shape"])


_INLINE_KEYS = (
    "cpu", "vcpus", "burst", "credits", "earn", "cap", "memory", "bandwidth", "burst-bandwidth", "bucket", "disk",
    "iops", "disk-size", "period", "distance", "rtt", "first-byte", "per-connection", "in-all",
)  # fmt: skip
_DISTANCE_KEYS = frozenset({"distance", "rtt", "first-byte", "per-connection", "in-all"})


def parse_shape(text: str) -> Shape:
    """Reads the shape a user wrote: a name, an inline definition, or a name followed by changes.

    Examples: ``aws-t2.micro:drained``, ``cpu=0.25,memory=1G,bandwidth=1Gbit,rtt=10ms``, ``gcp-e2-micro,rtt=10ms``.
    Raises ``UsageError`` naming the part that is wrong, what was expected, and the nearest known word.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("empty shape; name one (`coldbench shapes` lists them) or write cpu=0.25,memory=1G")
    base = load_shapes().get(parts.pop(0)) if "=" not in parts[0] else None
    if not parts and base is not None:
        return base
    values: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip().lower().replace("_", "-")
        if not equals or key not in _INLINE_KEYS:
            near = difflib.get_close_matches(key, _INLINE_KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}=?" if near else f"expected one of {', '.join(_INLINE_KEYS)}"
            raise UsageError(f"shape '{text}': unknown part '{part}'; {hint}")
        if key in values:
            raise UsageError(f"shape '{text}': {key} is given twice")
        values[key] = value.strip()
    try:
        return _inline(text, base, values)
    except ValueError as error:
        message = _finding(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"shape '{text}': {message}") from None


_KEY_OF_FIELD = {
    "baseline_cores": "cpu", "burst_cores": "burst", "memory_bytes": "memory", "disk_size_bytes": "disk-size",
    "period_us": "period", "at_boot_core_s": "credits", "earned_core_s_per_h": "earn", "cap_core_s": "cap",
    "rate_bits_s": "bandwidth", "burst_bits_s": "burst-bandwidth", "bucket_bytes": "bucket", "bytes_per_s": "disk",
}  # fmt: skip
_LIMITS = {
    "greater_than": "more than {gt:g}", "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:g}", "less_than_equal": "at most {le:.12g}",
}  # fmt: skip


def _finding(error: ValidationError) -> str:
    """Returns the first of what pydantic found, in the words of the inline form."""
    finding = error.errors(include_url=False)[0]
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    field = str(finding["loc"][-1])
    limit = _LIMITS.get(finding["type"])
    expected = f"expected {limit.format_map(finding['ctx'])}, got {finding['input']}" if limit else finding["msg"]
    return f"{_KEY_OF_FIELD.get(field, field.replace('_', '-'))}: {expected}"


def parse_distance(text: str) -> Distance:
    """Reads a preset (``near``, ``far``, ``slow``, ``none``) or ``rtt=10ms,first-byte=30ms,per-connection=25MB/s``."""
    if text in DISTANCES:
        return DISTANCES[text]
    if "=" not in text:
        near = difflib.get_close_matches(text, DISTANCES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(DISTANCES)} or rtt=10ms"
        raise UsageError(f"unknown distance '{text}'; {hint}")
    shape = parse_shape(text)
    if shape.distance is None or shape.model_dump(exclude={"name", "distance"}) != Shape(name="").model_dump(
        exclude={"name", "distance"}
    ):
        raise UsageError(f"distance '{text}': only rtt=, first-byte=, per-connection= and in-all= belong to a distance")
    return shape.distance


def _inline(text: str, base: Shape | None, values: Mapping[str, str]) -> Shape:
    """Puts the parts together; ``ValueError`` says which is wrong (``quantity`` raises it with the expected form)."""
    fields: dict[str, Any] = {} if base is None else base.model_dump(exclude={"aliases"})
    fields["name"] = ",".join(f"{k}={v}" for k, v in values.items())
    if base is not None:
        fields["name"] = f"{base.name},{fields['name']}"

    def read(key: str, parse: Any) -> Any:
        if key not in values:
            return None
        try:
            return parse(values[key])
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None

    simple: tuple[tuple[str, str, Any], ...] = (
        ("cpu", "baseline_cores", quantity.number),
        ("vcpus", "vcpus", quantity.integer),
        ("burst", "burst_cores", quantity.number),
        ("memory", "memory_bytes", quantity.byte_count),
        ("disk-size", "disk_size_bytes", quantity.byte_count),
        ("period", "period_us", lambda v: round(quantity.seconds(v) * 1e6)),
    )
    for key, field, parse in simple:
        if key in values:
            fields[field] = read(key, parse)

    given = {k: read(k, quantity.number) for k in ("credits", "earn", "cap") if k in values}
    if given:
        credit = dict(fields.get("credits") or {})
        base_cores = fields.get("baseline_cores") or 0.0
        credit["at_boot_core_s"] = given.get("credits", credit.get("at_boot_core_s", 0.0))
        credit["earned_core_s_per_h"] = given.get("earn", credit.get("earned_core_s_per_h", base_cores * 3600))
        credit["cap_core_s"] = given.get("cap", credit.get("cap_core_s", credit["at_boot_core_s"]))
        fields["credits"] = credit
    elif "burst" in values and fields.get("credits") is None:
        raise ValueError("burst: a burst needs credits=SECONDS to pay for it")
    if fields.get("credits") and fields.get("vcpus") is None and fields.get("burst_cores") is None:
        raise ValueError("credits: say how far credits lift the CPU, with burst=CORES or vcpus=N")

    network = dict(fields.get("network") or {})
    if "bandwidth" in values:
        network = {"rate_bits_s": read("bandwidth", quantity.bits_per_s)}
    if "burst-bandwidth" in values:
        network["burst_bits_s"] = read("burst-bandwidth", quantity.bits_per_s)
    if "bucket" in values:
        network["bucket_bytes"] = read("bucket", quantity.byte_count)
    if network:
        if "rate_bits_s" not in network:
            raise ValueError("burst-bandwidth and bucket need bandwidth=")
        fields["network"] = network

    disk = dict(fields.get("disk") or {})
    if "disk" in values:
        disk["bytes_per_s"] = read("disk", quantity.bytes_per_s)
    if "iops" in values:
        disk["iops"] = read("iops", quantity.integer)
    if disk:
        fields["disk"] = disk

    if not _DISTANCE_KEYS.isdisjoint(values):
        distance = parse_distance(values["distance"]).model_dump() if "distance" in values else {}
        if "rtt" in values:
            distance["rtt_ms"] = read("rtt", quantity.seconds) * 1e3
        if "first-byte" in values:
            distance["first_byte_ms"] = read("first-byte", quantity.seconds) * 1e3
        if "per-connection" in values:
            distance["per_connection_bytes_s"] = read("per-connection", quantity.bytes_per_s)
        if "in-all" in values:
            distance["total_bytes_s"] = read("in-all", quantity.bytes_per_s)
        distance["name"] = ",".join(
            values[k] if k == "distance" else f"{k}={values[k]}" for k in values if k in _DISTANCE_KEYS
        )
        fields["distance"] = distance
    return Shape.model_validate(fields)
