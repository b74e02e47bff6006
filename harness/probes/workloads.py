"""This module runs the workloads of a ready container, each at four temperatures; each gives one number per trial.

- *cold*: first touch of its files in this trial (``harness.probes.selection`` keeps them disjoint between workloads);
- *warm*: again at once;
- *stale*: again after every attribute timeout of the reference daemons (1 s) has run out;
- *evicted*: after the page cache was dropped, with the data local: after a lazy mode's background fetch.

Workloads that change files cannot touch the same ones twice; they get four disjoint lists, brought to the temperature
by reading them first (evicted: then dropped). A short warm pass is repeated until it has taken ``repeat_s``: a single
one of a few milliseconds measures the clock and the scheduler. Right before each workload the reference job runs for
``reference_s``: fixed work on tmpfs, whose time takes the host's speed of that moment out of a ratio. Reported CPU
seconds are the workload's own and, apart from them, all else that the machine was charged for meanwhile, which is the
daemon's work.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.engines.confinement import Confinement
from harness.errors import MachineError, WorkloadError
from harness.model.observation import Failure, WorkloadResult
from harness.probes.entering import Entry
from harness.probes.line_process import LineProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.engines.protocol import Container, Engine
    from harness.machine.machine import Machine
    from harness.probes.selection import Selection
    from harness.probes.workload_process import Answer, Go, Hold, Request

Temperature = Literal["cold", "warm", "stale", "evicted"]
TEMPERATURES: tuple[Temperature, ...] = ("cold", "warm", "stale", "evicted")

_EXIT_SEEN_S = 2.0
"""A container's end is seen by another thread; a fork that fails for it may be told before."""

#: Longer than the reference daemons' attribute, entry and negative timeouts of 1 s.
STALE_AFTER_S = 1.1


@dataclass(frozen=True, slots=True)
class PlannedWorkload:
    """Describes a workload of a scenario: built-in by name, or ``argv`` run inside the container under a name of its
    own.
    """

    name: str
    temperatures: tuple[Temperature, ...] = TEMPERATURES
    argv: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    setup: str = ""
    """This is a line for the container's /bin/sh that comes before the first pass and is not measured."""


class WorkloadProcess:
    """Speaks in JSON lines to the process inside the machine that runs workloads; it is started once per trial."""

    def __init__(
        self, machine: Machine, container: Container, timeout_s: float, confinement: Confinement | None = None
    ) -> None:
        """Starts the process; ``confinement`` is the container's own. Raises MachineError when it cannot be entered."""
        self._machine, self._container = machine, container
        self._timeout_s = timeout_s
        self._confinement = confinement or Confinement()
        self._enter()

    def _enter(self) -> None:
        entry = entry_of(self._container, self._confinement)
        self._alive = entry.alive
        name = "the process of run-time workloads"
        self._process = LineProcess(self._machine, "harness.probes.workload_process", entry, self._confinement, name)
        self._answer("entering the container")

    def lost_its_place(self, answer: Answer) -> bool:
        """Says whether a request failed because the container's first process ended meanwhile, and its pid namespace
        with it.

        fork(2) says ENOMEM then. If so the container has been entered anew, and the request can be made again.
        """
        if not self._alive or os.strerror(errno.ENOMEM) not in str(answer.get("error", "")):
            return False
        return self._enter_anew_if_ended(_EXIT_SEEN_S)

    def _enter_anew_if_ended(self, timeout_s: float) -> bool:
        """Enters again when the container has ended since; a pid namespace of our own takes its place then."""
        deadline = time.monotonic() + timeout_s
        while self._container.exited_at_ns() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        self._process.tell(json.dumps({"hold": {}}))  # any request makes it put files back
        self._answer("putting files back")
        self.close()
        self._enter()
        return True

    def request(self, message: Request | Hold | Go, what: str) -> Answer:
        """Sends one request and waits for its answer; raises WorkloadError when the process ends or takes too long."""
        if self._alive and "go" not in message:
            self._enter_anew_if_ended(0.0)
        self._process.tell(json.dumps(message))
        return self._answer(what)

    def _answer(self, what: str) -> Answer:
        try:
            answer: Answer = self._process.hear(what, self._timeout_s)
        except TimeoutError:
            message = f"run-time workload {what} did not end within {self._timeout_s:.0f} s"
            raise WorkloadError(message) from None
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.close()


def entry_of(container: Container, confinement: Confinement) -> Entry:
    """Says what the process is told of a container. Compiling the filter costs the machine nothing: it is done here."""
    namespaces = container.namespaces
    if namespaces is None:
        raise MachineError("the container ended before its namespaces were seen; run-time workloads have no place")
    return Entry(
        namespaces=dict(namespaces.descriptors),
        alive=container.exited_at_ns() is None,
        capabilities=confinement.capability_numbers,
        no_new_privileges=confinement.no_new_privileges,
        system_calls=confinement.seccomp_program().hex(),
        masked_paths=confinement.masked_paths,
        read_only_paths=confinement.read_only_paths,
    )


