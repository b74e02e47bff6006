"""Scenario files: what is accepted, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import scenarios
from harness.errors import ScenarioError, UsageError
from harness.model.plan import make_plan
from harness.report.credibility import is_theirs

GOOD = """\
name = "web"
image = { ref = "docker://registry.example/web:1" }
shapes = ["gcp-e2-micro", { name = "mine", vcpus = 1, baseline_cores = 0.5 }, "cpu=0.25,memory=1G"]
modes = ["overlay2", "soci:tuned", { mode = "soci", label = "traced", prefetch = "trace" }]
distance = "far"
blocks = 6

[workload]
command = ["serve", "--port", "80"]
[workload.readiness]
kind = "http"
port = 80

[lazy]
options = { in_flight = 8 }

[runtime]
workloads = [
    "stat-walk",
    { name = "import", argv = ["python3", "-c", "import web"] },
]

[gate]
margin = 0.1
"""


def test_good_file() -> None:
    """Shorthands are expanded, names resolved, defaults filled in."""
    scenario = scenarios.parse(GOOD, "web.toml")
    assert [m.key for m in scenario.modes] == ["overlay2:sequential", "soci:tuned", "soci:tuned+traced"]
    assert [s.name for s in scenario.shapes] == ["gcp-e2-micro", "mine", "cpu=0.25,memory=1G"]
    assert scenario.distance.rtt_ms == 80
    assert [w.name for w in scenario.runtime.workloads] == ["stat-walk", "import"]
    assert [e.engine for e in scenario.engines] == ["embedded"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("blocks = 6", 'blocks = "6"', '6: blocks: expected an integer, got "6"'),
        ("blocks = 6", "blocks = 0", "6: blocks: expected a number of at least 1, got 0"),
        ("blocks = 6", "block = 6", "6: block: unknown key; did you mean 'blocks'?"),
        ("port = 80\n", "prot = 80\n", "12: workload.readiness.prot: unknown key; did you mean 'port'?"),
        ("port = 80\n", "", "10: workload.readiness.port: expected this key, which is missing"),
        ("port = 80\n", "port = 80000\n", "12: workload.readiness.port: expected a number of at most 65535, got 80000"),
        (
            'kind = "http"',
            'kind = "htp"',
            "11: workload.readiness.kind: expected one of 'exit', 'stdout', 'stderr', 'tcp', 'http', got \"htp\"",
        ),
        (
            'kind = "http"\nport = 80',
            'kind = "stdout"\npattern = "["',
            "12: workload.readiness.pattern: expected a regular",
        ),
        ('name = "web"\n', "", "1: name: expected this key, which is missing"),
        ('name = "web"', 'name = "We b"', "1: name: expected text that matches"),
        (
            '"soci:tuned"',
            '"soco"',
            "4: modes[1]: expected a mode (overlay2, estargz, soci, erofs), got 'soco'; did you",
        ),
        (
            '"soci:tuned"',
            '"soci:eager"',
            "4: modes[1]: expected a preset of mode soci (tuned, reference, pyfuse3, default, parallel-pull",
        ),
        ('"trace"', '"tracer"', '4: modes[2].prefetch: expected "image", "none", "trace" or a list of paths, got'),
        (', label = "traced"', "", "1: mode 'soci:tuned' is there twice; give one of them a label"),
        ('"gcp-e2-micro"', '"gcp-e2-mico"', "3: shapes[0]: unknown shape 'gcp-e2-mico'; did you mean gcp-e2-micro"),
        ("vcpus = 1", "vcpus = 0", "3: shapes[1].vcpus: expected a number above 0, got 0"),
        ("vcpus = 1", "vcpu = 1", "3: shapes[1].vcpu: unknown key; did you mean 'vcpus'?"),
        ('"far"', '"farr"', "5: distance: unknown distance 'farr'; did you mean far?"),
        ('"--port"', "3", "9: workload.command[1]: expected a string, got 3"),
        ("ref =", "reff =", "2: image.reff: unknown key; did you mean 'ref'?"),
        ('"stat-walk"', '"stat-wlk"', "19: runtime.workloads[0]: expected a workload (stat-walk,"),
        ("argv =", "arg =", "20: runtime.workloads[1].arg: unknown key; did you mean 'argv'?"),
        (
            "in_flight",
            "in_fligth",
            "15: lazy.options: option 'in_fligth': soci:tuned has none of that name; did you mean 'in_flight'?",
        ),
        ("margin = 0.1", "margin = 1.5", "24: gate.margin: expected a number below 1.0, got 1.5"),
        ("[gate]", "[gate", "23: expected TOML: "),
        ("blocks = 6", "blocks = 6\nblocks = 7", "7: expected TOML: "),
    ],
)
def test_wrong_file(old: str, new: str, message: str) -> None:
    """A wrong file is told where (line and key path), what was expected and what was there instead."""
    assert old in GOOD
    with pytest.raises(ScenarioError) as caught:
        scenarios.parse(GOOD.replace(old, new, 1), "web.toml")
    assert any(line.startswith(f"web.toml:{message}") for line in str(caught.value).splitlines()), caught.value
    assert caught.value.exit_code == 2


def test_all_problems_at_once() -> None:
    """Every problem of a file is reported, in the order of lines."""
    text = GOOD.replace("blocks = 6", "blocks = 0").replace("port = 80\n", "prot = 80\n")
    with pytest.raises(ScenarioError) as caught:
        scenarios.parse(text, "f")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["6", "10", "12"]


def test_one_wrong_element_is_not_an_empty_list() -> None:
    """A list whose only element is wrong is told that, not that it is too short."""
    text = GOOD.replace('shapes = ["gcp-e2-micro", ', 'shapes = ["cpu=0.5,memory=4M"] #')
    assert text != GOOD
    with pytest.raises(ScenarioError) as caught:
        scenarios.parse(text, "f")
    expected = "f:3: shapes[0]: shape 'cpu=0.5,memory=4M': memory: expected at least 16777216, got 4194304"
    assert str(caught.value).splitlines() == [expected]


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario is found by path, then by name in ./scenarios, then among the shipped ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenarios").mkdir()
    near = tmp_path / "scenarios" / "web.toml"
    near.write_text(GOOD, "utf-8")
    assert scenarios.find("web").resolve() == near
    assert scenarios.find("scenarios/web.toml") == Path("scenarios/web.toml")
    with pytest.raises(UsageError, match="did you mean 'web'"):
        scenarios.find("wep")
    with pytest.raises(UsageError, match="no such scenario file"):
        scenarios.find("elsewhere/web.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "scenarios").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_scenarios(path: Path) -> None:
    """Every shipped file is right, is called what its file is called, and names the schema editors complete it by."""
    scenario = scenarios.load(path)
    assert scenario.name == path.stem
    assert scenario.description
    assert path.read_text("utf-8").startswith("#:schema ../docs/schema/scenario.schema.json\n")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "scenarios" / "credibility").glob("*.toml")), ids=lambda p: p.stem
)
def test_credibility_scenarios(path: Path) -> None:
    """Each puts a preset of ours beside another program's case of the same mode, in six blocks or more."""
    scenario = scenarios.load(path)
    assert scenario.name == f"credibility-{path.stem}"
    cases = make_plan([scenario], 1).cases
    ours = {case.case.mode for case in cases if not is_theirs(case.case)}
    theirs = {case.case.mode for case in cases if is_theirs(case.case)}
    assert ours == theirs != set()
    assert scenario.blocks >= 6


def test_documented_example() -> None:
    """The example of docs/scenarios.md is a good scenario file."""
    text = (Path(__file__).parent.parent / "docs" / "scenarios.md").read_text("utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    assert scenarios.parse(example, "docs/scenarios.md").name == "shop"
