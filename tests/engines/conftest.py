"""Fixtures of the engine tests: one registry with its network for all of them, a machine for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.shape import parse_shape
from tests.engines.support import TestRegistry, base_layer, run_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    """A registry that holds the image ``base``."""
    with SimulatedNetwork("tests") as network, run_registry(network.address, tmp_path_factory.mktemp("registry")) as it:
        it.push("base", [base_layer()])
        yield it


@pytest.fixture
def machine(registry: TestRegistry) -> Iterator[Machine]:
    """A machine without limits, its registry the test's."""
    with Machine(parse_shape("unlimited"), name="test", registry_upstream=(registry.address, registry.port)) as made:
        yield made


@pytest.fixture
def machine_without_registry(registry: TestRegistry) -> Iterator[Machine]:
    """A machine whose link lets port 1 of the registry's host through, where nobody listens: refused at once."""
    with Machine(parse_shape("unlimited"), name="test", registry_upstream=(registry.address, 1)) as made:
        yield made


@pytest.fixture
def small_machine(registry: TestRegistry) -> Iterator[Callable[..., Machine]]:
    """Makes machines of another shape or disk; all are unmade at the end of the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(shape: str, scratch_bytes: int = 1 << 30) -> Machine:
            upstream = (registry.address, registry.port)
            return stack.enter_context(
                Machine(parse_shape(shape), name="test", scratch_bytes=scratch_bytes, registry_upstream=upstream)
            )

        yield make