class FileWorkloads:
    """Runs the planned workloads over a selection of the image's files (an engine ``WorkloadRunner``)."""

    def __init__(
        self,
        plan: Sequence[PlannedWorkload],
        selection: Selection,
        *,
        seed: int = 0,
        confinement: Confinement | None = None,
        repeat_s: float = 0.0,
        reference_s: float = 0.0,
        timeout_s: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        # Those that change files come last: a module with zeros appended cannot be imported any more.
        self._plan = sorted(plan, key=lambda planned: planned.name in selection.quarters)
        self._selection = selection
        self._seed = seed
        self._confinement = confinement
        self._repeat_s = repeat_s
        self._reference_s = reference_s
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._progress = progress

    def run(self, machine: Machine, engine: Engine, container: Container, *, evicted: bool) -> list[WorkloadResult]:
        """Runs all planned workloads, those that change files last; a failing one is a result, and the others go on.

        Twice per trial: first at all temperatures but *evicted*, then at that one, when the data are local.
        """
        plan = [planned for planned in self._plan if not evicted or "evicted" in planned.temperatures]
        if not plan:
            return []
        process = WorkloadProcess(machine, container, self._timeout_s, self._confinement)
        now = ("evicted",) if evicted else TEMPERATURES[:-1]
        try:
            results = [result for one in plan for result in self._run_one(one, now, machine, engine, process)]
            process.request({"hold": {}}, "putting files back")  # any request makes it do so
            return results
        finally:
            process.close()

    def _run_one(
        self,
        planned: PlannedWorkload,
        temperatures: Sequence[Temperature],
        machine: Machine,
        engine: Engine,
        process: WorkloadProcess,
    ) -> list[WorkloadResult]:
        results: list[WorkloadResult] = []
        first_time = "cold" in temperatures
        if first_time and planned.setup and (failure := self._set_up(planned, process)) is not None:
            first = planned.temperatures[0]
            return [WorkloadResult(workload=planned.name, temperature=first, wall_s=0.0, operations=0, failure=failure)]
        quarters = self._selection.quarters.get(planned.name)
        for number, temperature in enumerate(TEMPERATURES):
            if temperature not in temperatures:
                continue
            wanted = temperature in planned.temperatures
            if not wanted and temperature != "cold":
                continue
            if quarters is not None:
                paths = quarters[number]
                if temperature != "cold" and paths:
                    process.request({"workload": "read-small", "paths": paths}, f"{planned.name}, reading first")
            else:
                paths = self._selection.paths.get(planned.name, [])
            if not planned.argv and not paths:
                continue
            if temperature == "stale":
                self._sleep(STALE_AFTER_S)
            elif temperature == "evicted":
                machine.drop_caches()
            self._progress(f"{planned.name} {temperature}")
            request: Request = {
                "workload": "command" if planned.argv else planned.name,
                "paths": paths,
                "argv": list(planned.argv),
                "env": planned.env,
                "seed": self._seed,
                # The other temperatures would be warm from the second pass on, and what was changed is changed.
                "repeat_s": self._repeat_s if temperature == "warm" and quarters is None else 0.0,
            }
            # The cold pass runs even when only later ones are wanted: they are defined by coming after it.
            result = self._measure(planned.name, temperature, request, machine=machine, engine=engine, process=process)
            if wanted:
                results.append(result)
        return results

    def _set_up(self, planned: PlannedWorkload, process: WorkloadProcess) -> Failure | None:
        self._progress(f"{planned.name} set-up")
        request: Request = {"workload": "command", "argv": ["/bin/sh", "-c", planned.setup], "env": planned.env}
        answer = process.request(request, f"{planned.name}, set-up")
        if process.lost_its_place(answer):
            answer = process.request(request, f"{planned.name}, set-up")
        if "error" not in answer:
            return None
        return Failure(kind="WorkloadError", message=f"{planned.name}, set-up: {answer['error']}", phase="workloads")

    def _measure(
        self,
        name: str,
        temperature: Temperature,
        request: Request,
        *,
        machine: Machine,
        engine: Engine,
        process: WorkloadProcess,
    ) -> WorkloadResult:
        reference = self._reference(process)
        for _try in range(2):  # the container may end under the first: nothing of the image was executed then
            process.request({"hold": request}, name)
            fuse_before = _fuse_requests(engine)
            cpu_before = machine.counters().cpu_total_s
            answer = process.request({"go": True}, name)
            cpu_s = machine.counters().cpu_total_s - cpu_before
            if not process.lost_its_place(answer):
                break
        fuse_after = _fuse_requests(engine)
        fuse = None if fuse_before is None or fuse_after is None else fuse_after - fuse_before
        failure = None
        if "error" in answer:
            failure = Failure(kind="WorkloadError", message=f"{name}: {answer['error']}", phase="workloads")
        passes = int(answer["passes"])
        return WorkloadResult(
            workload=name,
            temperature=temperature,
            wall_s=answer["wall_s"],
            operations=answer["operations"],
            bytes=answer["bytes"],
            cpu_workload_s=answer["cpu_s"],
            cpu_daemon_s=max(0.0, cpu_s / passes - answer["cpu_s"]) if engine.daemon_pids() and not failure else 0.0,
            fuse_requests=None if fuse is None else -(-fuse // passes),
            passes=passes,
            failure=failure,
            reference_wall_s=reference[0],
            reference_cpu_s=reference[1],
        )

    def _reference(self, process: WorkloadProcess) -> tuple[float, float]:
        """Returns wall and CPU seconds of one pass of the reference job, right before a workload; zeros where it cannot
        run.
        """
        if not self._reference_s:
            return 0.0, 0.0
        answer = process.request({"workload": "reference-job", "repeat_s": self._reference_s}, "reference job")
        return (0.0, 0.0) if "error" in answer else (float(answer["wall_s"]), float(answer["cpu_s"]))


def _fuse_requests(engine: Engine) -> int | None:
    usage = engine.lazy_usage()
    return 0 if usage is None else usage.fuse_requests
