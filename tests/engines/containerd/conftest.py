"""One registry with an image in every form for all tests of the real containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd.support import publish

if TYPE_CHECKING:
    from tests.engines.support import TestRegistry


@pytest.fixture(scope="session")
def forms(registry: TestRegistry, tmp_path_factory: pytest.TempPathFactory) -> TestRegistry:
    """The registry, with the image as ``plain``, ``esgz`` and ``soci``."""
    publish(registry, tmp_path_factory.mktemp("forms"))
    return registry
