"""Engines implement modes; ``make_engine`` is the one place that chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.engines.protocol import Engine
    from harness.model.engine import EngineChoice

ENGINES: dict[str, str] = {
    "embedded": "harness.engines.embedded.engine:EmbeddedEngine",
    "docker": "harness.engines.docker:docker_engine",
    "containerd": "harness.engines.containerd:ContainerdEngine",
}


def make_engine(choice: EngineChoice) -> Engine:
    """Makes a fresh engine for one trial; raises UsageError when this program has none of that name."""
    from importlib import import_module, util

    from harness.errors import UsageError

    module, _, attribute = ENGINES[choice.engine].partition(":")
    if util.find_spec(module) is None:
        raise UsageError(f"engine {choice.engine!r}: expected one of {', '.join(known_engines())}")
    engine: Engine = getattr(import_module(module), attribute)(choice)
    return engine


def known_engines() -> tuple[str, ...]:
    """Names the engines that this program has."""
    from importlib import util

    return tuple(name for name, where in ENGINES.items() if util.find_spec(where.partition(":")[0]))
