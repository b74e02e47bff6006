"""Bounds of cases: the workload's own CPU, and what was done after readiness taken off."""

from __future__ import annotations

import pytest

from harness.model.bound import ImageSize, Rates
from harness.model.plan import PlannedCase, make_plan
from harness.model.scenario import Scenario
from harness.session import application
from harness.session.bounds import Bounder, Moved

RATES = Rates(
    inflate_bytes_s=1e9, inflate_zstd_bytes_s=2e9, hash_bytes_s=1e9, receive_core_s_per_byte=1e-10,
    write_core_s_per_byte=1e-10, create_core_s=1e-5, fuse_request_core_s=1e-6,
)  # fmt: skip
SIZE = ImageSize(compressed_bytes=300_000_000, uncompressed_bytes=1_000_000_000, files=40_000)


def case(mode: str, preset: str = "tuned") -> PlannedCase:
    scenario = Scenario.model_validate(
        {
            "name": "data",
            "image": {"ref": "docker://registry.example/data:1"},
            "workload": {"readiness": {"kind": "exit"}},
            "shapes": ["cpu=0.25,memory=1G"],
            "modes": [f"{mode}:{preset}"],
        }
    )
    return make_plan([scenario], seed=1).cases[0]


def test_a_lazy_start_is_bounded_by_its_workload() -> None:
    """At a quarter of a CPU, 0.4 core-seconds of the application alone take more than a second."""
    bound = Bounder(RATES, 2).bound(case("soci"), SIZE, 0.4, Moved())
    assert 1.2 < bound.seconds <= 1.6
    assert bound.terms["application_core_s"] == pytest.approx(0.4)


def test_rates_measured_again_lower_the_bound() -> None:
    """Once measured, they are used for all trials after."""
    better = RATES.model_copy(update={"write_core_s_per_byte": 5e-11})
    bounder = Bounder(RATES, 2, measure=lambda: better)
    before = bounder.bound(case("erofs", "eager"), SIZE, 0.4, Moved())
    bounder.renew()
    assert bounder.bound(case("erofs", "eager"), SIZE, 0.4, Moved()).seconds < before.seconds


def test_what_was_moved_counts() -> None:
    """Bytes received and inflated and FUSE requests raise the bound."""
    moved = Moved(received_bytes=50_000_000, inflated_bytes=200_000_000, fuse_requests=10_000)
    terms = Bounder(RATES, 2).bound(case("soci"), SIZE, 0.4, moved).terms
    assert terms["inflate_core_s"] == pytest.approx(0.2)
    assert terms["fuse_core_s"] == pytest.approx(0.01)


def test_work_after_readiness_is_taken_off() -> None:
    """Counters are read a moment late: all CPU used meanwhile may have been inflating, or requests."""
    moved = Moved(inflated_bytes=200_000_000, fuse_requests=10_000, late_core_s=0.05)
    terms = Bounder(RATES, 2).bound(case("soci"), SIZE, 0.4, moved).terms
    assert terms["inflate_core_s"] == pytest.approx(0.15)
    assert terms["fuse_core_s"] == 0


def test_a_full_pull_has_the_application_after_it() -> None:
    """Its image has to be there before the application can begin; the eager preset creates no file."""
    bounder = Bounder(RATES, 2)
    with_files = bounder.bound(case("overlay2"), SIZE, 0.4, Moved())
    without = bounder.bound(case("erofs", "eager"), SIZE, 0.4, Moved())
    assert with_files.terms["application_s"] > 1.2
    assert with_files.seconds > without.seconds > bounder.bound(case("overlay2"), SIZE, 0.0, Moved()).seconds - 1.6


@pytest.mark.files
def test_calibration_is_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The least of the trials without crun's part, times the safety factor; a broken file counts as none."""
    path = tmp_path_factory.mktemp("cache") / "applications" / "a.json"
    assert application.load(path) is None
    figure = application.SAFETY * (1.0 - application.START_CORE_S)
    assert application.save(path, [2.0, 1.0]) == pytest.approx(figure)
    assert application.load(path) == pytest.approx(figure)
    assert application.save(path, [0.001]) == 0
    path.write_text("{", "utf-8")
    assert application.load(path) is None
