"""The answer names a mode, its price and how sure that is; nothing unproven enters it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest

from harness.model.observation import Failure, Observation
from harness.report import tables, wording
from harness.report.answer import answer
from harness.report.comparison import compare
from tests.report.observations import FACTORS, observation, session
from tests.report.test_page import CONTEXT

if TYPE_CHECKING:
    from harness.report.comparison import Group


def _group(observations: list[Observation]) -> Group:
    (group,) = compare(observations)
    return group


def _scaled(o: Observation, factor: float) -> Observation:
    """The same trial with its run-time workloads so many times as long."""
    return o.model_copy(
        update={"workloads": tuple(w.model_copy(update={"wall_s": w.wall_s * factor}) for w in o.workloads)}
    )


def _slow_erofs(factor: float) -> list[Observation]:
    return [_scaled(o, factor) if o.case.mode == "erofs" else o for o in session()]


def test_the_soonest_mode_is_named_with_its_interval() -> None:
    """The decision says what to use, against what, how much sooner, and that it is sure."""
    said = answer(_group(session()))
    assert said.use == "erofs:tuned"
    assert said.sure == "sure"
    assert said.blocks == 6
    assert said.sooner is not None
    assert said.sooner.high is not None
    assert said.sooner.high < 0.1
    assert said.sentences[0].startswith("Use erofs:tuned: ready in 3.4")
    assert "times sooner [" in said.sentences[0]


def test_the_price_stands_in_the_same_sentence() -> None:
    """A proven slow-down is named with its interval and with the time after which it has eaten the saving."""
    said = answer(_group(_slow_erofs(1.5)))
    assert said.use == "erofs:tuned"
    assert said.later is not None
    assert said.later.ratio.ratio == pytest.approx(1.5, rel=0.1)
    assert said.break_even_s is not None
    assert 60 < said.break_even_s < 300
    assert "as long when files are first touched" in said.sentences[0]
    assert "it has cost more than it saved" in said.sentences[0]


def test_a_price_that_was_not_measured_is_not_none() -> None:
    """Files that were only read for the first time say nothing of later reads, and so nothing of "never"."""

    def cold_only(seen: list[Observation]) -> list[Observation]:
        return [
            o.model_copy(update={"workloads": tuple(w for w in o.workloads if w.temperature == "cold")}) for o in seen
        ]

    slow = answer(_group(cold_only(_slow_erofs(1.5))))
    assert slow.first_touch is not None
    assert slow.break_even_s is None
    assert slow.sentences[0].endswith("first touched; what it costs with files read before was not measured.")
    even = answer(_group(cold_only(_slow_erofs(0.1))))
    assert even.first_touch is None
    assert "never" not in even.sentences[0]
    assert even.sentences[0].endswith("what it costs with files read before was not measured.")
    without = answer(_group([o.model_copy(update={"workloads": ()}) for o in session()]))
    assert without.sentences[0].endswith("; what it costs afterwards was not measured.")


def test_what_is_not_proven_is_no_price() -> None:
    """A slow-down inside the noise costs nothing: "never", not a made-up time."""
    quiet = [o for o in session() if o.case.mode != "soci"]
    jittered = [
        _scaled(o, 1.01 if o.block % 2 else 0.99) if o.case.mode == "erofs" else o for o in quiet if o.block != 99
    ]
    said = answer(_group(jittered))
    assert said.first_touch is None
    if said.later is None:
        assert said.break_even_s == math.inf
        assert "never costs more than it saved" in said.sentences[0]


def test_two_blocks_are_no_verdict() -> None:
    """The soonest so far is said, and that it is no verdict."""
    said = answer(_group([o for o in session() if o.block in {1, 2}]))
    assert said.sure == "too few blocks"
    assert said.sentences[0].startswith("Soonest so far: erofs:tuned")
    assert said.sentences[0].endswith("too few blocks to say what it costs afterwards.")
    assert said.break_even_s is None
    assert said.sentences[-1] == "2 blocks: no verdict (one needs 6)."


def test_nothing_sooner_keeps_what_one_has() -> None:
    """Where no mode is shown to be sooner, the answer is the full pull one has."""
    same = []
    for block in range(8):
        base = observation("overlay2", "tuned", block)
        slower = observation("erofs", "tuned", block).model_copy(
            update={"time_to_ready_s": (base.time_to_ready_s or 0) * (1.02 if block % 2 else 0.98)}
        )
        same += [base, slower]
    said = answer(_group(same))
    assert said.use == "overlay2:tuned"
    assert said.sentences[0].startswith("Keep overlay2:tuned")


def test_no_valid_trial_is_no_answer() -> None:
    """Failures alone give no mode to use, and the first sentence says so."""
    failed = [o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in session(2)]
    said = answer(_group(failed))
    assert said.use is None
    assert "no answer" in said.sentences[0]


def test_a_workload_that_fails_in_one_mode_only_is_said_first() -> None:
    """That is a finding, not a gap: it stands before the decision with the failure's message."""
    broken = Failure(kind="WorkloadError", message="exit code 2")
    some = [
        o.model_copy(update={"workloads": (o.workloads[0].model_copy(update={"failure": broken}), *o.workloads[1:])})
        if o.case.mode == "soci"
        else o
        for o in session()
    ]
    said = answer(_group(some))
    assert said.sentences[0].startswith("Workload stat-walk fails under soci:tuned and works under ")
    assert "exit code 2" in said.sentences[0]


