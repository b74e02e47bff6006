"""Whole fault trials of the command on a small real image: what fails, what comes back, what is kept apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.gate.schemas import schema
from harness.session.store import load, load_faults
from tests.session.support import write_faulty
from tests.session.test_run import Command

if TYPE_CHECKING:
    from pathlib import Path

    from harness.model.faults import FaultObservation

pytestmark = pytest.mark.root

FAULTS = """\
which = ["registry-401@ready", "daemon-killed@after"]
duration_s = 2
deadline_s = 0.5
recovery_s = 30
untouched = 40
mapped = 5
"""


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], FaultObservation]]:
    """One run of all of them, under a full pull and erofs, by mode and fault."""
    directory = tmp_path_factory.mktemp("faults")
    scenario = write_faulty(directory, FAULTS)
    command = Command(directory / "cache", directory)
    code, out, err = command.run("run", str(scenario), "--out", "s", "--json", "--no-workloads", timeout_s=300)
    assert code == 0, err
    counts = json.loads(out)
    assert counts["trials"] == counts["recorded"] == 6
    assert command.run("clean", "--dry-run")[1] == "nothing was left behind\n"
    return directory / "s", {(o.case.mode, o.fault.fault): o for o in load_faults(directory / "s")}


def bad(observation: FaultObservation) -> int:
    return sum(reads.failed + reads.hung for reads in observation.reads)


def test_starts_and_faults_are_kept_apart(struck: tuple[Path, dict[tuple[str, str], FaultObservation]]) -> None:
    """``observations.jsonl`` holds the two starts only; every line of ``faults.jsonl`` is by its schema."""
    directory, found = struck
    assert len(load(directory)[1]) == 2
    for line in (directory / "faults.jsonl").read_text("utf-8").splitlines():
        jsonschema.validate(json.loads(line), schema("fault"))
    assert len(found) == 4
    assert not any(o.leftovers or o.wrong_bytes for o in found.values())
    # What another program of the host mounts at that moment, a test does not choose.
    assert {i.rule for o in found.values() for i in o.invalid} <= {"fuse-in-full-pull"}


def test_nothing_hurts_a_full_pull(struck: tuple[Path, dict[tuple[str, str], FaultObservation]]) -> None:
    """Overlay2 is the control: every read of every sample is answered, whatever fails."""
    for (mode, fault), observation in struck[1].items():
        if mode == "overlay2":
            assert observation.reads, fault
            assert bad(observation) == 0, fault
            assert not any(reads.untried for reads in observation.reads), fault


def test_a_lazy_start_is_hurt_and_recovers(struck: tuple[Path, dict[tuple[str, str], FaultObservation]]) -> None:
    """Right after ready untouched files cannot be had; when the fault is over they can, and the rest is fetched."""
    observation = struck[1]["erofs", "registry-401"]
    assert bad(observation) > 0
    assert observation.recovered_s is not None
    assert observation.background_resumed
    assert observation.falsely_healthy_s > 0, "who answers from memory knows nothing of it"


def test_after_the_handover_the_daemon_may_die(struck: tuple[Path, dict[tuple[str, str], FaultObservation]]) -> None:
    """With all local and the kernel turned to it, no file of the image needs the daemon: every one was read."""
    observation = struck[1]["erofs", "daemon-killed"]
    assert observation.handed_over
    assert observation.background_s is not None
    assert bad(observation) == 0
    untouched = observation.sample("untouched")
    assert untouched is not None
    assert untouched.files > 40, "all files, not a sample"
    assert untouched.ok == untouched.files
