"""Storms in the report: measured points, the least times beyond them, and what failed is in neither."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

import pytest

from harness.model.details import Details, StormUse
from harness.model.observation import StormMachine, Wire
from harness.model.storm import all_ready_s
from harness.report import tables
from harness.report.comparison import compare
from harness.report.document import make_document
from harness.report.figures import storm_times
from harness.report.page import Context, html
from harness.report.storms import storms
from tests.report.observations import observation

if TYPE_CHECKING:
    from harness.model.observation import Observation

COUNTS = (1, 2, 4)


@functools.cache
def trials() -> tuple[Observation, ...]:
    """Six blocks of storms: a full pull of 100 MB and 8 core-seconds on two cores, behind 100 MB/s."""
    made = []
    for block in range(6):
        for machines in COUNTS:
            seen = observation("overlay2", "tuned", block)
            noise = random.Random(f"{block}{machines}").uniform(0.99, 1.01)
            ready_s = max(10.0, 5.0 * machines) * noise
            phase = seen.phases[0].model_copy(update={"cpu_user_s": 8.0 * machines, "cpu_system_s": 0.0})
            made.append(
                seen.model_copy(
                    update={
                        "case": seen.case.model_copy(update={"scenario": f"storm.{machines}x", "machines": machines}),
                        "time_to_ready_s": ready_s,
                        "phases": (phase,),
                        "wire_before_ready": Wire(received_bytes=100_000_000 * machines, requests=4 * machines),
                        "disk_written_bytes": 300_000_000 * machines,
                        "workloads": (),
                        "storm": tuple(
                            StormMachine(
                                ready_s=ready_s * (0.9 + 0.1 * n / machines),
                                cpu_s=8.0,
                                received_bytes=100_000_000,
                                disk_written_bytes=300_000_000,
                            )
                            for n in range(1, machines + 1)
                        ),
                        "details": Details(
                            storm=StormUse(
                                machines=machines,
                                images="same",
                                uplink_bytes_s=100_000_000,
                                host_cores=2,
                                wall_s=ready_s,
                                host_core_s=8.0 * machines,
                            )
                        ),
                    }
                )
            )
    return tuple(made)


def test_the_least_time_is_the_slowest_of_three() -> None:
    """One machine's own time, the line, or the host's processors: whichever takes longest."""
    common = {"alone_s": 10.0, "received_bytes": 100e6, "core_s": 1.0, "host_cores": 2.0}
    assert all_ready_s(1, **common) == 10.0
    assert all_ready_s(64, **common) == 32.0
    assert all_ready_s(64, **common, uplink_bytes_s=100e6) == 64.0


def test_points_and_what_is_beyond() -> None:
    """Measured numbers have ratios with intervals, those beyond a least time alone, from the fewest machines."""
    (sweep,) = storms(compare(trials()))
    assert (sweep.images, sweep.uplink_bytes_s, sweep.host_cores) == ("same", 100_000_000, 2)
    (case,) = sweep.cases
    assert [p.machines for p in case.points] == list(COUNTS)
    four = case.points[-1]
    assert four.ratio is not None
    assert four.ratio.has_interval
    assert len(four.each_s) == 4
    assert list(four.each_s) == sorted(four.each_s)
    assert four.host_share == pytest.approx(0.8, abs=0.02)
    assert four.model_s == pytest.approx(16.0)
    assert [n for n, _ in case.beyond] == [16, 32, 64]
    assert case.beyond[0][1] == pytest.approx(64.0)
    rows = [[cell.text for cell in row] for row in tables.storm(sweep).rows]
    assert rows[0][1:3] == ["1", wording_seconds(case.points[0].each_s[0])]
    assert rows[3][1] == "16, not measured"
    assert rows[3][5] == "at least 64.0 s"
    assert rows[3][3] == "\u2013"
    assert storm_times(sweep) is not None


def wording_seconds(value: float) -> str:
    """As tables have it."""
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def test_no_least_time_is_above_a_measured_one() -> None:
    """Where two machines happened to be sooner than one, noise is the reason, and the least time is theirs."""
    lucky = [
        o.model_copy(update={"time_to_ready_s": (o.time_to_ready_s or 0.0) * (0.9 if o.case.machines == 2 else 1.0)})
        for o in trials()
    ]
    (sweep,) = storms(compare(lucky))
    (case,) = sweep.cases
    assert all(point.model_s <= point.ready_s for point in case.points)


def test_a_failed_storm_is_no_point() -> None:
    """A number of machines at which one never was ready has no time, and nothing is drawn for it."""

    def failed(o: Observation) -> Observation:
        return o.model_copy(update={"status": "failed", "time_to_ready_s": None}) if o.case.machines == 4 else o

    (sweep,) = storms(compare([failed(o) for o in trials()]))
    assert [p.machines for p in sweep.cases[0].points] == [1, 2]
    assert storms(compare([o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in trials()])) == []


def test_page_and_document_show_it() -> None:
    """A section with figure and table, and the same as data."""
    groups = compare(trials())
    page = html(trials(), groups, Context("s", "2026-01-01", "coldbench run storm", {}))
    assert "storm: machines started together" in page
    assert page.count("<svg") == 2
    (part,) = make_document("s", "r", groups).storms
    assert [p.machines for p in part.cases[0].points] == list(COUNTS)
    assert part.cases[0].beyond[0][0] == 16
