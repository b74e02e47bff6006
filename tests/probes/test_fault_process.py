"""The readers that meet failing files: held up, killed, wrong, or never begun; on files that fail by nature."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from harness.model.faults import SampleReads
from harness.probes import fault_process, fault_reads
from harness.probes.fault_process import Readers
from harness.probes.fault_reads import Pulse, Read, healthy_s, summary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.probes.fault_process import Request

pytestmark = pytest.mark.files


@pytest.fixture
def readers() -> Iterator[Readers]:
    made = Readers()
    made.start()
    yield made
    for child in made._all():
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        child.close()


def run(readers: Readers, paths: list[Any], **options: Any) -> dict[str, tuple[str, int, str]]:
    """Outcome, bytes and digest by the file's name."""
    request = {"paths": [str(path) for path in paths], "width": 4, "deadline_s": 0.3, "budget_s": 5.0, **options}
    answer = readers.run(cast("Request", request))
    return {path.rpartition("/")[2]: (outcome, size, sha) for path, outcome, _s, size, sha, _at in answer["reads"]}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_each_read_has_its_own_end(readers: Readers, tmp_path: Path) -> None:
    """What can be read is read to its end whatever happens beside it: errors by name, a hang at the deadline."""
    (tmp_path / "good").write_bytes(b"x" * 300_000)
    os.mkfifo(tmp_path / "hangs")  # open(2) waits for a writer
    (tmp_path / "directory").mkdir()
    found = run(readers, [tmp_path / name for name in ("hangs", "good", "gone", "directory")])
    assert found["good"] == ("ok", 300_000, hashlib.sha256(b"x" * 300_000).hexdigest())
    assert found["gone"][0] == "ENOENT"
    assert found["directory"][0] == "EISDIR"
    assert found["hangs"][0] == "hung"


def test_held_readers_are_replaced_up_to_a_limit(
    readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many readers may be held up; what is left after that was never tried, and says so."""
    monkeypatch.setattr(fault_process, "MAX_HELD", 6)
    for number in range(10):
        os.mkfifo(tmp_path / f"hangs{number}")
    outcomes = [outcome for outcome, _, _ in run(readers, sorted(tmp_path.iterdir())).values()]
    assert outcomes.count("hung") >= 6
    assert outcomes.count("hung") + outcomes.count("untried") == 10
    assert outcomes.count("untried") >= 1


def test_nothing_begins_after_the_budget(readers: Readers, tmp_path: Path) -> None:
    """With no time left every file is untried: neither a success nor a failure."""
    (tmp_path / "good").write_bytes(b"x")
    assert run(readers, [tmp_path / "good"], budget_s=0.0)["good"][0] == "untried"


def test_a_signal_kills_the_reader_alone(readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page fault that nobody can answer ends one child with SIGBUS; the others go on."""

    def dies(path: str) -> tuple[int, str]:
        faulthandler.disable()
        if path.endswith("bad"):
            os.kill(os.getpid(), signal.SIGBUS)
        return fault_process.map_file(path)

    monkeypatch.setitem(fault_process.KINDS, "map", dies)
    for name in ("good", "bad", "other"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    found = run(readers, [tmp_path / name for name in ("good", "bad", "other")], mapped=True, width=1)
    assert {name: outcome for name, (outcome, _, _) in found.items()} == {
        "good": "ok", "bad": "SIGBUS", "other": "ok",
    }  # fmt: skip
    assert found["good"][2] == hashlib.sha256(b"x" * 5000).hexdigest()


def test_the_two_that_are_asked_are_well(readers: Readers) -> None:
    """Pulses come once a second while there is time; both are well on a file system that answers."""
    answer = readers.run({"watch_s": 2.5})
    assert answer["pulses"]
    assert all(memory and listing for _at, memory, listing in answer["pulses"])


def test_reads_are_summed_up() -> None:
    """Failed, hung and untried are apart; wrong bytes count though the read succeeded."""
    reads = [
        Read("a", "ok", 0.1, 10, 0.0),
        Read("b", "ok", 0.1, 20, 0.0, wrong=True),
        Read("c", "EIO", 2.0, 0, 0.0),
        Read("d", "EIO", 4.0, 0, 0.0),
        Read("e", "SIGBUS", 3.0, 0, 0.0),
        Read("f", "hung", 6.0, 0, 0.0),
        Read("g", "untried", 0.0, 0, 0.0),
    ]
    assert summary("mapped", reads, 6.0) == SampleReads(
        sample="mapped", files=7, ok=2, failed=3, hung=1, untried=1, errors={"EIO": 2, "SIGBUS": 1}, error_s=3.0,
        error_max_s=4.0, deadline_s=6.0, wrong=1, wrong_bytes=20,
    )  # fmt: skip
    assert [read.bad for read in reads] == [False, False, True, True, True, True, False]


def test_health_is_counted_while_reads_fail() -> None:
    """Seconds in which a probe was green, within the time in which reads failed."""
    pulses = [Pulse(float(second), second != 3, second < 2) for second in range(10)]
    assert healthy_s(pulses, 1.0, 6.0) == (4.0, 1.0)


def test_wrong_bytes_are_told_by_their_digest() -> None:
    """A read counts as wrong when size or digest is not the truth's; a file without a truth is not judged."""
    reader = object.__new__(fault_reads.FaultReader)
    reader._truth = {"/a": fault_reads.Truth(3, hashlib.sha256(b"abc").hexdigest())}
    assert not reader._judged(("/a", "ok", 0.1, 3, hashlib.sha256(b"abc").hexdigest(), 0.0)).wrong
    assert reader._judged(("/a", "ok", 0.1, 3, hashlib.sha256(b"abd").hexdigest(), 0.0)).wrong
    assert reader._judged(("/a", "ok", 0.1, 2, hashlib.sha256(b"ab").hexdigest(), 0.0)).wrong
    assert not reader._judged(("/a", "EIO", 0.1, 0, "", 0.0)).wrong
    assert not reader._judged(("/b", "ok", 0.1, 3, "0", 0.0)).wrong
