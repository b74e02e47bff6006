"""The engine tests' fixtures, with the hostile image in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import machine, registry, small_machine
from tests.hostile.images import PROGRAM, hostile_layer

if TYPE_CHECKING:
    from tests.engines.support import TestRegistry

__all__ = ["hostile", "machine", "registry", "small_machine"]


@pytest.fixture(scope="session")
def hostile(registry: TestRegistry) -> TestRegistry:
    """The registry, holding the image ``hostile``."""
    registry.push("hostile", [hostile_layer()], {"Entrypoint": [PROGRAM]})
    return registry
