"""This module says how a run tells its progress: the command line draws it, tests record it, ``Silent`` drops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.model.modes import EMBEDDED

if TYPE_CHECKING:
    from harness.model.faults import FaultObservation
    from harness.model.observation import Failure, Observation
    from harness.model.plan import Plan, PlannedTrial


class Progress(Protocol):
    """Hears the events of a run in the order they happen. Times are in seconds."""

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None:
        """Tells that the session begins, or is resumed with ``finished`` trials already recorded."""
        ...

    def preparing(self, scenario: str, what: str) -> None:
        """Tells that out-of-band work begins."""
        ...

    def preparing_bytes(self, done: int, total: int) -> None:
        """Tells how far the current out-of-band work is."""
        ...

    def remark(self, text: str) -> None:
        """Tells what is to be kept in sight, though the run goes on: a tag has moved, for example."""
        ...

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None:
        """Tells that a trial begins; ``position`` counts from 1 over the whole session."""
        ...

    def phase(self, name: str) -> None:
        """Tells that the current trial enters a phase: machine, boot, pull, start, background, workloads, tear-down."""
        ...

    def ended(self, observation: Observation, remaining_s: float) -> None:
        """Tells that the trial was recorded."""
        ...

    def fault_ended(self, observation: FaultObservation, remaining_s: float) -> None:
        """Tells that a fault trial was recorded."""
        ...


class Silent:
    """Stands in as ``Progress`` where nobody watches."""

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None: ...

    def preparing(self, scenario: str, what: str) -> None: ...

    def preparing_bytes(self, done: int, total: int) -> None: ...

    def remark(self, text: str) -> None: ...

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None: ...

    def phase(self, name: str) -> None: ...

    def ended(self, observation: Observation, remaining_s: float) -> None: ...

    def fault_ended(self, observation: FaultObservation, remaining_s: float) -> None: ...


#: Lines of a container's output that are shown when it fails.
OUTPUT_LINES = 20


def last_lines(text: str, lines: int = OUTPUT_LINES) -> list[str]:
    """Returns the last lines of a container's output, without bytes that a terminal would obey."""
    clean = ["".join(c for c in line.expandtabs(4) if c.isprintable()).rstrip() for line in text.splitlines()]
    while clean and not clean[-1]:
        clean.pop()
    return clean[-lines:]


def output_of(observation: Observation) -> list[str]:
    """Returns what a failed trial's container said last, indented to stand below its summary; else nothing."""
    if observation.failure is None or observation.failure.phase not in {"start", "workloads"}:
        return []
    return [f"    {line}" for line in last_lines(observation.output_tail)]


def _charged(observation: Observation) -> str:
    cpu_s, received = observation.cpu_to_ready_s, observation.wire_before_ready.received_bytes
    if cpu_s is None or received is None:
        return "cpu and bytes not known (limits hold for the container only)"
    return f"cpu {cpu_s:.2f} s  {received / 1e6:.1f} MB"


def _head(observation: Observation | FaultObservation) -> str:
    case = observation.case
    engine = "" if case.engine == EMBEDDED else f" ({case.engine})"
    where = f"{case.mode}:{case.variant}{engine} {case.shape}" + (
        f" {case.distance}" if case.distance != "none" else ""
    )
    return f"block {observation.block + 1}  {case.scenario}  {where}"


def _failed(failure: Failure) -> str:
    at = f" in {failure.phase}" if failure.phase else ""
    return f"failed{at}: {failure.kind}: {failure.message}"


def fault_summary(observation: FaultObservation) -> str:
    """Says in one line what came of one fault trial."""
    head = f"{_head(observation)}  {observation.fault.key}"
    if observation.failure is not None:
        return f"{head}  {_failed(observation.failure)}"
    said = [
        f"{reads.sample} {reads.failed + reads.hung} of {reads.tried}"
        + (f" ({', '.join([*reads.errors, *(['hang'] if reads.hung else [])])})" if reads.share else "")
        for reads in observation.reads
    ]
    text = f"{head}  fail: {', '.join(said)}"
    if observation.invalid:
        text += f"  invalid: {'; '.join(f'{i.rule} ({i.reason})' for i in observation.invalid)}"
    return text


def summary(observation: Observation) -> str:
    """Says in one line what came of one trial."""
    head = _head(observation)
    if observation.failure is not None:
        return f"{head}  {_failed(observation.failure)}"
    ready = observation.time_to_ready_s or 0.0
    text = f"{head}  ready {ready:.2f} s  {_charged(observation)}"
    if observation.lazy is not None and observation.lazy.bytes_streamed_before_ready:
        text += f" ({observation.lazy.bytes_streamed_before_ready / 1e6:.1f} streamed)"
    if observation.bound is not None and observation.bound.seconds > 0:
        text += f"  {ready / observation.bound.seconds:.1f}x bound"
    if observation.invalid:
        text += f"  invalid: {'; '.join(f'{i.rule} ({i.reason})' for i in observation.invalid)}"
    return text
