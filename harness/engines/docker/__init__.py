"""This is the engine ``docker``: Docker itself, as it is, inside the simulated machine; or the one that runs here
already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.engines.docker.engine import DockerEngine
from harness.engines.docker.running import RunningDocker

if TYPE_CHECKING:
    from harness.model.engine import EngineChoice

__all__ = ["DockerEngine", "RunningDocker", "docker_engine"]


def docker_engine(choice: EngineChoice) -> DockerEngine:
    """Makes the engine for a choice: by its ``host`` the Docker that runs there, else one of the harness's own."""
    assert choice.engine == "docker"
    return RunningDocker(choice) if choice.host else DockerEngine(choice)
