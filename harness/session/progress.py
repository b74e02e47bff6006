"""What a run tells whoever watches it; the command line draws it, tests record it, ``Silent`` drops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.model.modes import EMBEDDED

if TYPE_CHECKING:
    from harness.model.observation import Observation
    from harness.model.plan import Plan, PlannedTrial


class Progress(Protocol):
    """Events of a run, in the order they happen. Times in seconds."""

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None:
        """The session begins or is resumed with ``finished`` trials already recorded."""
        ...

    def preparing(self, scenario: str, what: str) -> None:
        """Out-of-band work begins."""
        ...

    def preparing_bytes(self, done: int, total: int) -> None:
        """How far the current out-of-band work is."""
        ...

    def remark(self, text: str) -> None:
        """Something to keep in sight, though the run goes on: a tag that has moved."""
        ...

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None:
        """A trial begins; ``position`` counts from 1 over the whole session."""
        ...

    def phase(self, name: str) -> None:
        """The trial at hand enters a phase: machine, boot, pull, start, background, workloads, tear-down."""
        ...

    def ended(self, observation: Observation, remaining_s: float) -> None:
        """The trial was recorded."""
        ...


class Silent:
    """A ``Progress`` for which nobody watches."""

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None: ...

    def preparing(self, scenario: str, what: str) -> None: ...

    def preparing_bytes(self, done: int, total: int) -> None: ...

    def remark(self, text: str) -> None: ...

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None: ...

    def phase(self, name: str) -> None: ...

    def ended(self, observation: Observation, remaining_s: float) -> None: ...


def summary(observation: Observation) -> str:
    """One line about one trial."""
    case = observation.case
    engine = "" if case.engine == EMBEDDED else f" ({case.engine})"
    where = f"{case.mode}:{case.variant}{engine} {case.shape}" + (
        f" {case.distance}" if case.distance != "none" else ""
    )
    head = f"block {observation.block + 1}  {case.scenario}  {where}"
    if observation.failure is not None:
        at = f" in {observation.failure.phase}" if observation.failure.phase else ""
        return f"{head}  failed{at}: {observation.failure.kind}: {observation.failure.message}"
    ready = observation.time_to_ready_s or 0.0
    text = (
        f"{head}  ready {ready:.2f} s  cpu {observation.cpu_to_ready_s:.2f} s  "
        f"{observation.wire_before_ready.received_bytes / 1e6:.1f} MB"
    )
    if observation.bound is not None and observation.bound.seconds > 0:
        text += f"  {ready / observation.bound.seconds:.1f}x bound"
    if observation.invalid:
        text += f"  invalid: {'; '.join(f'{i.rule} ({i.reason})' for i in observation.invalid)}"
    return text
