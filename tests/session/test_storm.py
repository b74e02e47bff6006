"""Storms on fakes: machines that start together, what one observation says of all, and what a failing one does."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import HostUnfit, Interrupted, MachineError, NotReady
from harness.model.details import StormUse
from harness.model.observation import Invalidity, Observation
from harness.session import record
from harness.session.gates import MemberGate, StormGate
from harness.session.storm import merged, run_storm
from tests.session.test_trial import LAZY, Bench


def benches(count: int) -> list[Bench]:
    """Machines with clocks of their own; the second is a second later than the first, and so on."""
    made = [Bench() for _ in range(count)]
    for number, bench in enumerate(made):
        bench.engine.received = 1000 + number
    return made


def storm(made: list[Bench], **changes: Any) -> Observation:
    return run_storm([replace(bench.setup, storm=StormUse(machines=len(made)), **changes) for bench in made])


def test_one_observation_of_all() -> None:
    """The time is the last one's, bytes, CPU and memory are everybody's, and each machine has its line."""
    seen = storm(benches(3))
    assert (seen.status, seen.invalid, seen.failure) == ("ok", (), None)
    assert seen.time_to_ready_s == 3.0
    assert [machine.ready_s for machine in seen.storm] == [3.0] * 3
    assert [machine.received_bytes for machine in seen.storm] == [1000, 1001, 1002]
    assert seen.wire_before_ready.received_bytes == 3003
    assert seen.cpu_to_ready_s == pytest.approx(2.7)
    assert [(p.phase, p.wall_s) for p in seen.phases] == [("pull", 1.5), ("create", 0.5), ("start", 1.0)]
    use = seen.details.storm
    assert use is not None
    assert use.machines == 3
    assert use.host_cores is not None
    assert use.host_cores >= 1
    assert use.wall_s is not None
    assert 0 <= use.wall_s < 60


def test_the_last_one_is_when_all_are_ready() -> None:
    """A machine that took longer decides."""
    made = benches(2)
    made[1].clock.now_ns += 5  # its clock is its own
    slow = made[1].probe.wait

    def wait() -> int:
        made[1].machine.use(4.0, cpu_s=1.0)
        return slow()

    made[1].probe.wait = wait  # type: ignore[method-assign]
    seen = storm(made)
    assert seen.time_to_ready_s == 7.0
    assert [machine.ready_s for machine in seen.storm] == [3.0, 7.0]


def test_one_that_fails_fails_the_storm() -> None:
    """A machine that did not start is not left out of the time: there is none, and the words say which it was."""
    made = benches(3)
    made[1].probe.never = NotReady("not ready after 600 s")
    seen = storm(made)
    assert (seen.status, seen.time_to_ready_s, seen.valid) == ("failed", None, False)
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.message) == ("NotReady", "machine 2 of 3: not ready after 600 s")
    assert [machine.ready_s for machine in seen.storm] == [3.0, None, 3.0]
    assert all(bench.machine.gone and bench.engine.torn_down for bench in made)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_machine_without_a_record_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three would be a smaller storm, and a faster one."""
    told, calls = record.observation, itertools.count()

    def observation(*seen: Any) -> Observation:
        if next(calls) == 1:
            raise ValueError("a fault of ours")
        return told(*seen)

    monkeypatch.setattr(record, "observation", observation)
    with pytest.raises(MachineError, match="1 of 3 machines of a storm ended without a record"):
        storm(benches(3))


def test_a_machine_that_cannot_be_made_stops_the_others() -> None:
    """They would be a smaller storm; the failure that is kept is the cause."""
    made = benches(3)

    class Broken:
        def __enter__(self) -> None:
            raise MachineError("no loop device is free")

        def __exit__(self, *_: object) -> None: ...

    made[2].setup = replace(made[2].setup, scene=replace(made[2].setup.scene, made=Broken()))  # type: ignore[type-var]
    seen = storm(made)
    assert seen.failure is not None
    assert seen.failure.message == "machine 3 of 3: no loop device is free"
    assert [bench.engine.calls for bench in made[:2]] == [["start"], ["start"]]
    assert all(machine.ready_s is None for machine in seen.storm)


