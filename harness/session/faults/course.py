"""This module runs one fault trial: a start like any other, then the fault, the reads, the mending, and the
recovery.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError, HostUnfit, Interrupted, UsageError
from harness.machine.leftovers import find_leftovers
from harness.probes.fault_reads import FaultReader, healthy_s, summary
from harness.session.faults import record
from harness.session.faults.injection import Injection
from harness.session.faults.record import Seen
from harness.session.trial import Course

if TYPE_CHECKING:
    from harness.engines.confinement import Confinement
    from harness.engines.protocol import Container, Engine
    from harness.machine.machine import Machine
    from harness.model.faults import FaultObservation, Faults, PlannedFault
    from harness.probes.fault_reads import Read
    from harness.session.faults.sampling import Samples
    from harness.session.observing import PhaseMeter
    from harness.session.setup import TrialSetup

_POLL_S = 0.25
_RETRY_S = 1.0
_RETRIED = 20
"""So many files that had failed are tried again until all can be read."""
_QUIET_S = 15.0
"""When no byte has come for so long, what is missing is not on its way."""
_QUIET_BYTES = 20_000
_WHOLE_SHARE = 0.95
"""This share of the image's stored bytes counts as all: what is fetched more than once makes up for little."""
_BUDGETS = {"untouched": 0.6, "mapped": 0.1, "touched": 0.1, "evicted": 0.2}
"""Reads of a sample may begin in these shares of the fault's duration."""


def run_fault_trial(
    setup: TrialSetup, fault: PlannedFault, table: Faults, samples: Samples, confinement: Confinement
) -> FaultObservation:
    """Runs one fault trial; one that fails gives an observation with its failure.

    Raises:
        HostUnfit, UsageError: nothing of this kind can run here, so the session ends.
        Interrupted: the user stopped it; nothing is recorded, the trial runs again on resume.
    """
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    course = FaultCourse(setup, fault, table, samples, confinement)
    try:
        course.run()
    except (HostUnfit, UsageError, Interrupted):
        raise
    except Exception as error:  # the machine could not be made or taken away
        course.fail(error)
    course.seen.leftovers = tuple(str(found) for found in find_leftovers(mine=True) if found.id == course.seen.machine)
    return record.observation(course.witness, course.seen, fault, course.failure, started_at)


