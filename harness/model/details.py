"""This module holds the details of a trial: facts beside its figures, as its engine tells them.

None stands for a fact that nobody told, and such a fact is not stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_serializer

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler


class Facts(BaseModel):
    """Stores what it was made with, and nothing else: which facts there are differs from mode to mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class EngineDetails(Facts):
    """Holds what an engine tells of a trial beside its counters."""

    agent_requests: int | None = None
    """Engine embedded: counts requests that the agent itself sent to the registry."""
    rounds_before_mount: int | None = None
    """Counts requests before the mount that waited for one another's answer (``harness.oci.registry.rounds``)."""
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