def test_one_that_breaks_a_rule_makes_the_storm_invalid() -> None:
    """Every rule holds for every machine."""
    made = benches(2)
    made[1].machine.wrong = "memory 2 bytes, not 1"
    seen = storm(made)
    assert not seen.valid
    reasons = [(i.rule, i.reason) for i in seen.invalid]
    assert ("limits-not-as-asked", "machine 2 of 2: memory 2 bytes, not 1") in reasons


def test_what_ends_a_session_ends_it() -> None:
    """A host that cannot run such a thing at all is not a failed trial."""
    made = benches(2)
    made[0].engine.fail = HostUnfit("no FUSE here")
    with pytest.raises(HostUnfit, match="no FUSE"):
        storm(made)


def test_an_interrupt_takes_all_machines_along() -> None:
    """Nothing is recorded, and no machine is left."""
    made = benches(2)
    made[0].setup.interrupts.requested = "SIGINT"
    with pytest.raises(Interrupted):
        storm(made)
    held = benches(2)
    stop = Held()
    held[1].engine.wait_for = stop
    held[1].machine.on_pids = stop.set
    # The signal comes while the machines are waited for, and one of them deploys.
    original = threading.Thread.join

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        if self.name.startswith("storm-"):
            assert stop.reached.wait(10)
            raise Interrupted("interrupted by SIGINT")
        original(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "join", join)
        with pytest.raises(Interrupted):
            storm(held)
    assert all(bench.machine.gone for bench in held)
    assert stop.is_set(), "its processes were ended"


class Held(threading.Event):
    """An event that says when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        return super().wait(timeout)


def test_the_gate_holds_until_all_have_booted() -> None:
    """Nobody passes before the last, machines are made one at a time, and one that ends early lets the others fail."""
    gate = StormGate(2)
    first, second = MemberGate(gate), MemberGate(gate)
    passed: list[str] = []

    def go() -> None:
        first.boot()
        passed.append("booting")
        first.booted()
        passed.append("booted")
        first.limited()
        passed.append("limited")

    thread = threading.Thread(target=go)
    thread.start()
    second.boot()
    assert not gate.boot.acquire(blocking=False)
    second.booted()
    second.limited()
    thread.join(10)
    assert passed == ["booting", "booted", "limited"]
    assert host_use(gate) is None
    first.close()
    second.close()
    assert host_use(gate) is not None
    alone = MemberGate(other := StormGate(2))
    MemberGate(other).close()
    with pytest.raises(MachineError, match="another machine of the storm failed before T0"):
        alone.booted()


def host_use(gate: StormGate) -> tuple[float, float] | None:
    """What the gate has seen so far."""
    return gate.host_use


def test_merging_names_the_cause() -> None:
    """Machines that were not started because of another are not the reason, wherever they stand."""
    one, two = (bench.run() for bench in benches(2))
    follower = one.model_copy(
        update={
            "status": "failed",
            "time_to_ready_s": None,
            "failure": one.failure or _failure("another machine of the storm failed before T0"),
        }
    )
    cause = two.model_copy(
        update={"status": "failed", "time_to_ready_s": None, "failure": _failure("the disk is full")}
    )
    assert merged([follower, cause]).failure == _failure("machine 2 of 2: the disk is full")
    assert merged([follower, follower]).failure is not None
    invalid = two.model_copy(update={"invalid": (Invalidity(rule="host-stolen", reason="9 %"),)})
    assert merged([one, invalid]).invalid == (Invalidity(rule="host-stolen", reason="machine 2 of 2: 9 %"),)


def test_what_each_machine_streamed_is_counted() -> None:
    """One that was ready before the last may have streamed: it shows in the sum, in its line, and with its reason."""
    one, two = (bench.run() for bench in benches(2))
    early = one.model_copy(
        update={
            "time_to_ready_s": 1.0,
            "lazy": LAZY.model_copy(
                update={"bytes_streamed": 9, "bytes_streamed_before_ready": 7, "streamed_why": "13 ms a round"}
            ),
        }
    )
    late = two.model_copy(update={"time_to_ready_s": 2.0, "lazy": LAZY})
    seen = merged([early, late])
    assert seen.lazy is not None
    told = (seen.lazy.bytes_streamed, seen.lazy.bytes_streamed_before_ready, seen.lazy.streamed_why)
    assert told == (9, 7, "13 ms a round")
    assert [machine.streamed_bytes for machine in seen.storm] == [7, 0]


def _failure(message: str) -> Any:
    from harness.model.observation import Failure

    return Failure(kind="MachineError", message=message, phase="boot")
