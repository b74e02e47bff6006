"""What a gate writes: exit codes, annotations with the file's line, JUnit XML, one comment, the step summary."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.errors import ColdbenchError, HostUnfit, NothingToCompare, UsageError
from harness.gate import outputs
from harness.gate.aa_running import analyse
from harness.gate.baseline import Baseline
from harness.gate.counters import CounterLine, Rules, counter_lines, image_lines, regressed
from harness.gate.failing import failed_gate
from harness.gate.lines import judge, primary, time_lines
from harness.gate.reasons import paths, phases
from harness.gate.result import GateResult, Regression
from harness.gate.schemas import schema
from harness.gate.sides import Pair, pairs, parse, select
from harness.scenarios import parse as parse_scenario
from harness.session.inventory import Inventory
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files

FILES = ("summary.md", "comment.md", "junit.xml", "gate.json")
OLD = Inventory("sha256:b", (1000, 500), {"/app/a": 100, "/app/b": 50, "/etc": 0}, ("/app/a",))
NEW = Inventory("sha256:a", (1000, 500, 40_000_000), {**OLD.files, "/app/model.bin": 40_000_000}, ("/app/a", "/app/b"))


def two_sides(tmp_path: Path, slower: float = 1.0) -> list[Pair]:
    head = sessions.header(("app", "app.baseline"))
    path = sessions.write(tmp_path / f"s{slower}", head, sessions.trials(head.plan, slower={"app": slower}))
    side = parse(str(path))
    found, _ = pairs(select(side, {"scenario": "app"}, "c"), select(side, {"scenario": "app.baseline"}, "b"))
    return found


def result(tmp_path: Path, slower: float = 1.0) -> GateResult:
    """A result as a gate puts it together, from made-up trials."""
    found = two_sides(tmp_path, slower)
    lines = judge(time_lines(found, lambda _m: 0.05), primary(("time-to-ready", "cpu-to-ready")), alpha=0.01)
    bad = [line for line in lines if line.verdict == "regression"]
    return GateResult(
        scenario="app", file="scenarios/app.toml", baseline="image app:1, side by side", host="Example CPU",
        directory=tmp_path, repeat="coldbench gate app --seed 1", lines=tuple(lines),
        counters=tuple(counter_lines(found, Rules(sessions.scenario().gate))),
        regressions=tuple(Regression(b.case, b.metric, "time grew: 20 %", tuple(phases(found[0]))) for b in bad),
        blocks=12, most_blocks=12, lines_of_file={"": 3, "image-bytes": 7},
    )  # fmt: skip


def test_a_slowdown_fails_and_says_why(tmp_path: Path) -> None:
    """Exit code 1, an error per regression with its reason, failures in JUnit, the phase that grew."""
    found = result(tmp_path, slower=1.5)
    assert found.decision == "regression"
    assert found.exit_code == 1
    said = outputs.workflow_commands(found)
    assert said[0].startswith("::error file=scenarios/app.toml,line=3,title=coldbench time-to-ready::")
    assert "20 %25" in said[0]
    assert "phase " in said[0]
    suite = ET.fromstring(outputs.junit(found))
    assert int(suite.get("failures", "0")) == len(found.regressions)
    assert suite.find(".//failure") is not None


def test_equal_sides_pass(tmp_path: Path) -> None:
    """Same against same: no regression, whether decided or not, and exit code 3 only with --strict."""
    found = result(tmp_path)
    assert found.decision in {"pass", "inconclusive"}
    assert found.exit_code == 0
    undecided = replace(found, strict=True)
    assert undecided.exit_code == (3 if found.decision == "inconclusive" else 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"failed": 2}, 5),
        ({"lines": (), "counters": ()}, 6),
        ({"unconfirmed": ("x",)}, 0),
        ({"unconfirmed": ("x",), "strict": True}, 3),
        ({"regressions": (Regression("", "image-bytes", "grew"),), "failed": 2}, 1),
    ],
)
def test_exit_codes(tmp_path: Path, changes: dict[str, object], code: int) -> None:
    """Each outcome has its exit code; a regression goes before failed trials."""
    assert replace(result(tmp_path), **changes).exit_code == code  # type: ignore[arg-type]


def test_files_and_step_summary(tmp_path: Path) -> None:
    """Four files beside the session; the summary is appended to GitHub's; the comment begins with its marker."""
    step = tmp_path / "step.md"
    step.write_text("before\n")
    found = result(tmp_path)
    written = outputs.write(found, {"GITHUB_STEP_SUMMARY": str(step)})
    assert [path.name for path in written] == list(FILES)
    assert step.read_text().startswith("before\n### coldbench gate of `app`")
    assert (tmp_path / "comment.md").read_text().startswith("<!-- coldbench gate app -->\n")
    data = json.loads((tmp_path / "gate.json").read_text())
    jsonschema.validate(data, schema("gate"))
    assert data["decision"] == found.decision
    assert data["repeat"] == "coldbench gate app --seed 1"


