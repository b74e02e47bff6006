"""Stand-ins for a machine, an engine and a container, with a clock of their own: the course of a trial without root."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines.protocol import Availability, Report
from harness.errors import ColdbenchError, MachineError
from harness.machine.cgroup import Counters
from harness.machine.machine import Traffic
from harness.model.details import EngineDetails
from harness.model.shape import Shape, parse_shape

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from harness.lazyfs.messages import ReadRange, Touch
    from harness.model.modes import Mode
    from harness.model.observation import Bound, LazyUsage
    from harness.model.timeline import Recorder
    from harness.session.bounds import Moved


@dataclass
class Clock:
    """Nanoseconds that pass only when told to."""

    now_ns: int = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@dataclass
class FakeMachine:
    """Counts what it is told to use; its limits are as asked unless ``wrong`` says otherwise."""

    clock: Clock
    shape: Shape = field(default_factory=lambda: parse_shape("cpu=0.5"))
    used: Counters = field(default_factory=Counters)
    traffic: Traffic = field(default_factory=lambda: Traffic(0, 0, 0, 0))
    used_requests: int = 0
    wrong: str = ""
    gone: bool = False
    calls: list[str] = field(default_factory=list)
    disk_limited: str = "no"
    namespace_pid: int = 0
    scratch: Path = Path("/nowhere")
    registry: str = "198.18.0.1:5000"
    on_pids: Callable[[], None] | None = None

    def use(self, seconds: float, cpu_s: float = 0.0, received: int = 0) -> None:
        """Let time pass in which the machine works."""
        self.clock.advance(seconds)
        self.used = replace(
            self.used, cpu_user_s=self.used.cpu_user_s + cpu_s, cpu_total_s=self.used.cpu_total_s + cpu_s
        )
        self.traffic = replace(self.traffic, received_bytes=self.traffic.received_bytes + received)

    def reset(self, *, keep_pages: bool = False) -> None:
        self.calls.append("reset")

    def throttle(self, on: bool = True) -> int:
        self.calls.append(f"throttle {on}")
        return self.clock()

    def counters(self) -> Counters:
        return self.used

    def wire(self) -> Traffic:
        return self.traffic

    def credit_samples(self) -> tuple[Any, ...]:
        return ()

    def verify(self) -> None:
        if self.wrong:
            raise MachineError(self.wrong)

    def pids(self) -> list[int]:
        if self.on_pids is not None:
            self.on_pids()
        return []


@dataclass
class FakeContainer:
    pid: int = 0


@dataclass
class FakeEngine:
    """A full pull in 2 s (mounted after 1.5) that receives ``received`` bytes, unless told to fail."""

    machine: FakeMachine
    received: int = 1000
    fail: Exception | None = None
    wait_for: threading.Event | None = None
    lazy: LazyUsage | None = None
    torn_down: bool = False
    calls: list[str] = field(default_factory=list)
    details: EngineDetails = field(default_factory=EngineDetails)
    log: str = ""
    requests: int | None = None

    def report(self) -> Report:
        return Report(requests=self.requests, details=self.details, log_tail=self.log)

    def modes(self) -> tuple[Mode, ...]:
        return ()

    def available(self, mode: str = "", preset: str = "") -> Availability:
        return Availability()

    def start(self, machine: Any, request: Any) -> None:
        self.calls.append("start")

    def deploy(self, machine: Any, request: Any, timeline: Recorder, watch: Any = None) -> Any:
        begin = self.machine.clock()
        self.machine.use(1.5, cpu_s=0.5, received=self.received)
        self.machine.used_requests += 4
        timeline.add("unpack", begin, self.machine.clock())
        watch.phase("create")
        self.machine.use(0.5, cpu_s=0.1)
        if self.wait_for is not None:
            self.wait_for.wait(10)
        if self.fail is not None:
            raise self.fail
        container = FakeContainer()
        watch.created(container)
        watch.phase("start")
        return container

    def mark_ready(self) -> None:
        self.calls.append("ready")

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        self.machine.use(3.0, cpu_s=0.2, received=500)
        self.machine.used_requests += 2
        return True

    def lazy_usage(self) -> LazyUsage | None:
        return self.lazy

    def daemon_pids(self) -> tuple[int, ...]:
        return ()

    def restart_daemons(self) -> None:
        self.calls.append("restart")

    def first_touches(self) -> list[Touch]:
        return []

    def read_ranges(self) -> list[ReadRange]:
        return []

    def tear_down(self) -> None:
        assert not self.machine.gone, "the container must go before its machine"
        self.torn_down = True


@dataclass
class FakeProbe:
    """Ready after another second, or never."""

    machine: FakeMachine
    never: ColdbenchError | None = None
    closed: bool = False

    def wait(self) -> int:
        self.machine.use(1.0, cpu_s=0.3)
        if self.never is not None:
            raise self.never
        return self.machine.clock()

    def output_tail(self) -> str:
        return "hello\n"

    def close(self) -> None:
        self.closed = True


@contextmanager
def entered(machine: FakeMachine) -> Iterator[FakeMachine]:
    """The fake machine as a context manager."""
    try:
        yield machine
    finally:
        machine.gone = True


@dataclass
class FakeScene:
    """``harness.session.setup.Scene`` of the fakes; ``made`` stands in for the machine when it cannot be made."""

    fake_machine: FakeMachine
    fake_engine: FakeEngine
    fake_probe: FakeProbe
    made: Any = None

    def machine(self) -> Any:
        return self.made or entered(self.fake_machine)

    def engine(self) -> Any:
        return self.fake_engine

    def request(self, machine: Any) -> Any:
        return None

    def probe(self, container: Any, machine: Any, daemons_alive: Callable[[], bool]) -> Any:
        return self.fake_probe


@dataclass
class FakeLog:
    """A registry's log that counts what the fake machine used."""

    machine: FakeMachine

    def so_far(self) -> int:
        return self.machine.used_requests


@dataclass
class FakeBound:
    """A bound that is always the same, and hears what was moved."""

    bound: Bound | None = None
    heard: list[Moved] = field(default_factory=list)
    renewed: Bound | None = None
    """Is the bound once the host's rates have been measured again."""

    def given(self, moved: Moved, *, anew: bool = False) -> Bound | None:
        self.heard.append(moved)
        return self.renewed if anew else self.bound
