"""The axis read_percent in the report: curves against one full pull, where they cross, and what the page shows."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from harness.report import tables, wording
from harness.report.comparison import compare
from harness.report.density import densities
from harness.report.document import make_document
from harness.report.figures import density_curves, density_surface
from harness.report.page import Context, html
from harness.report.publish import write_figures
from tests.report.observations import observation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.model.observation import Observation
    from harness.report.density import Density, ShareCurve

SHARES = (1, 10, 50, 100)
#: Seconds to ready of a share at one core, by case.
TIMES: dict[tuple[str, str], Callable[[int], float]] = {
    ("overlay2", "sequential"): lambda _share: 9.0,
    ("overlay2", "tuned"): lambda _share: 8.0,
    ("soci", "tuned"): lambda share: 3.0 + 0.1 * share,
    ("erofs", "tuned"): lambda share: 2.0 + 0.05 * share,
}
SHAPES = ("cpu=1,memory=2G", "cpu=0.25,memory=2G")


@functools.cache
def trials(blocks: int = 6) -> tuple[Observation, ...]:
    """Every share on two shapes; at a quarter of a core all takes four times as long."""
    made = []
    for block in range(blocks):
        for (mode, preset), time_of in TIMES.items():
            for shape in SHAPES:
                for share in SHARES:
                    seen = observation(mode, preset, block)
                    noise = random.Random(f"{mode}{preset}{block}{shape}{share}").uniform(0.99, 1.01)
                    ready_s = time_of(share) * noise * (4 if shape == SHAPES[1] else 1)
                    case = seen.case.model_copy(
                        update={"scenario": f"density.{share}pct", "shape": shape, "read_percent": share}
                    )
                    made.append(seen.model_copy(update={"case": case, "time_to_ready_s": ready_s, "workloads": ()}))
    return tuple(made)


def curve(found: Density, label: str) -> ShareCurve:
    return next(c for c in found.curves if c.label == label)


def test_a_curve_stands_against_the_best_full_pull() -> None:
    """One curve for each other case, with a paired ratio at each share; the other full pull is one of them."""
    found = densities(compare(trials()))
    assert [(d.scenario, d.shape, d.against) for d in found] == [("density", s, "overlay2:tuned") for s in SHAPES]
    assert [c.label for c in found[0].curves] == ["overlay2:sequential", "soci:tuned", "erofs:tuned"]
    erofs = curve(found[0], "erofs:tuned")
    assert [p.percent for p in erofs.points] == list(SHARES)
    assert all(p.ratio.blocks == 6 and p.ratio.has_interval for p in erofs.points)
    assert erofs.points[0].bound_ratio == 0.5 * 3.4 / (0.5 * 30.0)


def test_where_it_stops_paying() -> None:
    """SOCI's curve meets the full pull's 8 s at half of the image, EROFS's never does; the words say both."""
    found = densities(compare(trials()))[0]
    assert 45 < curve(found, "soci:tuned").pays_until.at < 55
    said = {row[0].text: row[1].text for row in tables.density(found).rows}
    assert said["erofs:tuned"] == "above 100 %"
    assert said["overlay2:sequential"] == "below 1 %"
    assert "[" in said["soci:tuned"]


def test_failed_trials_are_in_no_curve() -> None:
    """A share at which a case never was ready has no point; the rest of its curve stands."""

    def failed(o: Observation) -> Observation:
        bad = o.case.mode == "soci" and o.case.read_percent == 50
        return o.model_copy(update={"status": "failed", "time_to_ready_s": None}) if bad else o

    found = densities(compare([failed(o) for o in trials()]))[0]
    assert [p.percent for p in curve(found, "soci:tuned").points] == [1, 10, 100]
    row = next(row for row in tables.density(found).rows if row[0].text == "soci:tuned")
    assert [cell.text for cell in row][4] == wording.NO_NUMBER


def test_no_axis_no_density() -> None:
    """One share is no curve, and a scenario that reads none has nothing to show."""
    assert densities(compare([o for o in trials() if o.case.read_percent == 50])) == []
    assert density_curves([]) is None
    assert density_surface(densities(compare(trials()))[:1]) is None


def test_the_page_shows_axis_and_points(tmp_path: Path) -> None:
    """The axis has the figures, once; each point keeps its answer and its table."""
    groups = compare(trials())
    page = html(trials(), groups, Context("s", "2026-01-01", "coldbench run density", {}))
    assert "density: where lazy stops paying" in page
    assert page.count("<svg") == 4  # two figures, wide and narrow
    assert page.count('class="answer"') == len(SHARES) * len(SHAPES)
    assert "stops paying" in tables.markdown(trials(), groups, Context("s", "", "", {}))
    names = {path.name for path in write_figures(groups, tmp_path)}
    assert {"density-density.svg", "density-density-surface.svg"} <= names


def test_the_document_has_them() -> None:
    """The same as data; what never crosses is null."""
    document = make_document("s", "r", compare(trials()))
    assert [d.against for d in document.densities] == ["overlay2:tuned"] * 2
    parts = {c.label: c for c in document.densities[0].curves}
    assert parts["erofs:tuned"].pays_until.at is None
    assert [p.percent for p in parts["soci:tuned"].points] == list(SHARES)
    assert {group.key.read_percent for group in document.groups} == set(SHARES)
