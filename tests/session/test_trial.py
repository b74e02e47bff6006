"""The course of one trial, on fakes with a clock of their own."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import ContentError, HostUnfit, Interrupted, MachineError, NotReady
from harness.model.observation import Bound, LazyUsage, Observation
from harness.model.plan import make_plan
from harness.model.scenario import Scenario, Timeouts
from harness.session.bounds import Moved
from harness.session.interrupts import Interrupts
from harness.session.progress import Silent, summary
from harness.session.setup import TrialSetup
from harness.session.trial import run_trial
from tests.session.fakes import Clock, FakeBound, FakeEngine, FakeLog, FakeMachine, FakeProbe, FakeScene

LAZY = LazyUsage(
    layers_lazy=1, layers_unpacked=0, bytes_fetched_before_ready=1, bytes_fetched=2, requests_before_ready=3,
    requests=4, spans_fetched=1, spans_total=2, bytes_inflated=1, digest_mismatches=0, retries=0,
)  # fmt: skip


class Bench:
    """A trial's set-up on fakes, with everything at hand that a test wants to change or look at."""

    def __init__(self, mode: str = "overlay2") -> None:
        self.clock = Clock()
        self.machine = FakeMachine(self.clock)
        self.engine = FakeEngine(self.machine)
        self.probe = FakeProbe(self.machine)
        scenario = Scenario.model_validate(
            {
                "name": "web",
                "image": {"ref": "docker://registry.example/web:1"},
                "workload": {"readiness": {"kind": "exit"}},
                "shapes": ["cpu=0.5"],
                "modes": [mode],
            }
        )
        plan = make_plan([scenario], seed=1)
        self.setup = TrialSetup(
            session="s",
            trial=plan.trials[0],
            case=plan.cases[0],
            scene=FakeScene(self.machine, self.engine, self.probe),
            timeouts=scenario.timeouts,
            image_digest="sha256:0",
            image_compressed_bytes=1000,
            requests=FakeLog(self.machine),
            interrupts=Interrupts(),
            progress=Silent(),
            clock_ns=self.clock,
        )

    def run(self, **changes: Any) -> Observation:
        return run_trial(replace(self.setup, **changes))


def test_full_pull() -> None:
    """Phases end where the engine says and at readiness, counters go to the phase they fell in, and nothing is left."""
    bench = Bench()
    seen = bench.run(bound=FakeBound(Bound(seconds=0.5)))
    assert (seen.status, seen.invalid, seen.failure) == ("ok", (), None)
    assert seen.time_to_ready_s == 3.0
    assert [(p.phase, p.wall_s, round(p.cpu_s, 3)) for p in seen.phases] == [
        ("pull", 1.5, 0.5),
        ("create", 0.5, 0.1),
        ("start", 1.0, 0.3),
    ]
    assert [(s.name, s.start_s, s.end_s) for s in seen.timeline] == [("unpack", 0.0, 1.5), ("ready", 2.0, 3.0)]
    assert seen.wire_before_ready.received_bytes == 1000
    assert seen.output_tail == "hello\n"
    assert bench.machine.calls == ["reset", "throttle True"]
    assert bench.engine.torn_down
    assert bench.probe.closed
    assert bench.machine.gone
    assert summary(seen).endswith("ready 3.00 s  cpu 0.90 s  0.0 MB  6.0x bound")


def test_lazy_start_waits_for_background() -> None:
    """After readiness a lazy trial goes on to the end of the background fetch, which is a phase of its own."""
    bench = Bench("soci")
    bench.engine.lazy = LAZY
    seen = bench.run()
    assert [p.phase for p in seen.phases] == ["pull", "create", "start", "background"]
    assert seen.wire.received_bytes == 1500
    assert (seen.wire_before_ready.requests, seen.wire.requests) == (4, 6)
    assert seen.details.model_dump() == {"background_finished": True, "cpu_from_start_s": pytest.approx(0.3)}
    assert [i.rule for i in seen.invalid] == ["not-lazy"], "the fake's root is plain ext4"


