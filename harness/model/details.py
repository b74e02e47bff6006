"""This module holds the details of trials and of preparations: facts beside their figures.

None stands for a fact that nobody told, and such a fact is not stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler


class Facts(BaseModel):
    """Stores what it was made with, and nothing else: which facts there are differs from mode to mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class KeptFacts(Facts):
    """Keeps facts of other versions as they are, too."""

    model_config = ConfigDict(frozen=True, extra="allow")


class EngineDetails(Facts):
    """Holds what an engine tells of a trial beside its counters."""

    agent_requests: int | None = None
    """Engine embedded: counts requests that the agent itself sent to the registry."""
    rounds_before_mount: int | None = None
    """Counts requests before the mount that waited for one another's answer (``harness.oci.registry.rounds``).

    A start pack's is among them, though no mount waits for it.
    """
    entries: int | None = None
    unpacked_bytes: int | None = None
    soci_index: str | None = None
    lazy_layers: tuple[int, ...] | None = None
    unpacked_layers: tuple[int, ...] | None = None
    erofs: str | None = None
    """Says how EROFS was mounted: ``file``, ``loop``, or ``loops`` with the metadata on a device of its own."""
    erofs_refused: tuple[str, ...] | None = None
    """Lists ways to mount it that were tried first, and why they failed."""
    whole_layers: tuple[int, ...] | None = None
    survives_daemon: bool | None = None
    """Says that another daemon takes over when this one dies."""
    versions: dict[str, str] | None = None
    """Holds versions of the programs that the engine ran, by name."""
    docker_version: str | None = None
    storage_driver: str | None = None
    layers_existing: int | None = None
    """Counts layers that were in a Docker that runs already, from another image."""
    limits: str | None = None
    """Says what a shape's limits hold for where they do not hold for all."""
    snapshotter_metrics_at_ready: dict[str, float] | None = None
    """Holds what a snapshotter counted itself until the container was ready, by the names of its own metrics."""
    snapshotter_metrics: dict[str, float] | None = None


class StormUse(KeptFacts):
    """Holds what the machines of a storm shared, and what the host spent on it."""

    machines: int | None = None
    images: str | None = None
    """Says whether all of them start the ``same`` image."""
    uplink_bytes_s: int | None = None
    """None where each machine's own bandwidth is the only limit."""
    wall_s: float | None = None
    """Counts seconds from T0 until the last machine was ready; None where that was not seen."""
    host_core_s: float | None = None
    """Counts CPU seconds of the host in that time, with whatever."""
    host_cores: int | None = None

    @property
    def host_share(self) -> float | None:
        """Returns the share of the host's processors that was busy in that time; None where it is not known."""
        if self.host_core_s is None or not self.wall_s or not self.host_cores:
            return None
        return self.host_core_s / (self.wall_s * self.host_cores)


class Details(EngineDetails):
    """Holds all that is stored beside a trial's figures; facts of other versions are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    privileges: dict[str, bool | tuple[str, ...]] | None = None
    """Holds what the container might do beyond the default, by the names of a scenario's workload."""
    reads: dict[str, str | int] | None = None
    """Holds what a start read that reads a share of the image: ``with`` what, ``bytes``, ``pieces``, ``of_bytes``."""
    storm: StormUse | None = None
    runtime_quota: Literal["none", "shape"] | None = None
    """Says what CPU limit the run-time workloads ran under."""
    cpu_from_start_s: float | None = None
    """Counts the CPU seconds of the machine from the container's creation until it was ready."""
    background_finished: bool | None = None
    disk_limited: str | None = None
    """Says how far the shape's disk limits held (``harness.machine.machine.Machine.disk_limited``)."""
    teardown_killed: bool | None = None
    """Says that the tear-down outlasted its limit, so that processes were killed."""
    engine_log: str | None = None
    """Holds the end of what the engine's processes wrote to stderr."""
    traceback: str | None = None
    """Holds the traceback of a failure that is no error of ours."""


class FaultDetails(KeptFacts):
    """Holds what is stored beside the figures of a trial with a fault; facts of other versions are kept as they are."""

    traceback: str | None = None
    engine_log: str | None = None
    """Holds the end of what the engine's processes wrote to stderr."""
    versions: str | None = None
    """Names the programs that the engine ran and their versions, separated by commas."""


class PreparationDetails(KeptFacts):
    """Holds what is known of one preparation beside its cost; facts of other versions are kept as they are."""

    name: str | None = None
    """Form ``image``: the name at a registry that was looked up; None where the image is not named by a registry."""
    digest: str | None = None
    """Holds the digest that the name led to."""
    looked_up_at: str | None = None
    """Says when that was found out (UTC, ISO 8601)."""
    moved_from: str | None = None
    """Holds the digest that the lookup before had; empty where it is the same."""
    moved_from_at: str | None = None
    offline: bool | None = None
    """Says that nobody was asked now."""
    paths: int | None = None
    """Form ``trace``: counts the files that a start reads."""
    reads: int | None = None
    """Form ``trace``: counts the ranges of files that a start reads."""
    ranges: int | None = None
    """Form ``recording``: counts the ranges of the layers that the kernel asks for during a start."""
    application_core_s: float | None = None
    """Form ``application``: gives the workload's own CPU seconds until it was ready, as the lower bound takes them."""
    measured_s: tuple[float, ...] | None = None
    """Form ``application``: lists the measured CPU seconds; None where the figure was kept from an earlier session."""
    error: str | None = None
    """Says why the preparation failed; the session goes on without it."""
