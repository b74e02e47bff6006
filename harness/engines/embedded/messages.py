"""These frozen dataclasses are what the harness and the agent inside the machine tell each other.

The harness says ``Deploy`` and ``Stop``; everything else is the agent's. Spans have the daemon's form, see
``harness.lazyfs.messages``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from harness.engines.protocol import DeployRequest  # noqa: TC001 - msgspec reads the annotations
from harness.lazyfs.messages import Span


@dataclass(frozen=True, slots=True)
class Deploy:
    """Says that T0 was at ``t0_ns`` (CLOCK_MONOTONIC): bring the image to ``scratch`` on the machine's disk, and start
    it.

    ``system_calls`` is the container's seccomp program in base64, made before T0; empty where there is none.
    """

    request: DeployRequest
    scratch: str
    t0_ns: int
    system_calls: str = ""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Asks for the image on ``scratch`` now, before T0, so that ``Deploy`` finds it there; ``Prepared`` answers it."""

    request: DeployRequest
    scratch: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tells that the image is on the machine."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks to take container and mounts away; ``Stopped`` answers it."""


@dataclass(frozen=True, slots=True)
class AgentUp:
    """Tells that the agent has imported everything and waits."""


@dataclass(frozen=True, slots=True)
class RootfsDetails:
    """Holds facts about how a mode put the root file system there; None where a mode has no such fact."""

    agent_requests: int | None = None
    """Counts requests that the agent itself sent to the registry."""
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

    def known(self) -> dict[str, object]:
        """Returns the facts there are, by name, in the form that an observation stores."""
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in known.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class Entered:
    """Tells that a phase begins now; phase ``pull`` began at T0."""

    phase: Literal["create", "start"]


@dataclass(frozen=True, slots=True)
class Created:
    """Tells that the container exists with this ``pid`` and ``root``; its process does not run yet.

    With the message come open descriptors of the process's namespaces, one of each of ``harness.kernel.namespaces``'
    ``KINDS``: a process that ends at once has none any more when the harness comes to look.
    """

    pid: int
    root: str
    details: RootfsDetails


@dataclass(frozen=True, slots=True)
class Started:
    """Tells that the container's process runs since ``time_ns``; ``image`` is the digest of the manifest that was
    deployed.
    """

    time_ns: int
    image: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Tells that the deployment, or the agent itself, failed in ``phase``; ``harness.errors.from_kind`` rebuilds the
    error.
    """

    kind: str
    message: str
    phase: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Tells that the container's process has ended."""

    code: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Tells that everything is taken away, but for what ``problems`` say."""

    problems: tuple[str, ...] = ()


TO_AGENT: tuple[type, ...] = (Deploy, Prepare, Stop)
FROM_AGENT: tuple[type, ...] = (AgentUp, Prepared, Entered, Span, Created, Started, Failed, Exited, Stopped)
