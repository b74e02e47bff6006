"""This module holds the parts of a scenario that say what runs in the container, when it is ready, and what is measured
after.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from harness.model.near_miss import near_miss
from harness.model.privileges import capability

#: The run-time workloads that come with the program, in the order they run.
WORKLOADS = (
    "stat-walk", "readdir-walk", "read-small", "read-small-parallel", "read-sequential", "read-random", "mmap-read",
    "exec-many", "write-small", "copy-up-large",
)  # fmt: skip

T = TypeVar("T")
#: A TOML array; strictness is about its elements, not about list or tuple.
Many = Annotated[tuple[T, ...], Strict(False)]

Temperature = Literal["cold", "warm", "stale", "evicted"]
TEMPERATURES: tuple[Temperature, ...] = ("cold", "warm", "stale", "evicted")
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=80)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Table(BaseModel):
    """Is the base of every table of a scenario file: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def refuse_repeats(names: list[str], what: str, hint: str = "") -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name!r} is there twice{hint}")


class ExitReadiness(Table):
    """Is met when the container's process has ended with this code."""

    kind: Literal["exit"]
    code: int = Field(default=0, ge=0, le=255, description="Exit code that means ready.")
    timeout_s: Seconds = Field(default=600.0, description="Longest wait, counted from the container's start.")


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {pattern!r} ({error})") from None
    return pattern


class LineReadiness(Table):
    """Is met when a line of the container's output matches (``re.search``) a regular expression."""

    kind: Literal["stdout", "stderr"]
    pattern: Annotated[str, BeforeValidator(lambda v: _check_pattern(v) if isinstance(v, str) else v)] = Field(
        description="Regular expression searched for in each line."
    )
    timeout_s: Seconds = Field(default=600.0, description="Longest wait, counted from the container's start.")


class TcpReadiness(Table):
    """Is met when a port inside the machine accepts a connection."""

    kind: Literal["tcp"]
    port: Port
    timeout_s: Seconds = Field(default=600.0, description="Longest wait, counted from the container's start.")


class HttpReadiness(Table):
    """Is met when ``GET path`` inside the machine answers with this status."""

    kind: Literal["http"]
    port: Port
    path: str = Field(default="/", pattern=r"^/")
    status: int = Field(default=200, ge=100, le=599)
    timeout_s: Seconds = Field(default=600.0, description="Longest wait, counted from the container's start.")


Readiness = Annotated[
    ExitReadiness | LineReadiness | TcpReadiness | HttpReadiness,
    Field(discriminator="kind", description="When the container is ready."),
]


class Reads(Table):
    """Describes the program's own start: it reads a share of the image's bytes, and is ready when it has them."""

    percent: int = Field(ge=1, le=100, description="Share of the bytes of all files that the image shows.")
    by: Literal["file", "directory"] = Field(
        default="file",
        description="Draw single files, and pieces of large ones, all over the image; or directory after directory.",
    )
    seed: int = Field(default=0, ge=0, description="Draws them.")


class Workload(Table):
    """Says what runs in the container; what is left out is as the image says."""

    reads: Reads | None = Field(
        default=None, description="Read a share of the image's bytes instead of running a command of its own."
    )
    command: Many[str] = Field(default=(), description="Replaces the image's entrypoint and command.")
    env: dict[str, str] = Field(default_factory=dict, description="Added to the image's environment.")
    cwd: str | None = Field(default=None, pattern=r"^/", description="Working directory.")
    user: str | None = Field(default=None, description="user[:group], by name or number.")
    capabilities: Many[Annotated[str, BeforeValidator(lambda v: capability(v) if isinstance(v, str) else v)]] = Field(
        default=(), description="Linux capabilities beyond Docker's default ones, as NET_ADMIN."
    )
    devices: Many[Annotated[str, Field(pattern=r"^/dev/[^.]")]] = Field(
        default=(), description="Device nodes of this host that the container may use, as /dev/fuse."
    )
    privileged: bool = Field(
        default=False,
        description="All capabilities, devices and system calls: the image can do to this host what root can.",
    )
    readiness: Readiness

    @model_validator(mode="after")
    def _check_reads(self) -> Workload:
        if self.reads is None:
            return self
        if self.command:
            raise ValueError("expected either command or reads, got both: reads is a command of the program's own")
        if self.readiness != ExitReadiness(kind="exit", timeout_s=self.readiness.timeout_s):
            raise ValueError('expected readiness = { kind = "exit" } with reads: it is ready when all has been read')
        return self


def _expand_workload(value: object) -> object:
    if isinstance(value, str):
        if value not in WORKLOADS:
            raise ValueError(
                f"expected a workload ({', '.join(WORKLOADS)}), got {value!r}{near_miss(value, WORKLOADS)}"
            )
        return {"name": value}
    return value


class RuntimeWorkload(Table):
    """Names a run-time workload: one of the program's own by name, or a command run inside the container."""

    name: Name
    argv: Many[str] = Field(default=(), description="Program and arguments, run in the container.")
    command: str = Field(default="", description="A line for the container's /bin/sh instead of argv.")
    setup: str = Field(
        default="",
        description="A line for /bin/sh, run once before the first pass and not measured. What it reads is not cold.",
    )
    temperatures: Many[Temperature] = Field(default=(), description="Instead of the ones all workloads run at.")

    @model_validator(mode="after")
    def _check_kind(self) -> RuntimeWorkload:
        if self.argv and self.command:
            raise ValueError(f"workload {self.name!r}: expected either argv or command, got both")
        if not self.argv and not self.command and self.name not in WORKLOADS:
            raise ValueError(
                f"workload {self.name!r}: expected argv or command, since it is not one of {', '.join(WORKLOADS)}"
            )
        return self

    @property
    def arguments(self) -> tuple[str, ...]:
        """Returns what to execute in the container; empty for the program's own workloads."""
        return ("/bin/sh", "-c", self.command) if self.command else self.argv


class Runtime(Table):
    """Says what is measured after ready: the price of the file system the container now runs on."""

    temperatures: Many[Temperature] = Field(default=TEMPERATURES, min_length=1)
    quota: Literal["none", "shape"] = Field(
        default="none",
        description="CPU and disk limits while workloads run: lifted, or the shape's. Memory and network stay limited.",
    )
    repeat_s: float = Field(
        default=0.3, ge=0, le=60, description="A warm pass is repeated until it has taken this long; reported per pass."
    )
    reference_s: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="The reference job (fixed work on tmpfs) runs this long before each workload; 0 leaves it out.",
    )
    workloads: Many[
        Annotated[RuntimeWorkload, BeforeValidator(_expand_workload, json_schema_input_type=str | RuntimeWorkload)]
    ] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Runtime:
        refuse_repeats([w.name for w in self.workloads], "workload")
        return self
