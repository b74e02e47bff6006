"""This pytest plugin brings the fixture ``cold_start``, for test suites that watch how fast an image starts.

::

    def test_shop_starts_soon(cold_start, benchmark):
        benchmark.pedantic(cold_start, args=("shop.toml",), kwargs={"mode": "erofs:tuned"}, rounds=6)

With pytest-benchmark, a round is one trial on a fresh machine and its time is the time to ready, not the time that the
harness took around it; phases, CPU seconds, bytes and requests are in ``extra_info``. Without it, ``cold_start(...)``
returns the trial's observation. A trial that failed or is invalid fails the test, since it has no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.model.observation import Observation
    from harness.session.launching import Launcher


class ReadyClock:
    """This clock moves by the time to ready of each trial, and by nothing else: pytest-benchmark's timer here."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


CLOCK = ReadyClock()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests that use both fixtures the clock; a timer the test names itself stays."""
    for item in items:
        used = getattr(item, "fixturenames", ())
        if "cold_start" in used and "benchmark" in used:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


class ColdStart:
    """Runs one trial a call and returns its observation."""

    def __init__(self, launcher: Launcher, place: Path, benchmark: Any = None) -> None:
        self._launcher = launcher
        self._place = place
        self._benchmark = benchmark
        self.observations: list[Observation] = []

    def __call__(self, scenario: str | Path, *, mode: str, shape: str = "", distance: str = "") -> Observation:
        """Starts the scenario's image cold in ``mode`` (``MODE:PRESET``), on its first shape if none is named.

        The test fails when the trial does, or when it is invalid.
        """
        from harness.model.plan import Selection
        from harness.model.shape import parse_distance, parse_shape
        from harness.report.exports import extra_info
        from harness.session.headers import make_header
        from harness.session.store import Store

        selection = Selection.model_validate(
            {
                "modes": [mode],
                "shapes": [parse_shape(shape)] if shape else [],
                "distances": [parse_distance(distance)] if distance else [],
                "blocks": 1,
            }
        )
        header = make_header([str(scenario)], selection, workloads=False)
        with Store.create(self._place / f"trial{len(self.observations)}", header) as store:
            self._launcher.run(store)
            seen = store.observations[-1]
        if not seen.valid:
            why = seen.failure.message if seen.failure else "; ".join(i.reason for i in seen.invalid)
            pytest.fail(f"{seen.case.key}: {seen.status}, no time to ready: {why}", pytrace=False)
        self.observations.append(seen)
        if self._benchmark is not None:
            self._benchmark.extra_info.update(extra_info(self.observations))
        CLOCK.now_s += seen.time_to_ready_s or 0.0
        return seen


@pytest.fixture(scope="session")
def _cold_start_launcher() -> Iterator[Launcher]:
    from harness.session.launching import Launcher
    from harness.session.progress import Silent

    # Ctrl-C stays pytest's.
    with Launcher(Silent(), ask=False) as launcher:
        yield launcher


@pytest.fixture
def cold_start(request: pytest.FixtureRequest, tmp_path: Path) -> ColdStart:
    """Start images cold on simulated machines; see ``harness.pytest_plugin``. Needs root, and skips without it."""
    from harness.errors import HostUnfit

    try:
        launcher: Launcher = request.getfixturevalue("_cold_start_launcher")
    except HostUnfit as unfit:
        pytest.skip(str(unfit))
    used = "benchmark" in request.fixturenames
    return ColdStart(launcher, tmp_path, request.getfixturevalue("benchmark") if used else None)
