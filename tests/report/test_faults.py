"""What the report says of fault trials, and that no start time ever comes from one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.errors import NothingToCompare
from harness.model.faults import FaultObservation, SampleReads, parse_fault
from harness.model.observation import Failure
from harness.report import failure_page, faults, frames, tables
from harness.report.answer import answer
from harness.report.comparison import compare
from harness.report.document import make_document
from harness.report.page import Context, html
from harness.report.sessions import load as load_sessions
from harness.session import store
from tests.report.observations import case, session, write_session

CONTEXT = Context("s", "2026-01-01", "coldbench run x", {})
FINE = {"touched": 100, "untouched": 300, "evicted": 100}


def struck(mode: str, preset: str, fault: str, bad: dict[str, Any] | None = None, **changes: Any) -> FaultObservation:
    """A fault trial in which nothing fails but what ``bad`` says: fields of the sample ``untouched``."""
    reads = [SampleReads(sample=name, files=size, ok=size, deadline_s=6) for name, size in FINE.items()]  # type: ignore[arg-type]
    if bad:
        lost = sum(bad.get(name, 0) for name in ("failed", "hung", "untried"))
        reads[1] = reads[1].model_copy(update={"ok": 300 - lost, **bad})
    fields: dict[str, Any] = {
        "coldbench_version": "0", "session": "s", "trial": 1000, "block": 0, "case": case(mode, preset),
        "fault": parse_fault(fault), "started_at": "2026-01-01T00:00:00Z", "status": "ok", "onset_s": 0.1,
        "reads": tuple(reads), "recovered_s": 0.0, "recovery_limit_s": 40.0, "image_bytes": 100, "received_bytes": 50,
    }  # fmt: skip
    return FaultObservation(**fields | changes)


def some() -> list[FaultObservation]:
    """erofs needs nobody after 8 s, soci always does, a full pull never did."""
    bad = {"failed": 150, "errors": {"EIO": 150}, "error_s": 2.8}
    return [
        struck("overlay2", "sequential", "registry-refuses@ready"),
        struck("overlay2", "sequential", "daemon-killed@ready"),
        struck("erofs", "tuned", "registry-refuses@ready", {"hung": 30, "untried": 100}, recovered_s=3.0),
        struck("erofs", "tuned", "registry-refuses@after", onset_s=9.0, background_s=8.0),
        struck("erofs", "tuned", "daemon-killed@after", onset_s=9.0, background_s=8.0),
        struck("soci", "tuned", "registry-refuses@ready", bad, recovered_s=None),
        struck("soci", "tuned", "registry-refuses@after", onset_s=90.0, background_s=87.0),
        struck("soci", "tuned", "daemon-killed@after", bad, onset_s=90.0, background_s=87.0, recovered_s=None),
    ]


def test_start_times_come_from_starts_alone(tmp_path: Path) -> None:
    """A session with fault trials has the same lines, ratios and frame of trials as without: they are of another kind,
    from another file, and no function that reads start times is ever handed one."""
    directory = tmp_path / "s"
    write_session(directory)
    before = load_sessions(directory)
    with store.Store.resume(directory) as stored:
        for number, one in enumerate(some()):
            stored.append_fault(one.model_copy(update={"trial": 1000 + number}))
    after = load_sessions(directory)
    assert len(after.fault_observations) == len(some())
    assert not any(isinstance(o, FaultObservation) for o in after.observations)
    assert after.trials.equals(before.trials)
    assert [g.lines for g in after.groups] == [g.lines for g in before.groups]
    assert not hasattr(some()[0], "time_to_ready_s")


def test_time_to_independence() -> None:
    """The earliest onset at which nothing fails: at ready for a full pull, the background's end, or never."""
    lines = {line.label: line for line in compare(session(), some())[0].faults}
    assert lines["overlay2:sequential"].independent["daemon"].seconds == 0
    assert lines["erofs:tuned"].independent["registry"].seconds == 8.0
    assert lines["soci:tuned"].independent["registry"].seconds == 87.0
    assert math.isinf(lines["soci:tuned"].independent["daemon"].seconds)
    assert lines["soci:tuned"].independent["daemon"].tried_s == 90.0


def test_never_takes_a_trial_after_the_background_fetch() -> None:
    """Where only early onsets were tried, the answer is as far as that, and no case is said never to be independent."""
    early = struck("soci", "tuned", "registry-refuses@30s", {"hung": 1}, onset_s=30.0)
    line = faults.line("soci:tuned", [early])
    assert faults.independent(line.independent["registry"]) == "not by 30.0 s"
    mine = faults.line("erofs:tuned", [struck("erofs", "tuned", "registry-refuses@ready")])
    assert faults.sentence([mine, line], "erofs:tuned") == "erofs:tuned is independent of registry at ready."


@pytest.mark.parametrize("bad", [{"failed": 1, "errors": {"EIO": 1}}, {"hung": 1}, {"untried": 1}, {"wrong": 1}])
def test_one_file_is_enough(bad: dict[str, Any]) -> None:
    """One read that fails, hangs, was not tried or gave other bytes: not independent at that onset."""
    line = faults.line("x", [struck("erofs", "tuned", "registry-refuses@after", bad)])
    assert math.isinf(line.independent["registry"].seconds)


