"""This module runs a storm: one trial of several machines. Each has its own course; one observation is made of all.

All machines are told to deploy at the same moment. The trial is ready when the last of them is; it fails when any
fails, and is invalid when any is: a machine that did not start is never counted as one that did.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, Interrupted, MachineError, UsageError
from harness.machine import host
from harness.model.details import StormUse
from harness.model.observation import Invalidity, LazyUsage, Observation, PhaseUsage, StormMachine, Wire
from harness.session import record
from harness.session.gates import MemberGate, StormGate
from harness.session.interrupts import Interrupts
from harness.session.observing import known_sum
from harness.session.progress import Silent
from harness.session.trial import Course

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.session.setup import TrialSetup

_LOOK_S = 0.2


@dataclass
class _Member:
    """Runs one machine of a storm, in a thread of its own."""

    course: Course
    gate: MemberGate
    started_at: str = ""
    ends_session: Exception | None = None
    """Holds the error that ends the whole session, not just the trial."""
    seen: Observation | None = None

    def run(self) -> None:
        """Runs the course from machine to tear-down; whatever happens, nobody waits for it afterwards."""
        self.started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.course.run()
        except (HostUnfit, UsageError, Interrupted) as error:
            self.ends_session = error
        except Exception as error:  # the machine could not be made or taken away
            self.course.fail(error)
        finally:
            self.gate.close()
        course = self.course
        self.seen = record.observation(course.witness, course.recorder, course.failure, self.started_at)

    def kill(self) -> None:
        """Kills what runs in its machine; the course notices and takes the machine away."""
        machine = self.course.machine
        if machine is None:
            return
        with suppress(MachineError, OSError):
            for pid in machine.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def run_storm(setups: Sequence[TrialSetup]) -> Observation:
    """Runs one trial of as many machines as there are set-ups; the first one's interrupts and progress serve all.

    Raises:
        HostUnfit, UsageError: nothing of this kind can run here, so the session ends.
        MachineError: a machine ended without a record, so that nothing can be said of the others either.
        Interrupted: the user stopped it; every machine is gone.
    """
    first = setups[0]
    if first.interrupts.requested:
        raise Interrupted(f"interrupted by {first.interrupts.requested}")
    first.progress.phase(f"storm of {len(setups)}")
    together = StormGate(len(setups))
    members = []
    for setup in setups:
        gate = MemberGate(together)
        # Signals come to this thread alone, and a registry's log does not say which machine asked.
        alone = replace(setup, interrupts=Interrupts(), progress=Silent(), requests=None)
        members.append(_Member(Course(alone, gate), gate))
    threads = [threading.Thread(target=member.run, name=f"storm-{n}") for n, member in enumerate(members, 1)]
    try:
        with first.interrupts.allowed():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        together.give_up()
        while any(thread.is_alive() for thread in threads):
            for member in members:
                member.kill()
            time.sleep(_LOOK_S)
    for member in members:
        if member.ends_session is not None:
            raise member.ends_session
    told = [member.seen for member in members if member.seen is not None]
    if len(told) < len(members):  # its thread has printed why
        raise MachineError(f"{len(members) - len(told)} of {len(members)} machines of a storm ended without a record")
    seen = merged(told)
    use = together.host_use
    storm = first.storm or StormUse()
    if use is not None:
        found = {"wall_s": use[0], "host_core_s": use[1], "host_cores": host.usable_cores()}
        storm = storm.model_copy(update=found)
    return seen.model_copy(update={"details": seen.details.model_copy(update={"storm": storm})})


def merged(seen: Sequence[Observation]) -> Observation:
    """Makes one observation of all machines: the last one's times, everybody's bytes and CPU, and a line for each
    machine.
    """
    failed = [(n, o) for n, o in enumerate(seen, 1) if o.failure is not None]
    # A machine that was not started because another failed is not the reason.
    number, cause = next(((n, o) for n, o in failed if "another machine" not in str(o.failure)), (0, seen[0]))
    if failed and cause.failure is None:
        number, cause = failed[0]
    ready = [o.time_to_ready_s for o in seen]
    last = seen[0] if None in ready else max(seen, key=lambda o: o.time_to_ready_s or 0.0)
    failure = None
    if cause.failure is not None:
        message = f"machine {number} of {len(seen)}: {cause.failure.message}"
        failure = cause.failure.model_copy(update={"message": message})
        last = cause
    invalid = [
        Invalidity(rule=i.rule, reason=f"machine {n} of {len(seen)}: {i.reason}")
        for n, o in enumerate(seen, 1)
        for i in o.invalid
    ]
    return last.model_copy(
        update={
            "status": "failed" if failure is not None else last.status,
            "failure": failure,
            "invalid": tuple(invalid),
            "time_to_ready_s": None if failure is not None else last.time_to_ready_s,
            "image_digest": seen[0].image_digest,
            "phases": _phases(seen),
            "memory_peak_bytes": known_sum(o.memory_peak_bytes for o in seen),
            "memory_ready_bytes": known_sum(o.memory_ready_bytes for o in seen),
            "memory_ready_cache_bytes": known_sum(o.memory_ready_cache_bytes for o in seen),
            "disk_written_bytes": known_sum(o.disk_written_bytes for o in seen),
            "lazy": _lazy(last, seen),
            "wire": _wire([o.wire for o in seen]),
            "wire_before_ready": _wire([o.wire_before_ready for o in seen]),
            "storm": tuple(_machine(o) for o in seen),
        }
    )


def _machine(o: Observation) -> StormMachine:
    # All is known: an engine whose daemon is outside of its machine has no storm (``harness.model.plan``).
    return StormMachine(
        image_digest=o.image_digest,
        ready_s=o.time_to_ready_s,
        cpu_s=o.cpu_to_ready_s or 0.0,
        received_bytes=o.wire_before_ready.received_bytes or 0,
        streamed_bytes=o.lazy.bytes_streamed_before_ready if o.lazy else 0,
        disk_written_bytes=o.disk_written_bytes or 0,
        memory_peak_bytes=o.memory_peak_bytes or 0,
    )


def _phases(seen: Sequence[Observation]) -> tuple[PhaseUsage, ...]:
    """Returns the phases of all machines by name: the longest wall time, the sum of all else."""
    by_name: dict[str, list[PhaseUsage]] = defaultdict(list)
    for o in seen:
        for phase in o.phases:
            by_name[phase.phase].append(phase)
    return tuple(
        PhaseUsage(
            phase=used[0].phase,
            wall_s=max(p.wall_s for p in used),
            cpu_user_s=sum(p.cpu_user_s for p in used),
            cpu_system_s=sum(p.cpu_system_s for p in used),
            throttled_s=sum(p.throttled_s for p in used),
            nr_periods=sum(p.nr_periods for p in used),
            nr_throttled=sum(p.nr_throttled for p in used),
        )
        for used in by_name.values()
    )


def _lazy(last: Observation, seen: Sequence[Observation]) -> LazyUsage | None:
    """Returns what the last machine's daemon counted, with what all of them streamed: that is part of all bytes."""
    if last.lazy is None:
        return None
    used = [o.lazy for o in seen if o.lazy is not None]
    return last.lazy.model_copy(
        update={
            "bytes_streamed": sum(lazy.bytes_streamed for lazy in used),
            "bytes_streamed_before_ready": sum(lazy.bytes_streamed_before_ready for lazy in used),
            "streamed_why": next((lazy.streamed_why for lazy in used if lazy.streamed_why), ""),
        }
    )


def _wire(seen: Sequence[Wire]) -> Wire:
    return Wire(
        received_bytes=known_sum(wire.received_bytes for wire in seen),
        sent_bytes=known_sum(wire.sent_bytes for wire in seen),
        requests=known_sum(wire.requests for wire in seen),
    )