@pytest.mark.parametrize(
    ("own", "requests", "rules"),
    [
        (True, True, ["not-lazy", "stream-unfounded"]),
        (True, False, ["not-lazy", "stream-unfounded"]),
        (False, False, ["not-lazy"]),
    ],
    ids=["our registry, near", "our registry, which does not say who asked", "a registry of others"],
)
def test_a_stream_has_to_be_founded(own: bool, requests: bool, rules: list[str]) -> None:
    """Who says to have streamed next to our own registry broke a rule; how far that of others is, nobody knows."""
    bench = Bench("soci")
    bench.engine.lazy = LAZY.model_copy(update={"bytes_streamed_before_ready": 900, "streamed_since_s": 1.0})
    seen = bench.run(own_registry=own) if requests else bench.run(own_registry=own, requests=None)
    assert [i.rule for i in seen.invalid] == rules, "the fake's root is plain ext4"
    assert seen.lazy is not None
    assert seen.lazy.bytes_streamed_before_ready == 900
    assert "(0.0 streamed)" in summary(seen)


@pytest.mark.parametrize("received", [1000, 20 << 20])
def test_an_image_that_was_there_before_its_root_was_pulled(received: int) -> None:
    """What the network interface had counted when the root file system was there decides, whatever the daemon says."""
    bench = Bench("soci")
    bench.engine.received = received
    bench.engine.lazy = LAZY.model_copy(update={"bytes_streamed_before_ready": received})
    seen = bench.run(image_compressed_bytes=20 << 20, own_registry=False, requests=None)
    early = [i for i in seen.invalid if "before its root file system was there" in i.reason]
    assert [i.rule for i in early] == (["not-lazy"] if received > 1000 else [])


def test_failed_deploy_is_recorded() -> None:
    """A failure keeps its kind, message and phase, has no value, and everything is taken away."""
    bench = Bench()
    bench.engine.fail = ContentError("layer 2: digest is a,\nexpected b")
    seen = bench.run()
    assert seen.status == "failed"
    assert seen.time_to_ready_s is None
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.phase) == ("ContentError", "pull")
    assert seen.failure.message == "layer 2: digest is a, expected b"
    assert [s.name for s in seen.timeline] == ["unpack"]
    assert bench.engine.torn_down
    assert bench.machine.gone
    assert "failed in pull: ContentError" in summary(seen)


def test_deploy_timeout() -> None:
    """What outlasts timeouts.deploy_s is killed, and the failure names the limit, not what killing looked like."""
    bench = Bench()
    killed = threading.Event()
    bench.machine.on_pids = killed.set
    bench.engine.wait_for = killed
    bench.engine.fail = MachineError("the agent ended")
    seen = bench.run(timeouts=Timeouts(deploy_s=0.01))
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.message) == ("NotReady", "no container within timeouts.deploy_s (0.01 s)")


def test_never_ready() -> None:
    """A container that does not get ready fails in the phase start, with the end of its output."""
    bench = Bench()
    bench.probe.never = NotReady("not ready within 1 s")
    seen = bench.run()
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.phase) == ("NotReady", "start")
    assert seen.output_tail == "hello\n"
    assert bench.probe.closed


def test_out_of_memory_explains_a_failure() -> None:
    """When the kernel killed something, that is the failure's kind, whatever it looked like."""
    bench = Bench()
    bench.machine.used = replace(bench.machine.used, oom_kills=1)
    bench.engine.fail = MachineError("the agent ended")
    seen = bench.run()
    assert seen.failure is not None
    assert seen.failure.kind == "OutOfMemory"
    assert "the agent ended" in seen.failure.message


def test_a_bug_is_recorded_with_its_traceback() -> None:
    """An error nobody foresaw fails its trial only; the traceback is kept."""
    bench = Bench()
    bench.engine.fail = KeyError("x")
    seen = bench.run()
    assert seen.failure is not None
    assert seen.failure.kind == "KeyError"
    assert "fakes.py" in (seen.details.traceback or "")


def test_an_error_of_the_system_is_recorded_with_its_traceback() -> None:
    """``No such process`` says nothing without the place where a process ended between a look and its use."""
    bench = Bench()
    bench.engine.fail = ProcessLookupError(3, "No such process")
    seen = bench.run()
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.phase) == ("ProcessLookupError", "pull")
    assert "fakes.py" in (seen.details.traceback or "")


def test_limits_are_read_back() -> None:
    """Limits that are not as asked at the end make a finished trial invalid, not failed."""
    bench = Bench()
    bench.machine.wrong = "limits are not as asked: memory"
    seen = bench.run()
    assert seen.status == "ok"
    assert [i.rule for i in seen.invalid] == ["limits-not-as-asked"]
    assert not seen.valid


