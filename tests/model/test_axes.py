"""Axes: what a scenario with them stands for, and what of it reaches plan and cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from harness.errors import ScenarioError, UsageError
from harness.model.axes import Axes, family, points
from harness.model.plan import Selection, make_plan

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
    assert family("share.5pct", "", 5, None) == "share"
    assert family("share.5pct", "", None, None) == "share.5pct"


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


PACKED = READS.replace("read_percent = [5, 50]", 'compression = ["gzip", "zstd:19", "none"]\nread_percent = [5, 50]')


def test_axes_multiply() -> None:
    """Every compression at every share; names, images and cases say which."""
    scenario = scenarios.parse(PACKED.replace('"erofs"]', '"soci", "erofs", "erofs:eager"]'), "share.toml")
    made = points(scenario)
    assert [p.name for p in made] == [
        f"share.{c}.{s}pct" for c in ("gzip", "zstd-19", "none") for s in (5, 50)
    ]  # fmt: skip
    assert [p.image.compression for p in made] == ["gzip"] * 2 + ["zstd:19"] * 2 + ["none"] * 2
    plan = make_plan(made, 1)
    cases = {(c.case.compression, c.case.read_percent) for c in plan.cases}
    assert len(cases) == 6
    assert {family(c.case.scenario, c.case.compression, c.case.read_percent, None) for c in plan.cases} == {"share"}


def test_what_cannot_be_read_in_part_is_left_out() -> None:
    """SOCI and EROFS would pull zstd layers whole: no case, and words; full pulls take every compression."""
    scenario = scenarios.parse(PACKED.replace('"erofs"]', '"soci", "erofs", "erofs:eager"]'), "share.toml")
    plan = make_plan(points(scenario), 1)
    zstd = {f"{c.case.mode}:{c.case.preset}" for c in plan.cases if c.case.compression == "zstd:19"}
    assert zstd == {"overlay2:tuned", "erofs:eager"}
    assert len([why for why in plan.left_out if "not into zstd: every layer would be unpacked" in why]) == 2
    assert len([why for why in plan.left_out if "no way into zstd: every layer would be fetched whole" in why]) == 2
    with pytest.raises(UsageError, match=r"nothing to run: .*no way into zstd"):
        make_plan([point for point in points(scenario) if "zstd" in point.name], 1, Selection(modes=("erofs:tuned",)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('["bzip2"]', "expected a compression (gzip, zstd, none), got 'bzip2'"),
        ('["gzpi"]', "did you mean"),
        ('["gzip:0"]', "expected a level of gzip from 1 to 9, as gzip:9, got 'gzip:0'"),
        ('["zstd:20"]', "expected a level of zstd from 1 to 19, as zstd:19, got 'zstd:20'"),
        ('["none:1"]', "expected none without a level"),
        ('["gzip", "gzip:6"]', "axes.compression 'gzip' is there twice"),
    ],
)
def test_wrong_compressions(value: str, message: str) -> None:
    """A level that a compression has not, or two names of one."""
    with pytest.raises(ScenarioError) as error:
        scenarios.parse(PACKED.replace('["gzip", "zstd:19", "none"]', value), "share.toml")
    assert message in str(error.value)


STORM = READS.replace("read_percent = [5, 50]", "machines = [1, 4]") + '\n[storm]\nmachines = 2\nuplink = "1Gbit"\n'


def test_storms_are_points_too() -> None:
    """Names and cases say how many machines; a scenario with a storm and no axis is its own family."""
    scenario = scenarios.parse(STORM, "share.toml")
    made = points(scenario)
    assert [(p.name, p.storm.machines) for p in made if p.storm] == [("share.1x", 1), ("share.4x", 4)]
    assert {c.case.machines for c in make_plan(made, 1).cases} == {1, 4}
    assert family("share.4x", "", 10, 4) == "share"
    assert family("share.zstd.10pct.4x", "zstd", 10, 4) == "share"
    assert family("share", "", None, 2) == "share"
    assert scenario.storm is not None
    assert scenario.storm.uplink_bytes_s == 125_000_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("machines = 2", "machines = 0", "storm.machines: expected a number of at least 1, got 0"),
        ("machines = 2", "machines = 33", "storm.machines: expected a number of at most 32, got 33"),
        ("machines = 2", 'machines = 2\nimages = "other"', "storm.images: expected 'same' or 'distinct'"),
        ('"1Gbit"', '"fast"', "storm.uplink: 'fast' is not a rate such as 1Gbit"),
        ('[storm]\nmachines = 2\nuplink = "1Gbit"\n', "", "axes.machines: expected a table [storm]"),
        ("[storm]", '[faults]\nwhich = ["registry-refuses"]\n[storm]', "storm: expected no faults beside it"),
        ("[storm]", '[runtime]\nworkloads = ["stat-walk"]\n[storm]', "storm: expected no runtime.workloads"),
    ],
)
def test_wrong_storms(old: str, new: str, message: str) -> None:
    """What cannot be started together is refused where it stands."""
    assert old in STORM
    with pytest.raises(ScenarioError) as error:
        scenarios.parse(STORM.replace(old, new, 1), "share.toml")
    assert message in str(error.value)