class FaultCourse(Course):
    """Runs one fault trial step by step; up to readiness it is the course of every trial."""

    def __init__(
        self,
        setup: TrialSetup,
        fault: PlannedFault,
        table: Faults,
        samples: Samples,
        confinement: Confinement,
    ) -> None:
        super().__init__(setup)
        self.seen = Seen(recovery_limit_s=table.recovery_s)
        self._fault = fault
        self._table = table
        self._samples = samples.cut(table, all_untouched=fault.onset == "after" and setup.case.lazy)
        self._confinement = confinement

    def _go_on(self, machine: Machine, engine: Engine, container: Container, meter: PhaseMeter) -> None:
        """Waits for the onset, puts the fault in and reads; mends it, and sees what comes back."""
        self.seen.machine = machine.id
        reader = FaultReader(machine, container, self._confinement, self._samples.truth)
        injection = Injection(self._fault, machine, engine)
        try:
            self._enter(f"until {self._fault.onset}")
            self._wait_for_onset(machine, engine)
            self._note_usage(engine)
            self._enter(self._fault.key)
            received = machine.wire().received_bytes
            self.seen.received_before_bytes = self._received(machine)
            begun = time.monotonic()
            self.seen.onset_s = self._since_ready()
            self.seen.hit = injection.put_in()
            bad = self._quiet(reader) if self._fault.quiet else self._read_all(reader, machine)
            self._last_out(reader, begun)
            self.seen.received_in_fault_bytes = machine.wire().received_bytes - received
            self.seen.fault_s = time.monotonic() - begun
            injection.mend()
            self._enter("recovery")
            self._recover(reader, machine, engine, bad)
            self._judge_health(reader)
        finally:
            reader.close()
            injection.clear()

    # -- until it begins

    def _since_ready(self) -> float:
        assert self.witness.ready_at_ns is not None
        return (time.monotonic_ns() - self.witness.ready_at_ns) / 1e9

    def _wait_for_onset(self, machine: Machine, engine: Engine) -> None:
        onset = self._fault.onset
        if onset == "ready":
            return
        if onset == "background":
            self._half_of_the_rest(machine)
        elif onset == "after":
            if self._await_background(machine, engine, self.setup.timeouts.background_s):
                self.seen.background_s = self._background_end_s()
                return
            self.seen.background_limit_s = self._since_ready()
        else:
            time.sleep(max(0.0, float(onset.removesuffix("s")) - self._since_ready()))

    def _half_of_the_rest(self, machine: Machine) -> None:
        """Waits until half of what the start has not fetched is here, or nothing comes any more."""
        start = last = machine.wire().received_bytes
        wanted = start + max(0, self.setup.image_compressed_bytes - start) // 2
        quiet_since = time.monotonic()
        while last < wanted and time.monotonic() - quiet_since < _QUIET_S:
            time.sleep(_POLL_S)
            now = machine.wire().received_bytes
            if now - last > _QUIET_BYTES:
                last, quiet_since = now, time.monotonic()

    def _await_background(self, machine: Machine, engine: Engine, timeout_s: float) -> bool:
        """Says whether the rest of the image came. An engine that cannot tell only sees that no more comes: then the
        bytes of the whole image must have been received.
        """
        assert self.recorder is not None
        if not self.setup.case.lazy:
            return True
        try:
            done = engine.finish_background(timeout_s, self.recorder)
            usage = engine.lazy_usage()
        except Interrupted:
            raise
        except (ColdbenchError, OSError, EOFError):  # there is nobody any more who could
            return False
        told = usage is not None and usage.background_finished is not None
        return done and (told or self._received(machine) >= _WHOLE_SHARE * self.setup.image_compressed_bytes)

    def _background_end_s(self) -> float:
        """Returns the seconds from ready until the background fetch ended: as the engine says, else now."""
        assert self.recorder is not None
        assert self.witness.ready_s is not None
        names = ("background", "inflate")
        ends = [span.end_s for span in self.recorder.sorted() if span.name in names]
        return max(0.0, max(ends) - self.witness.ready_s) if ends else self._since_ready()

    def _note_usage(self, engine: Engine) -> None:
        try:
            self.seen.usage = engine.lazy_usage()
        except Interrupted:
            raise
        except (ColdbenchError, OSError, EOFError):
            self.seen.usage = None

    # -- while it lasts

    def _quiet(self, reader: FaultReader) -> list[Read]:
        reader.watch(self._table.duration_s)
        return []

    def _read_all(self, reader: FaultReader, machine: Machine) -> list[Read]:
        """Reads what the start had read, what it had not, the same through mmap, and what it had read once it is
        evicted.
        """
        mapped = self._samples.untouched[-self._table.mapped :] if self._table.mapped else ()
        untouched = self._samples.untouched[: len(self._samples.untouched) - len(mapped)]
        bad = self._read(reader, "touched", self._samples.touched)
        if self._fault.onset == "after":
            # What was pushed into the page cache must not hide who it came from.
            machine.drop_caches()
        bad += self._read(reader, "untouched", untouched)
        bad += self._read(reader, "mapped", mapped)
        if self._samples.touched:
            machine.drop_caches()
            bad += self._read(reader, "evicted", self._samples.touched)
        return bad

    def _read(self, reader: FaultReader, sample: str, paths: tuple[str, ...]) -> list[Read]:
        if not paths:
            return []
        # Readers that wait in time and are answered must not leave others untried.
        budget_s = max(self._table.duration_s * _BUDGETS[sample], self._table.deadline_s)
        if self._fault.onset == "after" and sample == "untouched":
            budget_s = max(budget_s, self._table.recovery_s, self.setup.timeouts.background_s)
        reads = reader.read(paths, deadline_s=self._table.deadline_s, budget_s=budget_s, mapped=sample == "mapped")
        self.seen.reads.append(summary(sample, reads, self._table.deadline_s))  # type: ignore[arg-type]
        bad = [read for read in reads if read.bad]
        self.seen.first_bad = min([*self._first_bad(), *(read.began for read in bad)], default=None)
        return bad

    def _first_bad(self) -> list[float]:
        return [] if self.seen.first_bad is None else [self.seen.first_bad]

    def _last_out(self, reader: FaultReader, begun: float) -> None:
        """Waits until the fault has lasted as long as planned, however soon the reads ended."""
        left = begun + self._table.duration_s - time.monotonic()
        if left > 0 and self._fault.mended:
            reader.watch(left)

    # -- afterwards

    def _recover(self, reader: FaultReader, machine: Machine, engine: Engine, bad: list[Read]) -> None:
        """Reads again what had failed until all of it can be read, then sees whether the background fetch went on."""
        began = time.monotonic()
        left = list(dict.fromkeys(read.path for read in bad))[:_RETRIED]
        self.seen.recovered_s = None if left else 0.0
        while left and time.monotonic() - began < self._table.recovery_s:
            reads = reader.read(left, deadline_s=self._table.deadline_s, budget_s=self._table.recovery_s)
            self.seen.wrong_later += [read for read in reads if read.wrong]
            left = [read.path for read in reads if read.outcome != "ok"]
            if not left:
                self.seen.recovered_s = time.monotonic() - began
            else:
                reader.watch(_RETRY_S)
        self.seen.well_at = time.monotonic()
        if self.setup.case.lazy and self.seen.background_s is None:
            self.seen.background_resumed = self._await_background(machine, engine, self.setup.timeouts.background_s)
            if self.seen.background_resumed:
                self.seen.resumed_s = time.monotonic() - began
        if self._fault.quiet:
            later = self._samples.untouched[: self._table.untouched]
            reads = reader.read(later, deadline_s=self._table.deadline_s, budget_s=self._table.recovery_s)
            self.seen.reads.append(summary("later", reads, self._table.deadline_s))
            self.seen.first_bad = min((read.began for read in reads if read.bad), default=None)
            self.seen.well_at = time.monotonic()

    def _judge_health(self, reader: FaultReader) -> None:
        seen = self.seen
        if seen.first_bad is None or seen.well_at is None:
            return
        seen.unhealthy_s = seen.well_at - seen.first_bad
        seen.falsely_healthy_s, seen.listing_healthy_s = healthy_s(reader.pulses, seen.first_bad, seen.well_at)

    def _look_back(self, machine: Machine, engine: Engine) -> None:
        """Notes what is left to see; daemons may be dead, and what they would have said is not missed."""
        try:
            self.seen.received_bytes = self._received(machine)
        except OSError:
            pass
        self.witness.hear(engine)

    def _received(self, machine: Machine) -> int:
        meter = self.witness.meter
        return 0 if meter is None else machine.wire().since(meter.begin.wire).received_bytes
