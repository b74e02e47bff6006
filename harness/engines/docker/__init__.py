"""Engine ``docker``: Docker itself, as it is, inside the simulated machine."""

from __future__ import annotations

from harness.engines.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
