"""This module makes the record of a fault trial: it judges what was seen, and puts it into the observation to store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness import __version__
from harness.model.details import FaultDetails
from harness.model.faults import FaultObservation
from harness.model.observation import Failure
from harness.session import validity

if TYPE_CHECKING:
    from harness.model.faults import PlannedFault, SampleReads
    from harness.model.observation import LazyUsage
    from harness.probes.fault_reads import Read
    from harness.session.evidence import Witness

WRONG_BYTES = "WrongBytes"
"""It names the failure of a trial that read a wrong byte."""

#: Rules that say that this was not a start of the case; the others judge times, or are what the fault brings about.
_RULES = frozenset({"not-lazy", "fuse-in-full-pull", "not-there", "limits-not-as-asked"})
_LOG_CHARACTERS = 2000


@dataclass
class Seen:
    """Keeps what is seen of a fault; fields are as in ``FaultObservation``, times on CLOCK_MONOTONIC in seconds."""

    recovery_limit_s: float
    onset_s: float | None = None
    background_s: float | None = None
    background_limit_s: float | None = None
    fault_s: float | None = None
    hit: tuple[str, ...] = ()
    reads: list[SampleReads] = field(default_factory=list)
    wrong_later: list[Read] = field(default_factory=list)
    """Lists the reads after the fault that gave wrong bytes."""
    machine: str = ""
    """Holds the machine's ID; it tells what this machine leaves behind from what others leave."""
    first_bad: float | None = None
    well_at: float | None = None
    recovered_s: float | None = None
    background_resumed: bool | None = None
    resumed_s: float | None = None
    usage: LazyUsage | None = None
    received_bytes: int = 0
    received_before_bytes: int = 0
    received_in_fault_bytes: int = 0
    unhealthy_s: float = 0.0
    falsely_healthy_s: float = 0.0
    listing_healthy_s: float = 0.0
    leftovers: tuple[str, ...] = ()


def observation(
    witness: Witness, seen: Seen, fault: PlannedFault, failure: Failure | None, started_at: str
) -> FaultObservation:
    """Returns what was seen, as it is stored. A wrong byte is a failure, whatever else there was."""
    setup = witness.setup
    wrong = sum(reads.wrong for reads in seen.reads) + len(seen.wrong_later)
    if wrong and failure is None:
        message = f"{wrong} file(s) were read without an error and held other bytes than the image's"
        failure = Failure(kind=WRONG_BYTES, message=message, phase="fault")
    if seen.leftovers and failure is None:
        failure = Failure(kind="MachineError", message=f"left behind: {', '.join(seen.leftovers)}", phase="tear-down")
    broken = (*validity.check(witness.evidence(None)), *witness.found_invalid)
    versions = ", ".join(f"{name} {version}" for name, version in (witness.told.versions or {}).items())
    told = {"traceback": witness.traceback, "engine_log": witness.engine_log, "versions": versions}
    return FaultObservation(
        coldbench_version=__version__,
        session=setup.session,
        trial=setup.trial.trial,
        block=setup.trial.block,
        case=setup.case.case,
        fault=fault,
        started_at=started_at,
        image_digest=setup.image_digest,
        status="failed" if failure else "ok",
        failure=failure,
        invalid=tuple(one for one in broken if one.rule in _RULES or one in witness.found_invalid),
        onset_s=seen.onset_s,
        background_s=seen.background_s,
        background_limit_s=seen.background_limit_s,
        fault_s=seen.fault_s,
        hit=seen.hit,
        reads=tuple(seen.reads),
        wrong_bytes=sum(reads.wrong_bytes for reads in seen.reads) + sum(read.size for read in seen.wrong_later),
        recovered_s=seen.recovered_s,
        recovery_limit_s=seen.recovery_limit_s,
        background_resumed=seen.background_resumed,
        resumed_s=seen.resumed_s,
        handed_over=seen.usage.handed_over if seen.usage is not None else None,
        received_bytes=seen.received_bytes,
        received_before_bytes=seen.received_before_bytes,
        received_in_fault_bytes=seen.received_in_fault_bytes,
        image_bytes=setup.image_compressed_bytes,
        unhealthy_s=seen.unhealthy_s,
        falsely_healthy_s=seen.falsely_healthy_s,
        listing_healthy_s=seen.listing_healthy_s,
        leftovers=seen.leftovers,
        details=FaultDetails(**{name: text[-_LOG_CHARACTERS:] for name, text in told.items() if text}),
    )
