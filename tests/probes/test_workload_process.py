"""The process that runs workloads: repeats, held requests, what a failing command said; and the order of workloads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.probes.entering import Entry
from harness.probes.reference_job import REFERENCE_FILES
from harness.probes.selection import ImageFile, Selection, select
from harness.probes.workload_process import MAX_PASSES, Request, serve_one
from harness.probes.workloads import FileWorkloads, PlannedWorkload

if TYPE_CHECKING:
    from pathlib import Path


def test_a_short_pass_is_repeated_and_reported_as_one(tmp_path: Path) -> None:
    """Operations and bytes are those of one pass; passes end at a limit however short they are."""
    (tmp_path / "a").write_bytes(b"x" * 100)
    request: Request = {"workload": "read-small", "paths": [str(tmp_path / "a")]}
    once = serve_one(request)
    many = serve_one({**request, "repeat_s": 3600.0})
    assert (once["passes"], once["operations"], once["bytes"]) == (1, 1, 100)
    assert (many["passes"], many["operations"], many["bytes"]) == (MAX_PASSES, 1, 100)
    assert many["wall_s"] < 1.0


def test_a_failing_command_is_quoted() -> None:
    """The last line of its stderr is part of the error; its stdout is not."""
    argv = ["/bin/sh", "-c", "echo out; echo first >&2; echo no such module >&2; exit 3"]
    answer = serve_one({"workload": "command", "argv": argv})
    assert answer["error"] == "/bin/sh ended with 3: no such module"


@pytest.mark.files
def test_a_held_request_runs_later(tmp_path: Path) -> None:
    """Holding a request parses it and runs nothing; going runs it, as often as wanted."""
    target = tmp_path / "made"
    program = "from harness.probes import workload_process as w; w.enter = lambda entry: None; w.main()"
    entry = Entry({}, True, (), True, "", (), ())
    hold = {"hold": {"workload": "command", "argv": ["/bin/sh", "-c", f"echo x >> {target}"]}}
    lines = [entry.encode(), *(json.dumps(message) for message in (hold, {"go": True}, {"go": True}))]
    done = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    entered, held, first, second = map(json.loads, done.stdout.splitlines())
    assert entered == {"entered": True}
    assert held == {"held": True}
    assert first["operations"] == second["operations"] == 1
    assert target.read_text("ascii") == "x\nx\n"


def test_what_changes_files_comes_last() -> None:
    """A command that reads what a writing workload has changed would fail for a reason that is not the mode's."""
    plan = [PlannedWorkload("write-small"), PlannedWorkload("import", argv=("x",)), PlannedWorkload("stat-walk")]
    selection = Selection(paths={"stat-walk": []}, quarters={"write-small": [[], [], [], []]})
    runner = FileWorkloads(plan, selection)
    assert [planned.name for planned in runner._plan] == ["import", "stat-walk", "write-small"]


def test_what_the_start_touched_is_not_cold() -> None:
    """Touched files, and the directories on the way to them, are dealt to no workload."""
    files = [ImageFile("/a", "dir"), ImageFile("/b", "dir")]
    files += [ImageFile(f"/{d}/{n}", "file", 100) for d in "ab" for n in range(50)]
    touched = ["/a/1", "/a/2"]
    selection = select(files, touched=touched)
    dealt = {path for paths in selection.paths.values() for path in paths}
    dealt |= {path for quarters in selection.quarters.values() for paths in quarters for path in paths}
    assert dealt.isdisjoint({*touched, "/a", "/"})
    assert "/a/3" in dealt or "/b/3" in dealt


@pytest.mark.root
def test_reference_job_is_the_same_in_every_container() -> None:
    """The job's files are on a tmpfs that is mounted nowhere: they are there whatever root is entered."""
    program = (
        "from harness.probes import reference_job, workload_process as w; import os, json; reference_job.prepare(); "
        "os.chroot('/proc'); print(json.dumps(w.serve_one({'workload': 'reference-job', 'repeat_s': 0.01})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert "error" not in answer
    assert answer["operations"] == REFERENCE_FILES
    assert answer["wall_s"] > 0


def test_a_kernel_without_the_mount_has_no_reference() -> None:
    """Where the reference directory could not be made the job is an error, not a number."""
    answer = serve_one({"workload": "reference-job"})
    assert "error" in answer
