"""``pytest tests/fuzz --fuzz-seconds N``: how long the parsers are fuzzed in all; without it a short smoke run."""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

MEMORY_HEADROOM_BYTES = 1 << 30
SLOWEST_EXAMPLE_S = 20.0
"""No input of these sizes may keep a parser busy for longer (generous: other work may share the CPU)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help="time for all fuzz targets together")


@pytest.fixture(scope="session")
def seconds_per_target(request: pytest.FixtureRequest) -> float:
    """The stated time shared out evenly; 0 makes each target run one small round."""
    total = float(request.config.getoption("--fuzz-seconds", 0.0) or os.environ.get("COLDBENCH_FUZZ_SECONDS", "0"))
    targets = sum("fuzz" in item.path.parts for item in request.session.items)
    return total / max(1, targets)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """An input that makes a parser ask for a gigabyte more than it has ends in MemoryError, which fails the test."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_HEADROOM_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def fuzz(seconds_per_target: float) -> Callable[[SearchStrategy[bytes], Callable[[bytes], None]], None]:
    """Run a check over inputs from a strategy, in rounds with other seeds, until the target's time is over.

    A failure is shrunk by hypothesis, which prints the input and the seed of its round.
    """
    import hypothesis

    def run(inputs: SearchStrategy[bytes], check: Callable[[bytes], None]) -> None:
        end = time.monotonic() + seconds_per_target
        examples = 100 if seconds_per_target else 40
        first_seed = int.from_bytes(os.urandom(4), "big") if seconds_per_target else 0

        def timed(data: bytes) -> None:
            began = time.monotonic()
            check(data)
            assert time.monotonic() - began < SLOWEST_EXAMPLE_S, "took too long"

        rounds = 0
        while rounds == 0 or time.monotonic() < end:
            settings = hypothesis.settings(
                max_examples=examples,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            hypothesis.seed(first_seed + rounds)(settings(hypothesis.given(data=inputs)(timed)))()
            rounds += 1

    return run