@pytest.mark.parametrize("error", [HostUnfit("no overlay"), Interrupted("stop")])
def test_what_ends_the_session_is_raised(error: Exception) -> None:
    """A host that cannot do it and the user's interrupt are no failures of a trial; tear-down still happens."""
    bench = Bench()
    bench.engine.fail = error
    with pytest.raises(type(error)):
        bench.run()
    assert bench.engine.torn_down
    assert bench.machine.gone


def test_machine_that_cannot_be_made() -> None:
    """The trial fails in the phase machine."""

    class Broken:
        def __enter__(self) -> None:
            raise MachineError("no loop device")

        def __exit__(self, *_: object) -> None: ...

    bench = Bench()
    seen = bench.run(scene=FakeScene(bench.machine, bench.engine, bench.probe, Broken()))
    assert seen.failure is not None
    assert (seen.failure.kind, seen.failure.phase) == ("MachineError", "machine")


class Workloads:
    """A workload runner that notes what it found: the machine's calls and the engine's, so far."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.machine_calls: list[str] = []
        self.engine_calls: list[str] = []
        self.evicted: list[bool] = []

    def run(self, machine: Any, engine: Any, container: Any, *, evicted: bool) -> list[Any]:
        self.evicted.append(evicted)
        if not evicted:
            self.machine_calls, self.engine_calls = list(self.bench.machine.calls), list(self.bench.engine.calls)
        self.bench.machine.use(1.0, cpu_s=2.0)
        return []


def test_workloads_run_before_the_background_fetch() -> None:
    """The engine hears of readiness only when the workloads have run, so that their first touch is cold; what wants the
    data local comes after it."""
    bench = Bench("soci")
    bench.engine.lazy = LAZY
    workloads = Workloads(bench)
    seen = bench.run(workloads=workloads)
    assert "ready" not in workloads.engine_calls
    assert "ready" in bench.engine.calls
    assert [p.phase for p in seen.phases] == ["pull", "create", "start", "workloads", "background", "workloads"]
    assert workloads.evicted == [False, True]
    assert seen.details.runtime_quota == "shape"


def test_the_limit_is_lifted_for_workloads_only() -> None:
    """Two CPU seconds in one second break no limit that was lifted; for the background it is in force again."""
    bench = Bench("soci")
    bench.engine.lazy = LAZY
    workloads = Workloads(bench)
    seen = bench.run(workloads=workloads, lift_quota=True)
    assert workloads.machine_calls[-1] == "throttle False"
    assert [call for call in bench.machine.calls if call.startswith("throttle")][-3:] == [
        "throttle False", "throttle True", "throttle False",
    ]  # fmt: skip
    assert "limits-not-as-asked" not in {i.rule for i in seen.invalid}
    assert seen.details.runtime_quota == "none"


@pytest.mark.parametrize(("renewed_s", "invalid"), [(2.5, ()), (3.5, ("below-bound",))], ids=["slow rates", "sooner"])
def test_a_bound_that_a_result_contradicts_is_made_of_rates_measured_again(
    renewed_s: float, invalid: tuple[str, ...]
) -> None:
    """Rates from a slow moment make no honest trial invalid; a trial below the best ones is."""
    seen = Bench().run(bound=FakeBound(Bound(seconds=5.0), renewed=Bound(seconds=renewed_s)))
    assert seen.time_to_ready_s == pytest.approx(3.0)
    assert tuple(reason.rule for reason in seen.invalid) == invalid
    assert seen.bound == Bound(seconds=renewed_s)


def test_the_bound_hears_what_was_moved_by_readiness() -> None:
    """Bytes no more than the wire had carried; counters as they were read at readiness."""
    bench = Bench("soci")
    bench.engine.received = 700
    bench.engine.lazy = LAZY.model_copy(update={"bytes_fetched_before_ready": 900, "bytes_inflated": 77})
    bound = FakeBound()
    bench.run(bound=bound)
    assert bound.heard == [Moved(received_bytes=700, inflated_bytes=77)]


def test_requests_without_the_registrys_log() -> None:
    """A registry of somebody else is asked nothing: the clients in the machine say what they sent."""
    bench = Bench("soci")
    bench.engine.lazy = LAZY
    bench.engine.requests = 5
    seen = bench.run(requests=None)
    assert (seen.wire_before_ready.requests, seen.wire.requests) == (8, 9)


def test_what_the_engine_wrote_to_stderr_is_kept() -> None:
    """The daemon's complaints belong to the trial, not to the terminal of whoever runs it."""
    bench = Bench()
    bench.engine.log = "lazyfs: registry gone\n"
    assert bench.run().details.engine_log == "lazyfs: registry gone\n"
