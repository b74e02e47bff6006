"""Axes: what a scenario with them stands for, and what of it reaches plan and cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from harness.errors import ScenarioError, UsageError
from harness.model.axes import Axes, family, points
from harness.model.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

READS = """\
name = "share"
image = { layout = "there:latest" }
modes = ["overlay2:tuned", "erofs"]
blocks = 7

[workload]
reads = { percent = 10, seed = 4 }
readiness = { kind = "exit" }

[axes]
read_percent = [5, 50]
"""


def test_each_value_is_a_scenario_of_its_own() -> None:
    """A point has a name and a workload of its own, no axes, and all else of the scenario."""
    made = points(scenarios.parse(READS, "share.toml"))
    assert [point.name for point in made] == ["share.5pct", "share.50pct"]
    assert [point.workload.reads.percent for point in made if point.workload.reads] == [5, 50]
    assert {point.workload.reads.seed for point in made if point.workload.reads} == {4}
    assert all(point.axes == Axes() and point.blocks == 7 for point in made)


def test_without_axes_it_is_itself() -> None:
    """Most scenarios are."""
    scenario = scenarios.parse(READS.partition("[axes]")[0], "share.toml")
    assert points(scenario) == (scenario,)


def test_all_points_are_in_every_block() -> None:
    """So each can be compared with each inside a block; a case says where on the axis it is."""
    plan = make_plan(points(scenarios.parse(READS, "share.toml")), 1)
    assert len(plan.cases) == 4
    assert {(c.case.scenario, c.case.read_percent) for c in plan.cases} == {("share.5pct", 5), ("share.50pct", 50)}
    for block in range(7):
        assert len({trial.case for trial in plan.trials if trial.block == block}) == 4


def test_a_case_knows_its_family() -> None:
    """The name without what the axis added to it; a name that merely ends so keeps it."""
    assert family("share.5pct", 5) == "share"
    assert family("share.5pct", None) == "share.5pct"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[5, 50]", "[0]", "11: axes.read_percent[0]: expected a number of at least 1, got 0"),
        ("[5, 50]", "[101]", "11: axes.read_percent[0]: expected a number of at most 100, got 101"),
        ("[5, 50]", "[5, 5]", "axes.read_percent '5' is there twice"),
        ("[5, 50]", "[0.5]", "11: axes.read_percent[0]: expected an integer, got 0.5"),
        ("read_percent = [5", "percent = [5", "11: axes.percent: unknown key"),
        ("reads = { percent = 10, seed = 4 }", 'command = ["true"]', "expected workload.reads, which it varies"),
        ("reads = {", 'command = ["true"]\nreads = {', "expected either command or reads, got both"),
        ('kind = "exit"', 'kind = "tcp", port = 80', 'expected readiness = { kind = "exit" } with reads'),
        ('kind = "exit"', 'kind = "exit", code = 3', 'expected readiness = { kind = "exit" } with reads'),
    ],
)
def test_wrong_axes(old: str, new: str, message: str) -> None:
    """What cannot be meant is refused where it stands, with what to write instead."""
    assert old in READS
    with pytest.raises(ScenarioError) as error:
        scenarios.parse(READS.replace(old, new, 1), "share.toml")
    assert message in str(error.value)


def test_what_takes_one_point_says_so(tmp_path: Path) -> None:
    """A gate, an A/A run and a trace are of one workload on one image."""
    path = tmp_path / "share.toml"
    path.write_text(READS)
    with pytest.raises(UsageError, match=r"has axes \(2 points\), and coldbench gate takes one"):
        scenarios.load_one(path, "coldbench gate")