def test_tables_and_sentence() -> None:
    """Independence stands beside time to ready; the matrix says share, error and time; the answer says it in words."""
    (group,) = compare(session(), some())
    head = tables.cold_start(group).head
    assert head[2:5] == ("ready, median", "registry may go", "daemon may die")
    rows = {row[0].text: [cell.text for cell in row] for row in tables.cold_start(group).rows}
    assert rows["erofs:tuned"][3:5] == ["8.00 s", "8.00 s"]
    assert rows["soci:tuned"][3:5] == ["87.0 s", "never"]
    assert rows["overlay2:tuned"][3:5] == ["–", "–"], "nothing was tried of it"  # noqa: RUF001
    matrix = faults.matrix(group.faults)
    refused = next(row for row in matrix.rows if row[0].text == "registry-refuses@ready")
    cells = {label: cell.text for label, cell in zip(matrix.head, refused, strict=True)}
    assert [cell.text for cell in matrix.rows[1]] == ["daemon may die, after ready", "at ready", "never", "8.00 s"]
    assert cells["overlay2:sequential"] == "nothing fails"
    assert cells["soci:tuned"] == "untouched 50 % EIO after 2.80 s; not back in 40 s"
    assert cells["erofs:tuned"] == "untouched 15 % hang over 6 s; back after 3.00 s (100 files untried)"
    said = answer(group).sentences
    assert "erofs:tuned is independent of registry and daemon after 8.00 s; soci:tuned never." in said
    assert "When the supply fails" in html(session(), [group], CONTEXT)
    assert "### When the supply fails" in tables.markdown(session(), [group], CONTEXT)


def test_a_session_without_faults_says_nothing_of_them() -> None:
    """No columns, no table, no sentence."""
    (group,) = compare(session())
    assert "registry may go" not in tables.cold_start(group).head
    assert not any("independent" in sentence for sentence in answer(group).sentences)
    assert "When the supply fails" not in html(session(), [group], CONTEXT)


def test_wrong_bytes_are_said_first() -> None:
    """A trial that read wrong bytes failed, and its figures are shown all the same, with that in front."""
    failure = Failure(kind="WrongBytes", message="2 file(s) held other bytes")
    one = struck(
        "erofs", "tuned", "disk-full@ready", {"wrong": 2, "wrong_bytes": 5000}, status="failed", failure=failure,
        wrong_bytes=5000,
    )  # fmt: skip
    line = faults.line("erofs:tuned", [one])
    assert faults.matrix([line]).rows[-1][-1].text.startswith("WRONG BYTES: 5 kB")
    assert not line.excluded


def test_what_does_not_count_is_listed() -> None:
    """A trial that failed before its fault is in no number, and its reason is shown."""
    failure = Failure(kind="NotReady", message="no container")
    one = struck("erofs", "tuned", "disk-full@ready", status="failed", failure=failure, onset_s=None, reads=())
    line = faults.line("erofs:tuned", [one])
    assert not line.struck
    assert faults.excluded([line]) == ["erofs:tuned: 1 x disk-full@ready: NotReady: no container"]


def test_data() -> None:
    """The frame has a row per sample, the document a part per case; *never* is null there."""
    frame = frames.fault_frame(some())
    assert len(frame) == 3 * len(some())
    assert frame.query("mode == 'soci' and onset == 'ready' and sample == 'untouched'").errors.item() == "EIO: 150"
    (group,) = make_document("s", "r", compare(session(), some())).groups
    soci = next(part for part in group.faults if part.label == "soci:tuned")
    assert soci.independent["daemon"].seconds is None
    assert soci.independent["daemon"].tried_s == 90.0
    refused = next(part for part in soci.struck if part.fault == "registry-refuses@ready")
    assert (refused.harmless, refused.recovered, refused.recovered_s) == (False, False, None)


def test_the_document_is_made_from_sessions(tmp_path: Path) -> None:
    """Below its marker everything comes from the sessions named, taken together; above it nothing changes."""
    write_session(tmp_path / "s")
    with store.Store.resume(tmp_path / "s") as stored:
        for number, one in enumerate(some()):
            stored.append_fault(one.model_copy(update={"trial": 1000 + number}))
    made = failure_page.measured(load_sessions(tmp_path / "s"))
    assert "| erofs:tuned | 3.4" in made
    assert "8 fault trials, 8 of them count" in made
    text = f"by hand\n{failure_page.MARKER}old\n"
    assert failure_page.rewritten(text, made) == f"by hand\n{failure_page.MARKER}\n{made}"
    shipped = (Path(__file__).parents[2] / "docs" / "failure.md").read_text("utf-8")
    assert shipped.count(failure_page.MARKER) == 1


def test_a_document_of_nothing_is_refused(tmp_path: Path) -> None:
    """Sessions without fault trials say what to run."""
    write_session(tmp_path / "s")
    with pytest.raises(NothingToCompare, match="coldbench run failure"):
        failure_page.measured(load_sessions(tmp_path / "s"))
