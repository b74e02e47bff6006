"""This module reads a container's files while their supply fails, and judges each read against the
image's own bytes.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.errors import MachineError
from harness.model.faults import Sample, SampleReads
from harness.probes.fault_process import PULSE_S
from harness.probes.line_process import LineProcess
from harness.probes.workloads import entry_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.engines.confinement import Confinement
    from harness.engines.protocol import Container
    from harness.machine.machine import Machine
    from harness.probes.fault_process import Answer, ReadRow, Request

WIDTH = 8
"""So many reads run at once: a server in use has several, and one that hangs must not be all that is seen."""

_SLACK_S = 60.0


@dataclass(frozen=True, slots=True)
class Truth:
    """Says what a file really holds."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Read:
    """Holds one read.

    ``outcome`` is ``ok``, ``hung``, ``untried`` or the name of an error or signal; times are in seconds, ``began`` is
    on CLOCK_MONOTONIC. ``wrong`` says that the bytes are not the image's.
    """

    path: str
    outcome: str
    seconds: float
    size: int
    began: float
    wrong: bool = False

    @property
    def bad(self) -> bool:
        """Says whether it failed or hung: what was not tried is neither good nor bad."""
        return self.outcome not in {"ok", "untried"}


@dataclass(frozen=True, slots=True)
class Pulse:
    """Holds what two processes in the container said of themselves at a time (CLOCK_MONOTONIC seconds)."""

    at: float
    memory: bool
    listing: bool


class FaultReader:
    """Speaks to the process inside the container that reads (``harness.probes.fault_process``); it is started before
    the fault.
    """

    def __init__(
        self, machine: Machine, container: Container, confinement: Confinement, truth: Mapping[str, Truth]
    ) -> None:
        """Starts the process. Raises MachineError when the container cannot be entered."""
        self._truth = truth
        self.pulses: list[Pulse] = []
        # A pid namespace of its own: the readers must outlive a container that the fault kills.
        entry = replace(entry_of(container, confinement), alive=False)
        name = "the process that reads during faults"
        self._process = LineProcess(machine, "harness.probes.fault_process", entry, confinement, name)
        self._hear("entering the container", _SLACK_S)

    def read(
        self, paths: Sequence[str], *, deadline_s: float, budget_s: float, mapped: bool = False, width: int = WIDTH
    ) -> list[Read]:
        """Reads files. None is begun after ``budget_s``, and none waited for longer than ``deadline_s``."""
        if not paths:
            return []
        request: Request = {
            "paths": list(paths),
            "mapped": mapped,
            "width": width,
            "deadline_s": deadline_s,
            "budget_s": budget_s,
        }
        answer = self._ask(request, budget_s + deadline_s)
        return [self._judged(row) for row in answer["reads"]]

    def watch(self, seconds: float) -> None:
        """Reads nothing for so long, and sees how the two that are asked are."""
        self._ask({"watch_s": seconds}, seconds)

    def _judged(self, row: ReadRow) -> Read:
        path, outcome, seconds, size, digest, began = row
        real = self._truth.get(path)
        wrong = outcome == "ok" and real is not None and (size, digest) != (real.size, real.sha256)
        return Read(path, outcome, seconds, real.size if wrong and real is not None else size, began, wrong)

    def _ask(self, request: Request, expected_s: float) -> Answer:
        self._process.tell(json.dumps(request))
        answer = self._hear("reading during a fault", expected_s + _SLACK_S)
        self.pulses += [Pulse(*row) for row in answer["pulses"]]
        return answer

    def _hear(self, what: str, timeout_s: float) -> Answer:
        try:
            answer: Answer = self._process.hear(what, timeout_s)
        except TimeoutError:
            message = f"the process that reads during faults did not answer within {timeout_s:.0f} s ({what})"
            raise MachineError(message) from None
        return answer

    def close(self) -> None:
        """Ends it. Children that the kernel holds up end when what they wait for does."""
        self._process.close()


def summary(sample: Sample, reads: Sequence[Read], deadline_s: float) -> SampleReads:
    """Sums up how the reads of a sample ended, as it is stored."""
    failed = [read for read in reads if read.bad and read.outcome != "hung"]
    outcomes = Counter(read.outcome for read in reads)
    wrong = [read for read in reads if read.wrong]
    times = [read.seconds for read in failed]
    return SampleReads(
        sample=sample,
        files=len(reads),
        ok=outcomes["ok"],
        failed=len(failed),
        hung=outcomes["hung"],
        untried=outcomes["untried"],
        errors=dict(Counter(read.outcome for read in failed)),
        error_s=statistics.median(times) if times else None,
        error_max_s=max(times) if times else None,
        deadline_s=deadline_s,
        wrong=len(wrong),
        wrong_bytes=sum(read.size for read in wrong),
    )


def healthy_s(pulses: Iterable[Pulse], start: float, end: float) -> tuple[float, float]:
    """Says how long, between two times, the process that answers from memory, and the one that lists, said all is
    well.
    """
    inside = [pulse for pulse in pulses if start <= pulse.at < end]
    return PULSE_S * sum(p.memory for p in inside), PULSE_S * sum(p.listing for p in inside)
