"""The axis compression in the report: each case against itself with the first compression."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from harness.model.observation import Wire
from harness.report import tables
from harness.report.comparison import compare
from harness.report.document import make_document
from harness.report.figures import packing_marks
from harness.report.packing import packings
from harness.report.page import Context, html
from tests.report.observations import observation

if TYPE_CHECKING:
    from harness.model.observation import Observation

#: How much longer a full pull takes, and what it moves.
FACTORS = {"zstd": (0.8, 300e6), "gzip": (1.0, 340e6), "none": (1.5, 900e6)}


@functools.cache
def trials() -> tuple[Observation, ...]:
    """Six blocks; EROFS has no case for zstd, since it would pull the layers whole."""
    made = []
    for block in range(6):
        for mode, preset in (("overlay2", "tuned"), ("erofs", "tuned")):
            for compression, (factor, size) in FACTORS.items():
                if mode == "erofs" and compression == "zstd":
                    continue
                seen = observation(mode, preset, block)
                noise = random.Random(f"{mode}{block}{compression}").uniform(0.99, 1.01)
                changes = {"scenario": f"compression.{compression}", "compression": compression}
                made.append(
                    seen.model_copy(
                        update={
                            "case": seen.case.model_copy(update=changes),
                            "time_to_ready_s": (10.0 if mode == "erofs" else 30.0) * factor * noise,
                            "wire_before_ready": Wire(received_bytes=int(size if mode == "overlay2" else size / 10)),
                            "workloads": (),
                        }
                    )
                )
    return tuple(made)


def test_each_case_against_itself() -> None:
    """gzip comes first, ratios to it are paired over the points; what was left out has no number."""
    (found,) = packings(compare(trials()))
    assert (found.scenario, found.compressions) == ("compression", ("gzip", "zstd", "none"))
    full = next(case for case in found.cases if case.label == "overlay2:tuned")
    assert [point.compression for point in full.points] == ["gzip", "zstd", "none"]
    assert full.points[0].ratio is None
    ratio = full.points[1].ratio
    assert ratio is not None
    assert ratio.blocks == 6
    assert ratio.low is not None
    assert 0.78 < ratio.low < ratio.ratio < 0.82
    assert full.points[2].received_bytes == 900e6
    rows = {row[0].text: [cell.text for cell in row] for row in tables.packing(found).rows}
    assert rows["erofs:tuned"][2] == "\u2013"


def test_a_case_that_failed_with_the_first_has_no_ratio() -> None:
    """Its other points stand, and are set against nothing."""

    def failed(o: Observation) -> Observation:
        bad = o.case.mode == "erofs" and o.case.compression == "gzip"
        return o.model_copy(update={"status": "failed", "time_to_ready_s": None}) if bad else o

    (found,) = packings(compare([failed(o) for o in trials()]))
    erofs = next(case for case in found.cases if case.label == "erofs:tuned")
    assert [(p.compression, p.ratio) for p in erofs.points] == [("none", None)]
    row = next(row for row in tables.packing(found).rows if row[0].text == "erofs:tuned")
    assert row[1].text == "\u2013"
    assert packing_marks(found) is not None


def test_page_and_document_show_it() -> None:
    """One section with its figure and table; the document has the same numbers."""
    groups = compare(trials())
    page = html(trials(), groups, Context("s", "2026-01-01", "coldbench run compression", {}))
    assert "compression: how the layers are compressed" in page
    assert page.count("<svg") == 2
    document = make_document("s", "r", groups)
    assert [p.compressions for p in document.packings] == [("gzip", "zstd", "none")]
    assert {group.key.compression for group in document.groups} == {"gzip", "zstd", "none"}


def test_one_compression_is_no_axis() -> None:
    """A scenario that merely says how its layers are compressed has nothing to compare them with."""
    assert packings(compare([o for o in trials() if o.case.compression == "zstd"])) == []
