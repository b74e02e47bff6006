"""This module describes what can fail after a start: the scenario's table, and the record of one fault trial.

A fault trial starts a case like any other, and then something that supplies its files fails: the daemon, the registry
or the disk below the cache. It is a kind of trial of its own, with a record of its own (``faults.jsonl``), so that
nothing that looks at start times ever sees one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.model.details import FaultDetails
from harness.model.near_miss import near_miss
from harness.model.observation import SCHEMA_VERSION, Case, Failure, Frozen, Invalidity
from harness.model.workload import Many, Seconds, Table

FaultName = Literal[
    "daemon-killed", "daemon-stopped", "daemon-restarted", "registry-refuses", "registry-blackhole", "registry-503",
    "registry-401", "disk-full", "nothing",
]  # fmt: skip
FAULTS: tuple[FaultName, ...] = get_args(FaultName)

#: When a fault begins: at readiness, when half of what is missing has come, or when the background fetch has ended.
ONSETS = ("ready", "background", "after")
_SECONDS = re.compile(r"[0-9]{1,4}s")
QUIET = "+quiet"


def _onset(text: str) -> str:
    if text not in ONSETS and _SECONDS.fullmatch(text) is None:
        raise ValueError(f'expected "ready", "background", "after" or seconds after ready as "30s", got {text!r}')
    return text


def _which(text: str) -> str:
    name, at, onset = text.removesuffix(QUIET).partition("@")
    if name not in FAULTS:
        raise ValueError(f"expected a fault ({', '.join(FAULTS)}), got {name!r}{near_miss(name, FAULTS)}")
    if at:
        _onset(onset)
    return text


class PlannedFault(Frozen):
    """Names one fault of one trial; ``nothing`` makes the same reads with all in order.

    ``quiet``: nobody reads while it lasts, so that only the background fetch meets it.
    """

    fault: FaultName
    onset: str
    quiet: bool = False

    @property
    def key(self) -> str:
        """Returns ``FAULT@ONSET[+quiet]``, unique among a case's faults."""
        return f"{self.fault}@{self.onset}{QUIET if self.quiet else ''}"

    @property
    def of_registry(self) -> bool:
        return self.fault.startswith("registry-")

    @property
    def mended(self) -> bool:
        """Says whether the fault ends: nobody but the engine itself brings back a daemon that was killed."""
        return self.fault != "daemon-killed"


class Faults(Table):
    """Says what fails after ready, and what is looked at then."""

    which: Many[Annotated[str, AfterValidator(_which)]] = Field(
        min_length=1,
        description='Faults: "registry-refuses" at each of the onsets, "daemon-killed@after" at one of its own, '
        '"registry-503+quiet" with nobody reading meanwhile. '
        '"nothing" makes the same reads with all in order, which tells what is slow from what fails.',
    )
    onsets: Many[Annotated[str, AfterValidator(_onset)]] = Field(
        default=("ready",),
        min_length=1,
        description='When: "ready", "background" (half of what is missing has come), "after" (the background fetch has '
        'ended), or seconds after ready ("30s").',
    )
    duration_s: Seconds = Field(default=30.0, description="How long a fault lasts; one of a killed daemon never ends.")
    deadline_s: Seconds = Field(default=10.0, description="A read that takes longer counts as one that hangs.")
    recovery_s: Seconds = Field(default=60.0, description="How long to wait for reads to work again afterwards.")
    untouched: int = Field(default=300, ge=1, le=100_000, description="Files that the start did not read, by seed.")
    touched: int = Field(default=100, ge=0, le=100_000, description="Files that the start did read, by seed.")
    mapped: int = Field(default=20, ge=0, le=10_000, description="Untouched files that are read through mmap.")
    blocks: int = Field(default=1, ge=1, le=1000, description="The first so many blocks hold a trial of every fault.")

    def planned(self, *, lazy: bool) -> tuple[PlannedFault, ...]:
        """Returns every fault of a case. A case whose image is there before ready has one onset: nothing comes after
        it.
        """
        found: dict[str, PlannedFault] = {}
        for text in self.which:
            name, _, onset = text.removesuffix(QUIET).partition("@")
            for at in (onset,) if onset else self.onsets:
                made = PlannedFault.model_validate(
                    {"fault": name, "onset": at if lazy else "ready", "quiet": text.endswith(QUIET)}
                )
                found.setdefault(made.key, made)
        return tuple(found.values())


def parse_fault(key: str) -> PlannedFault:
    """Returns the fault of a planned trial by its key. Raises ValueError for a key that names none."""
    _which(key)
    name, _, onset = key.removesuffix(QUIET).partition("@")
    return PlannedFault.model_validate({"fault": name, "onset": onset, "quiet": key.endswith(QUIET)})


