"""This module makes the record of a trial: the observation that is stored, with its failure if it had one."""

from __future__ import annotations

import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.errors import ColdbenchError, MachineError
from harness.model.observation import Failure, Observation
from harness.session import validity

if TYPE_CHECKING:
    from harness.machine.machine import Machine
    from harness.model.timeline import Recorder
    from harness.session.evidence import Witness


def failure_of(error: Exception, phase: str, witness: Witness) -> Failure:
    """Returns an error as it is stored; the witness keeps the traceback of one without a message of ours."""
    kind = error.kind if isinstance(error, ColdbenchError) else type(error).__name__
    if not isinstance(error, ColdbenchError):
        witness.traceback = "".join(traceback.format_exception(error))
    message = " ".join(str(error).split()) or "no message"
    return Failure(kind=kind, message=message, phase=phase)


def blame_memory(failure: Failure, machine: Machine) -> Failure:
    """Returns the same failure, or the memory that ran out: a process killed for want of it fails in any way."""
    kills = 0
    with suppress(MachineError, OSError):
        kills = machine.counters().oom_kills
    if not kills or failure.kind in {"NotReady", "OutOfMemory"}:
        return failure
    memory = machine.shape.memory_bytes
    limit = f" of {memory >> 20} MiB" if memory else ""
    message = f"the machine ran out of its memory{limit}; {failure.message}"
    return Failure(kind="OutOfMemory", message=message, phase=failure.phase)


def observation(witness: Witness, timeline: Recorder | None, failure: Failure | None, started_at: str) -> Observation:
    """Returns what was seen, judged by the rules of validity."""
    setup, meter, end = witness.setup, witness.meter, witness.end_mark
    ok = failure is None and witness.ready_s is not None
    # The bound is the machine's: a daemon outside of it is not held to the shape's CPU and bandwidth.
    bound = None if setup.case.outside else setup.bound.given(witness.moved)
    if bound is not None and ok and (witness.ready_s or 0.0) < bound.seconds:
        # One of the two is wrong: the host's rates are measured again before the trial is called invalid.
        bound = setup.bound.given(witness.moved, anew=True)
    fields: dict[str, Any] = {}
    if (before_ready := witness.traffic(witness.ready_mark)) is not None:
        fields["wire_before_ready"] = before_ready
    if witness.ready_mark is not None and not setup.case.outside:
        fields["memory_ready_bytes"] = witness.ready_mark.counters.memory_bytes
        fields["memory_ready_cache_bytes"] = witness.ready_mark.counters.memory_cache_bytes
    if (in_all := witness.traffic(end)) is not None:
        fields["wire"] = in_all
    if setup.case.outside:
        fields |= {"memory_peak_bytes": None, "disk_written_bytes": None}
    elif meter is not None and end is not None:
        fields["memory_peak_bytes"] = end.counters.memory_peak_bytes
        fields["disk_written_bytes"] = end.counters.since(meter.begin.counters).io_written_bytes
    return Observation(
        coldbench_version=__version__,
        session=setup.session,
        trial=setup.trial.trial,
        block=setup.trial.block,
        case=setup.case.case,
        started_at=started_at,
        image_digest=setup.image_digest,
        options=setup.settings.options,
        prefetch=setup.settings.prefetch_kind,
        status="ok" if ok else "failed",
        failure=failure,
        invalid=(*validity.check(witness.evidence(bound)), *witness.found_invalid),
        time_to_ready_s=witness.ready_s if ok else None,
        timeline=timeline.sorted() if timeline else (),
        phases=tuple(meter.phases) if meter and not setup.case.outside else (),
        lazy=witness.lazy,
        credits=witness.credits,
        workloads=tuple(witness.workloads),
        bound=bound,
        output_tail=witness.output_tail,
        details=witness.details,
        **fields,
    )