def test_an_error_leaves_the_same_files(tmp_path: Path) -> None:
    """A gate that could not be run says so in every form, judges nothing, and ends in the error's own exit code."""
    step = tmp_path / "step.md"
    error = HostUnfit("no FUSE: load the module fuse, 100 % sure")
    found = failed_gate(
        error, sessions.scenario(), tmp_path / "app.toml", baseline=Baseline("image", "app:1"), run=None,
        out=tmp_path / "new" / "gate", repeat="coldbench gate app --seed 1", lines_of_file={"": 3},
    )  # fmt: skip
    assert (found.decision, found.exit_code) == ("error", 4)
    outputs.write(found, {"GITHUB_STEP_SUMMARY": str(step)})
    text = (tmp_path / "new" / "gate" / "summary.md").read_text()
    assert text == step.read_text()
    assert "**could not be run**: no FUSE" in text
    assert "against image app:1" in text
    assert "coldbench gate app --seed 1" in text
    data = json.loads((tmp_path / "new" / "gate" / "gate.json").read_text())
    jsonschema.validate(data, schema("gate"))
    assert data["failure"] == {"kind": "HostUnfit", "message": str(error), "exit_code": 4}
    suite = ET.parse(tmp_path / "new" / "gate" / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("1", "1", "0")
    assert suite.find("testcase/error").get("type") == "HostUnfit"  # type: ignore[union-attr]
    [line] = outputs.workflow_commands(found)
    assert line.startswith(f"::error file={tmp_path}/app.toml,line=3,title=coldbench::")
    assert "100 %25 sure" in line


@pytest.mark.parametrize(
    ("error", "session", "own"),
    [
        (HostUnfit("x"), True, False),
        (HostUnfit("x"), False, True),
        (UsageError("x"), False, True),
    ],
)
def test_an_error_leaves_another_session_alone(tmp_path: Path, error: ColdbenchError, session: bool, own: bool) -> None:
    """What lies beside a session that is not this gate's is another gate's: nothing of it is written over."""
    if session:
        (tmp_path / "session.json").write_text("{}")
    found = failed_gate(
        error, sessions.scenario(), tmp_path / "app.toml", baseline=None, run=None, out=tmp_path, repeat="",
        lines_of_file={},
    )  # fmt: skip
    assert [path.name for path in outputs.write(found, {})] == (list(FILES) if own else [])


def test_a_wrong_command_line_leaves_no_directory(tmp_path: Path) -> None:
    """Where no directory was named, none is made for a mistake in the options."""
    for error in (UsageError("x"), NothingToCompare("x")):
        found = failed_gate(
            error, sessions.scenario(), tmp_path / "app.toml", baseline=None, run=None, out=None, repeat="",
            lines_of_file={},
        )  # fmt: skip
        assert found.directory is None


def test_failed_trials_are_an_error(tmp_path: Path) -> None:
    """The job fails by its exit code, so the annotation is an error and names the reasons; else a warning."""
    equal = result(tmp_path)
    found = replace(equal, failed=2, excluded=("overlay2: OutOfMemory (2)",))
    [line] = outputs.workflow_commands(found)
    assert line.startswith("::error file=scenarios/app.toml,line=3,")
    assert "OutOfMemory" in line
    open_ = replace(equal, lines=tuple(replace(x, verdict="inconclusive") for x in found.lines[:1]))
    assert outputs.workflow_commands(open_)[0].startswith("::warning ")
    assert outputs.workflow_commands(replace(open_, strict=True))[0].startswith("::error ")


def test_nothing_to_compare_is_an_error_in_junit(tmp_path: Path) -> None:
    """A suite without any test case would read as green."""
    empty = replace(result(tmp_path), lines=(), counters=())
    suite = ET.fromstring(outputs.junit(empty))
    assert (empty.exit_code, suite.get("tests"), suite.get("errors")) == (6, "1", "1")


def test_counters_name_the_paths() -> None:
    """An image that grew by 40 MB fails by its bytes, layers and files, and the paths are named."""
    lines = image_lines(NEW, OLD, Rules(sessions.scenario().gate))
    assert {metric for _, metric in regressed(lines)} == {
        "image-bytes", "image-layers", "image-files", "image-unpacked-bytes", "files-read",
    }  # fmt: skip
    named = paths(NEW, OLD)
    assert "new: /app/model.bin (+40 MB)" in named
    assert "a start now reads 1 further files (50 B)" in named
    assert "read: /app/b" in named


def test_thresholds_and_ignored_metrics() -> None:
    """A threshold lets a change pass, an ignored metric is shown and never fails, an unsteady one cannot."""
    gate = parse_scenario(
        sessions.SCENARIO
        + '[gate]\nignore = ["image-layers"]\n[gate.thresholds]\nimage-bytes = 9.0\n"fuse/READ" = 0.5\n',
        "x.toml",
    ).gate
    rules = Rules(gate, {"disk-written": 0.4})
    assert rules.status("image-bytes", 100, 900) == "same"
    assert rules.status("image-layers", 3, 4) == "ignored"
    assert rules.status("image-files", 3, 4) == "regression"
    assert rules.status("disk-written", 100, 900) == "unsteady"
    assert rules.status("fuse/READ", 100, 140) == "same"
    assert rules.status("fuse/LOOKUP", 100, 140) == "regression"
    assert rules.status("requests-before-ready", 10, 11) == "same"
    assert rules.status("requests-before-ready", 100, 90) == "improvement"


def test_unknown_metric_in_a_threshold_names_line_and_nearest() -> None:
    """A threshold for a metric that is not there is refused where it stands, with the nearest name."""
    from harness.errors import ScenarioError

    with pytest.raises(ScenarioError) as caught:
        parse_scenario(sessions.SCENARIO + "[gate.thresholds]\nimage-byte = 0.1\n", "x.toml")
    assert "did you mean 'image-bytes'" in str(caught.value)
    assert "x.toml:1" in str(caught.value)
    with pytest.raises(ScenarioError, match="does not scatter"):
        parse_scenario(sessions.SCENARIO + '[gate]\nmetrics = ["image-bytes"]\n', "x.toml")


def test_summary_carries_the_error_rates(tmp_path: Path) -> None:
    """With an A/A record the summary states false alarms and power of this host; without one it is said elsewhere."""
    head = sessions.header(("app", "app.again"), session="aa")
    side = parse(str(sessions.write(tmp_path / "aa", head, sessions.trials(head.plan))))
    record = analyse(side, gate_blocks=12, draws=50).record
    text = outputs.summary(replace(result(tmp_path), aa=record))
    assert "equal sides give a wrong verdict in" in text
    assert "A start slower by 15 % is caught in" in text
    assert "Repeat: `coldbench gate app --seed 1`" in text


def test_regressed_counter_row_is_bold(tmp_path: Path) -> None:
    """The table shows what changed and keeps ignored lines visible."""
    lines = (
        CounterLine("", "image-bytes", 1000, 2000, 0.0, "regression"),
        CounterLine("", "image-layers", 3, 4, 0.0, "ignored"),
    )
    text = outputs.summary(replace(result(tmp_path), counters=lines, timed=False, lines=()))
    assert "| **regression** |" in text
    assert "| ignored |" in text
    assert "Times were not looked at" in text
