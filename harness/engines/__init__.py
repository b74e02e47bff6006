"""Engines implement modes; ``make_engine`` is the one place that chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.engines.protocol import Engine

ENGINES = {
    "embedded": "harness.engines.embedded.engine:EmbeddedEngine",
    "docker": "harness.engines.docker:DockerEngine",
    "containerd": "harness.engines.containerd:ContainerdEngine",
}


def make_engine(name: str) -> Engine:
    """A fresh engine for one trial; UsageError when there is none of that name (or it cannot be loaded here)."""
    from importlib import import_module, util

    from harness.errors import UsageError

    module, _, attribute = ENGINES.get(name, "").partition(":")
    if not module or util.find_spec(module) is None:
        known = [engine for engine, where in ENGINES.items() if util.find_spec(where.partition(":")[0])]
        raise UsageError(f"engine {name!r}: expected one of {', '.join(known)}")
    engine: Engine = getattr(import_module(module), attribute)()
    return engine