def test_marks_need_the_correction_and_enough_blocks() -> None:
    """Five blocks prove nothing, however far apart; seven do, and noise stays unmarked."""
    assert not any(line.proven for line in _group([o for o in session() if o.block < 5]).lines)
    group = _group(session())
    erofs = group.line("erofs:tuned")
    assert erofs is not None
    assert set(erofs.proven) == set(group.baselines)
    soci = [r for r in group.runtime if r.label == "soci:tuned"]
    assert soci
    assert all(r.proven for r in soci)
    noise = [r for r in group.runtime if r.label == "overlay2:tuned"]
    assert not any(r.proven for r in noise)


def test_page_and_markdown_show_what_is_not_proven() -> None:
    """Grey in the page's cells, in parentheses in Markdown, with a line that says what that means."""
    group = _group(session())
    cells = [cell for row in tables.runtime(group).rows for cell in row]
    assert any(not cell.proven for cell in cells)
    assert "| (0.9" in tables.markdown(session(), [group], CONTEXT)


def test_the_slowest_stand_first_in_the_runtime_table() -> None:
    """Proven slow-downs lead, the largest on top."""
    rows = tables.runtime(_group(_slow_erofs(3.0))).rows
    assert rows[0][2].text == "erofs:tuned"


def test_runtime_failures_and_labels_cannot_forge_markdown() -> None:
    """Rows, headings, tags, links and mentions that come out of a container stay plain text in one line."""
    hostile = "x | y\n# z <img src=a> @team [a](http://evil) www.evil `c` *b* ~s~"
    said = wording.markdown(hostile)
    assert "\n" not in said
    for mark in ("|", "#", "<", ">", "`", "*", "~"):
        assert said.count(mark) == said.count("\\" + mark)
    assert "@team" not in said
    assert "](http" not in said
    assert "http:" not in said
    failed = [
        o.model_copy(
            update={"status": "failed", "time_to_ready_s": None, "failure": Failure(kind="E", message=hostile)}
        )
        for o in session(1)
    ]
    text = tables.markdown(failed, compare(failed), CONTEXT)
    assert not any(line.startswith(("# z", "| y")) for line in text.splitlines())


def test_floor_is_named_and_every_row_has_its_distance() -> None:
    """With the image already there as a case, the table has a column for it and the answer a sentence."""
    floor = [
        o.model_copy(update={"case": o.case.model_copy(update={"preset": "local"}), "time_to_ready_s": 2.0})
        for o in session()
        if o.case.mode == "overlay2" and o.case.preset == "tuned"
    ]
    group = _group([*session(), *floor])
    assert group.floor == "overlay2:local"
    head = tables.cold_start(group).head
    assert "of overlay2:local" in head
    said = answer(group)
    assert said.use == "erofs:tuned"
    assert said.over_floor is not None
    assert said.over_floor.ratio == pytest.approx(1.7, rel=0.1)
    assert any("already on the machine" in s for s in said.sentences)


def test_factors_of_the_made_up_session_hold() -> None:
    """The tests above lean on these: lazy starts are sooner, soci is slower afterwards."""
    assert FACTORS["erofs", "tuned"][0] < FACTORS["soci", "tuned"][0] < FACTORS["overlay2", "tuned"][0]
    assert dataclasses.is_dataclass(answer(_group(session())))
