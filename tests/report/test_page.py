"""The report says what was measured, keeps failed trials out of every number, and shows no ratio without interval."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

from harness.model.modes import ENGINES, engine_modes
from harness.model.observation import LazyUsage
from harness.report import wording
from harness.report.comparison import compare
from harness.report.figures.canvas import PALETTE
from harness.report.frames import trials, workloads
from harness.report.page import Context, html
from harness.report.publish import write_figures
from harness.report.tables import markdown
from harness.stats.breakeven import break_even
from harness.stats.paired import paired_ratio
from tests.report.observations import observation, session

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def made_up_page() -> str:
    """The page of the made-up session; drawing its figures takes seconds, so the tests share it."""
    return html(session(), compare(session()), CONTEXT)


CONTEXT = Context("s1", "2026-01-01", "coldbench run x", {"kernel": "6.1", "note": "<b>&"})


def test_failed_and_invalid_trials_are_counted_not_averaged() -> None:
    """They keep their line and reason; the numbers come from the valid trials alone."""
    group = compare(session())[0]
    erofs = next(line for line in group.lines if line.label == "erofs:tuned")
    assert erofs.trials == 7
    assert erofs.ready is not None
    assert erofs.ready.n == 6
    assert erofs.excluded == ("1 x NotReady: not ready after 300 s",)
    soci = next(line for line in group.lines if line.label == "soci:tuned")
    assert soci.excluded == ("1 x not-lazy: fetched 99 % of the image",)
    assert soci.ratios["overlay2:sequential"].blocks == 6


def test_case_without_a_valid_trial_has_no_number() -> None:
    """All trials failed: the line stays, its cells are dashes."""
    failed = [o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in session(2)]
    text = markdown(failed, compare(failed), CONTEXT)
    assert "0 of 2" in text
    assert "0 valid" in text


def test_a_wide_table_breaks_between_a_number_and_its_interval() -> None:
    """Several full pulls to compare with make a wide table: a ratio may stand above its interval, and nothing else."""
    page = made_up_page()
    assert re.search(r'<span class="pair">[\d.]+x <span class="interval">\[[\d.]+, [\d.]+\]</span></span></td>', page)
    assert not re.search(r">[\d.]+x \[[\d.]+, [\d.]+\]</td>", page)


def test_every_modes_colour_has_one_for_the_dark_scheme() -> None:
    """A colour that the palette does not know would be drawn as it is, dark on dark."""
    colours = {mode.colour.lower() for engine in ENGINES for mode in engine_modes(engine)}
    assert colours <= PALETTE.keys()


def test_html_is_self_contained_and_escaped() -> None:
    """No script, no external reference, figures inline, host facts escaped."""
    page = made_up_page()
    assert "<script" not in page
    assert not re.search(r'(src|href)="https?:', page)
    assert page.count("<svg") >= 5
    assert "&lt;b&gt;&amp;" in page
    assert "Cold start of python-data" in page


def test_figures_are_files_of_their_own(tmp_path: Path) -> None:
    """Every figure that has something to show is written, named by scenario and shape."""
    written = write_figures(compare(session()), tmp_path)
    assert {p.name for p in written} >= {
        "python-data-gcp-e2-micro-timelines.svg",
        "python-data-gcp-e2-micro-timelines-lazy.svg",
        "python-data-gcp-e2-micro-break-even.svg",
    }
    assert all(p.read_text().startswith("<svg") for p in written)


def test_two_blocks_make_no_claim() -> None:
    """With two blocks the sentence says that it is no comparison, and the table says: no interval."""
    few = [observation(m, "tuned", b) for b in (0, 1) for m in ("overlay2", "erofs")]
    text = markdown(few, compare(few), CONTEXT)
    assert "2 blocks: no verdict" in text
    assert "no interval" in text
    assert "times sooner" not in text


def test_frames_have_no_value_for_excluded_trials() -> None:
    """A notebook's mean cannot include a failed trial by accident."""
    frame = trials(session())
    assert frame.loc[~frame["valid"], "ready_s"].isna().all()
    assert len(frame) == 28
    assert set(workloads(session())["temperature"]) == {"cold", "warm"}


def test_wording_of_units() -> None:
    """Units and digits as promised."""
    assert wording.seconds(0.1234) == "0.123 s"
    assert wording.seconds(245) == "4 min 05 s"
    assert wording.size(338_000_000) == "338 MB"
    assert wording.size(1_050_000_000) == "1.05 GB"
    assert wording.ratio(paired_ratio([1.0] * 6, [2.0] * 6)) == "0.5x [0.5, 0.5]"


def test_break_even_is_only_claimed_where_the_interval_shows_an_overhead() -> None:
    """An interval that reaches 1 gives the earliest time it cannot exclude; one above 1 gives a time with its range."""
    noise = [0.98, 1.02, 1.0, 0.97, 1.03, 1.0, 1.01, 0.99]
    same = paired_ratio(noise, [1.0] * 8)
    slower = paired_ratio([2 * n for n in noise], [1.0] * 8)
    assert wording.meeting(break_even(10, same.ratio, same.low, same.high), same).startswith("not before")
    text = wording.meeting(break_even(10, slower.ratio, slower.low, slower.high), slower)
    low, high = (float(x.split()[0]) for x in text[text.index("[") + 1 : -1].split(","))
    assert low < 10 < high
    two = paired_ratio([2.0, 2.0], [1.0, 1.0])
    assert wording.meeting(break_even(10, two.ratio, two.low, two.high), two) == wording.NO_NUMBER


def test_large_ratios_have_all_their_digits() -> None:
    """Three figures, two from ten on, and never an exponent."""
    result = dataclasses.replace(paired_ratio([1.0] * 3, [1.0] * 3), ratio=54.4, low=9.96, high=132.6)
    assert wording.ratio(result) == "54x [10, 133]"


def test_no_text_of_a_figure_is_black_on_a_dark_page() -> None:
    """Every word in a figure takes the page's ink, which follows the reader's colour scheme."""
    page = made_up_page()
    assert page.count("var(--c1b1f24,#1b1f24)") > 50
    assert not re.search(r"<text[^>]*fill: (#000|black)", page)
    texts = re.findall(r"<text[^>]*>", page)
    assert texts
    assert all("fill: var(" in text for text in texts)


def test_what_was_streamed_stands_beside_what_came() -> None:
    """A lazy case that streamed layers says how much wherever its bytes are shown; other cases say nothing of it."""
    seen = [
        o.model_copy(update={"lazy": LazyUsage(bytes_streamed_before_ready=30_000_000)})
        if o.case.mode == "erofs"
        else o
        for o in session()
    ]
    group = compare(seen)[0]
    lines = {line.label: line for line in group.lines}
    assert lines["soci:tuned"].streamed is None
    assert lines["erofs:tuned"].streamed is not None
    text = markdown(seen, compare(seen), CONTEXT)
    assert "40 MB, 30 MB streamed" in text.replace("40.0", "40").replace("30.0", "30")
    assert text.count("streamed") == 1


def test_replaced_daemons_are_told() -> None:
    """A valid case whose daemons died and were replaced says how often; the frame has it by trial."""
    seen = [
        o.model_copy(update={"lazy": LazyUsage(restarts=int(o.block == 1))}) if o.case.mode == "erofs" else o
        for o in session()
    ]
    group = compare(seen)[0]
    assert {line.label: line.restarts for line in group.lines}["erofs:tuned"] == 1
    text = markdown(seen, compare(seen), CONTEXT)
    assert text.count("daemon replaced 1x") == 1
    assert trials(seen)["daemon_restarts"].sum() == 1
