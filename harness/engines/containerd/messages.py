"""These messages cross the pipe between the harness and our Go program: one JSON object per line, of these fields.

The Go side has the same in ``helper/main.go``; a field it does not set is left out there and has its default here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Deploy:
    """Asks to pull this image, create a container of it and start it."""

    reference: str
    scheme: str
    platform: str
    snapshotter: str
    id: str
    cgroup: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    hosts: str
    resolv: str
    stdout: str
    stderr: str
    runtime: str
    runtime_root: str
    capabilities: tuple[str, ...] = ()
    """Lists the capabilities beyond Docker's default ones."""
    devices: tuple[str, ...] = ()
    privileged: bool = False
    seccomp: dict[str, Any] | None = None
    """Holds the filter of system calls, as an OCI runtime takes it."""
    do: str = "deploy"


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks to take the container and its snapshot away."""

    do: str = "stop"


@dataclass(frozen=True, slots=True)
class Message:
    """Tells what happened: ``up``, ``span``, ``phase``, ``pulled``, ``created``, ``started``, ``exited``, ``failed`` …

    Times are nanoseconds of CLOCK_MONOTONIC. ``sizes`` are the layers' stored bytes, ``unpacked`` the numbers of
    those that became files on disk.
    """

    event: str
    name: str = ""
    layer: int | None = None
    start_ns: int = 0
    end_ns: int = 0
    detail: str = ""
    version: str = ""
    pid: int = 0
    sizes: tuple[int, ...] = ()
    unpacked: tuple[int, ...] = ()
    code: int = 0
    phase: str = ""
    kind: str = ""
    message: str = ""
    namespaces: tuple[int, ...] = ()
    """Holds descriptors of the helper's, one of each of ``harness.kernel.namespaces.KINDS``; none
    where it could not.
    """


_KNOWN = {field.name for field in fields(Message)}


def encode(request: Deploy | Stop) -> bytes:
    """Writes a request as one line."""
    return json.dumps(asdict(request)).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """Reads the message of one line; None for a line that is none (cut when its writer was killed)."""
    try:
        found: Any = json.loads(line)
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if name in _KNOWN
        }
        return Message(**values)
    except (ValueError, TypeError, AttributeError):
        return None
