"""The record of a fault trial, and when the background fetch of an engine that cannot tell counts as ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.engines.confinement import Confinement
from harness.errors import Interrupted, MachineError
from harness.model.faults import Faults, SampleReads, parse_fault
from harness.model.observation import Failure, LazyUsage
from harness.model.timeline import Recorder
from harness.probes.fault_reads import Truth
from harness.session.faults import record
from harness.session.faults.course import FaultCourse
from harness.session.faults.record import Seen
from harness.session.faults.sampling import Samples, choose
from harness.session.observing import PhaseMeter
from tests.session.test_trial import Bench

FAULT = parse_fault("disk-full@ready")


def course(bench: Bench) -> FaultCourse:
    """A course that has come to readiness, with nothing received since T0."""
    made = FaultCourse(bench.setup, FAULT, Faults(which=(FAULT.key,)), Samples((), (), {}), Confinement())
    meter = PhaseMeter(bench.machine, bench.clock)  # type: ignore[arg-type]
    meter.start(bench.clock(), meter.mark())
    made.witness.meter = meter
    made.recorder = Recorder(bench.clock())
    return made


def awaited(bench: Bench) -> bool:
    return course(bench)._await_background(bench.machine, bench.engine, 1.0)  # type: ignore[arg-type]


def test_a_wrong_byte_fails_the_trial() -> None:
    """Whatever else was seen, a file with other bytes makes the trial fail, and so the run; its figures stay."""
    bench = Bench("soci")
    reads = SampleReads(sample="untouched", files=2, ok=2, wrong=1, wrong_bytes=500)
    seen = Seen(recovery_limit_s=1.0, onset_s=0.1, reads=[reads])
    made = record.observation(course(bench).witness, seen, FAULT, None, "2026-01-01T00:00:00Z")
    assert made.status == "failed"
    assert made.failure is not None
    assert made.failure.kind == record.WRONG_BYTES
    assert made.wrong_bytes == 500
    fine = record.observation(course(bench).witness, Seen(recovery_limit_s=1.0), FAULT, None, "2026-01-01T00:00:00Z")
    assert (fine.status, fine.failure) == ("ok", None)


def test_what_is_left_behind_fails_the_trial() -> None:
    """A mount or process that outlives its machine is a failure, unless there was one before."""
    bench = Bench("soci")
    seen = Seen(recovery_limit_s=1.0, onset_s=0.1, leftovers=("mount /x",))
    made = record.observation(course(bench).witness, seen, FAULT, None, "2026-01-01T00:00:00Z")
    assert made.failure == Failure(kind="MachineError", message="left behind: mount /x", phase="tear-down")


def test_no_more_bytes_is_not_all_bytes() -> None:
    """An engine that only sees that no more comes has the rest of the image when it has received it, not before."""
    bench = Bench("soci")
    assert not awaited(bench), "500 of 1000 bytes came"
    bench.setup = replace(bench.setup, image_compressed_bytes=500)
    assert awaited(bench)


def test_an_engine_that_can_tell_is_believed() -> None:
    """Where the daemon says that all is local, bytes are not counted: what is fetched need not be all blobs."""
    bench = Bench("soci")
    bench.engine.lazy = LazyUsage(background_finished=True)
    assert awaited(bench)


@pytest.mark.parametrize("error", [MachineError("gone"), OSError("gone"), EOFError()])
def test_a_dead_daemon_fetches_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody to ask: the background fetch has not ended, and the trial goes on."""
    bench = Bench("soci")

    def fail(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(bench.engine, "finish_background", fail)
    assert not awaited(bench)


def test_an_interrupt_is_not_taken_for_a_dead_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while waiting ends the trial: it is no answer of the engine."""
    bench = Bench("soci")

    def interrupt(*_: Any) -> bool:
        raise Interrupted("interrupted by SIGINT")

    monkeypatch.setattr(bench.engine, "finish_background", interrupt)
    with pytest.raises(Interrupted):
        awaited(bench)


def test_files_are_dealt_out_by_seed() -> None:
    """Touched and untouched are apart, in an order that the seed alone decides; what the container sees otherwise, and
    what is mounted over the image, is in neither."""
    truth = {f"/a/{n}": Truth(1, "") for n in range(50)} | {"/etc/hosts": Truth(1, ""), "/proc/x": Truth(1, "")}
    touched = {f"/a/{n}" for n in range(10)} | {"/gone"}
    one = choose(truth, touched, 1)
    assert set(one.touched) == {f"/a/{n}" for n in range(10)}
    assert set(one.untouched) == {f"/a/{n}" for n in range(10, 50)}
    assert choose(truth, touched, 1) == one
    assert choose(truth, touched, 2).untouched != one.untouched
    table = Faults(which=(FAULT.key,), untouched=5, mapped=3, touched=2)
    cut = one.cut(table, all_untouched=False)
    assert (len(cut.touched), len(cut.untouched)) == (2, 8)
    assert one.cut(table, all_untouched=True).untouched == one.untouched