Sample = Literal["touched", "untouched", "mapped", "evicted", "later"]


class SampleReads(Frozen):
    """Counts how the reads of one sample of files ended; every file is in one of ``ok`` to ``untried``.

    ``touched``: the start had read them; ``untouched``: it had not; ``mapped``: untouched, read through mmap;
    ``evicted``: touched, then dropped from the page cache; ``later``: untouched, read after the fault.
    """

    sample: Sample
    files: int
    ok: int = 0
    """Counts files that were read to the end in time."""
    failed: int = 0
    hung: int = 0
    """Counts files whose read was not answered within the deadline; their time to an error is censored there."""
    untried: int = 0
    """Counts files never begun, since the readers were all held up; neither a success nor a failure."""
    errors: dict[str, int] = Field(default_factory=dict)
    """Counts failed reads by the error's name (``EIO``), or the signal's (``SIGBUS``)."""
    error_s: float | None = None
    """Holds the median seconds from open to the error, over the reads that failed."""
    error_max_s: float | None = None
    deadline_s: float = 0.0
    wrong: int = 0
    """Counts files read without an error whose bytes are not the image's (sha256)."""
    wrong_bytes: int = 0
    """Sums up the sizes of the files in ``wrong``."""

    @property
    def tried(self) -> int:
        return self.files - self.untried

    @property
    def share(self) -> float | None:
        """Returns the share of the files tried that failed or hung; None where none was tried."""
        return (self.failed + self.hung) / self.tried if self.tried else None


class FaultObservation(Frozen):
    """Records one fault trial: a start, a fault, and how reads of the image's files ended. Times are in seconds."""

    schema_version: int = SCHEMA_VERSION
    coldbench_version: str
    session: str
    trial: int
    block: int
    case: Case
    fault: PlannedFault
    started_at: str
    """Says when it started: UTC, ISO 8601."""
    host: str = ""
    image_digest: str = ""
    status: Literal["ok", "failed"]
    """Is ``failed`` where the trial itself failed, or a wrong byte was read: either makes the run fail."""
    failure: Failure | None = None
    invalid: tuple[Invalidity, ...] = ()
    onset_s: float | None = None
    """Says when the fault began, after ready."""
    background_s: float | None = None
    """Says when the background fetch had ended, after ready; None where it had not when the fault began."""
    background_limit_s: float | None = None
    """Says how long the background fetch was waited for, after ready, where it did not end."""
    fault_s: float | None = None
    """Says how long the fault lasted."""
    hit: tuple[str, ...] = ()
    """Lists what was hit, as ``registry``, ``disk`` or ``daemon NAME``; empty where the case has no such thing."""
    reads: tuple[SampleReads, ...] = ()
    recovered_s: float | None = None
    """Counts from the fault's end until what had failed could be read again; 0 where nothing had; None: not in the
    time.
    """
    recovery_limit_s: float = 0.0
    background_resumed: bool | None = None
    """Says whether the background fetch ended after all; None where it had ended before, or none was promised."""
    resumed_s: float | None = None
    handed_over: bool | None = None
    """Says whether the kernel read local data without a daemon when the fault began, as far as the engine tells."""
    wrong_bytes: int = 0
    """Counts bytes of the files that were read without an error, at any time, and were not the image's (sha256)."""
    received_bytes: int = 0
    """Counts bytes from T0 to the end of the trial."""
    received_before_bytes: int = 0
    """Counts bytes from T0 until the fault began: what was there already is not at risk."""
    received_in_fault_bytes: int = 0
    image_bytes: int = 0
    """Counts the stored bytes of the image's layers."""
    unhealthy_s: float = 0.0
    """Says how long it took from the first read that failed or hung until reads worked again, or the trial ended."""
    falsely_healthy_s: float = 0.0
    """Says how long of ``unhealthy_s`` a process in the container that answers from memory said that all is well."""
    listing_healthy_s: float = 0.0
    """Says how long of ``unhealthy_s`` a process that lists the root directory first said that all is well."""
    leftovers: tuple[str, ...] = ()
    details: FaultDetails = FaultDetails()

    @property
    def valid(self) -> bool:
        """Says whether its figures may be shown: the trial did what was asked."""
        return self.onset_s is not None and not self.invalid and (self.status == "ok" or self.wrong_bytes > 0)

    def sample(self, name: Sample) -> SampleReads | None:
        """Returns the reads of one sample, None where it was not read."""
        return next((reads for reads in self.reads if reads.sample == name), None)
