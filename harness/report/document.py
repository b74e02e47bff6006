"""This module writes the comparison as a JSON document, which ``report --json`` and ``bench --json`` print; its schema
is shipped.

It holds numbers only: trials themselves are in ``observations.jsonl``. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from harness.report.answer import answer
from harness.report.density import densities
from harness.report.packing import packings
from harness.report.storms import storms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.comparison import Group
    from harness.report.faults import FaultLine

#: Version of this document; a change of meaning raises it.
DOCUMENT_VERSION = 2


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


#: JSON has no infinity.
OrNever = Annotated[float | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class SummaryPart(_Part):
    """Holds median, quartiles and extremes of the valid trials' values."""

    n: int
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float


class RatioPart(_Part):
    """Holds a ratio paired inside blocks: below 1 the case is the smaller (faster) one."""

    ratio: float
    low: float | None
    """This is the lower end of the 95 % interval; it is null below three blocks, where no spread can be estimated."""
    high: float | None
    blocks: int
    p_value: float | None
    detectable: float | None
    """This is the smallest change, as a factor above 1, that this spread and number of blocks finds with 80 % power."""


class BreakEvenPart(_Part):
    """Holds the running time after which the case has lost what its start saved; null means never."""

    seconds: OrNever
    low: OrNever
    """This break-even is at the lower end of the run-time ratio's interval: the late one."""
    high: OrNever
    saving_s: float
    ratio: float


class CasePart(_Part):
    """Holds one mode of a group; a summary is null where no trial is valid."""

    label: str
    """It is ``mode:preset``, and the engine where it is not the embedded one."""
    mode: str
    preset: str
    engine: str
    trials: int
    excluded: tuple[str, ...]
    """Says why trials are in no number, with how often."""
    ready: SummaryPart | None
    """Sums up the seconds from T0 until ready."""
    cpu: SummaryPart | None
    """Sums up the CPU seconds charged to the machine until ready."""
    received: SummaryPart | None
    """Sums up the bytes received before ready."""
    streamed: SummaryPart | None
    """Counts the bytes that a lazy mode brought before ready without being asked, since the CPU lay idle far from the
    registry; null where it brought none so.
    """
    requests: SummaryPart | None
    """Sums up the registry requests before ready."""
    throttled: SummaryPart | None
    """Sums up the seconds held back by the CPU quota before ready."""
    memory: SummaryPart | None
    """Sums up the most bytes of memory that the machine held."""
    memory_ready: SummaryPart | None
    """Sums up the bytes of memory at readiness; null where they were not recorded."""
    cache_ready: SummaryPart | None
    """Says how much of the bytes at readiness is page cache."""
    bound_s: float | None
    """This is the physical lower bound, the lowest of the valid trials'."""
    ratios: dict[str, RatioPart]
    """Holds time to ready against each baseline, by its label."""
    proven: frozenset[str]
    """Lists the baselines it differs from after Holm's correction over all ratios of the group."""


class RuntimePart(_Part):
    """Holds one run-time workload at one temperature under one mode, against the group's first baseline."""

    workload: str
    temperature: str
    label: str
    wall: SummaryPart
    ratio: RatioPart | None
    cpu: SummaryPart
    cpu_ratio: RatioPart | None
    fuse: SummaryPart | None
    """Counts FUSE requests of one pass; null where they were not counted."""
    break_even: BreakEvenPart | None
    proven: bool
    """Says whether the ratio differs from 1 after Holm's correction over all run-time ratios of the group."""


class KeyPart(_Part):
    """Holds what a group's cases have in common."""

    scenario: str
    shape: str
    distance: str
    compression: str
    """Says how the image's layers were compressed; empty where the scenario leaves them as they are."""
    read_percent: int | None
    """This is the share of the image's bytes that the starts read, where that is what they do."""
    machines: int | None
    """Counts the machines that a trial starts at the same moment; null where it has one."""


class CostPart(_Part):
    """Names a run-time workload that is proven to be slower than under the baseline."""

    workload: str
    temperature: str
    ratio: RatioPart
    break_even_s: OrNever
    """This is how many seconds of nothing but this workload use up the sooner start; null means never."""


class AnswerPart(_Part):
    """Holds the decision, as data and in words."""

    use: str | None
    """This is the label of the mode to use; null where nothing was ready."""
    ready_s: float | None
    against: str | None
    """Names what one has now: Docker where it was measured, else the first full pull."""
    against_ready_s: float | None
    sooner: RatioPart | None
    """This is the time to ready of ``use`` over that of ``against``."""
    first_touch: CostPart | None
    """This is the worst proven cost with cold files."""
    later: CostPart | None
    """This is the worst proven cost with files that were read before."""
    break_even_s: OrNever
    """This is the earliest break-even of all workloads that can be repeated; null: never, not measured, or too few
    blocks to know.
    """
    floor: str | None
    """Names the case whose image was on the machine already."""
    floor_ready_s: float | None
    over_floor: RatioPart | None
    blocks: int
    sure: str
    """It is ``sure``, ``unsure`` or ``too few blocks``."""
    findings: tuple[str, ...]
    """Says what failed under some modes only."""
    sentences: tuple[str, ...]


class ReadsPart(_Part):
    """Counts reads of one sample of files in all trials of one fault; every file is in one of ``ok`` to ``untried``."""

    sample: str
    """Names the sample. ``untouched``: the start had not read them; ``touched``; ``evicted``: touched, then out of the
    page cache; ``mapped``: untouched, through mmap; ``later``: untouched, after the fault.
    """
    files: int
    ok: int
    failed: int
    hung: int
    """Counts the reads that were not answered within ``deadline_s``."""
    untried: int
    errors: dict[str, int]
    error_s: float | None
    """This is the median of the seconds to the error."""
    deadline_s: float
    wrong: int
    """Counts the files read without an error whose bytes are not the image's."""


class StruckPart(_Part):
    """Holds one fault of one case."""

    fault: str
    """Names the fault as ``FAULT@ONSET``, with ``+quiet`` where nobody read meanwhile."""
    trials: int
    harmless: bool
    """Says whether every read was answered, and with the right bytes."""
    wrong_bytes: int
    recovered: bool | None
    """Says whether reads worked again after the fault; null where none failed."""
    recovered_s: OrNever
    reads: tuple[ReadsPart, ...]


class IndependencePart(_Part):
    """Says from when on after ready a case needs nobody; null seconds mean never, as far as was tried."""

    seconds: OrNever
    tried_s: float
    to_the_end: bool
    """Says whether it was tried after the background fetch; only then does null mean never."""


class FaultPart(_Part):
    """Says what fails under one case when the supply of its files does."""

    label: str
    independent: dict[str, IndependencePart]
    """Holds when the case needs no ``registry`` and no ``daemon`` any more, where that was tried."""
    struck: tuple[StruckPart, ...]
    excluded: tuple[str, ...]


class GroupPart(_Part):
    """Holds cases that are compared: one scenario on one shape at one distance."""

    key: KeyPart
    answer: AnswerPart
    baselines: tuple[str, ...]
    lines: tuple[CasePart, ...]
    runtime: tuple[RuntimePart, ...]
    faults: tuple[FaultPart, ...]
    """Holds what fails after ready, by case; empty where nothing was made to fail."""


class CrossingPart(_Part):
    """Holds the share in percent at which the full pull becomes the sooner one; null: not up to the
    largest measured.
    """

    at: OrNever
    low: OrNever
    high: OrNever


class SharePart(_Part):
    """Holds one case at one share of the image's bytes."""

    percent: int
    ratio: RatioPart
    """This is the time to ready over the full pull's."""
    ready_s: float
    received_bytes: float
    """This is the median of the bytes received."""
    bound_ratio: float | None
    """This is the case's lower bound over the full pull's."""


class ShareCurvePart(_Part):
    """Holds one case over the shares."""

    label: str
    pays_until: CrossingPart
    points: tuple[SharePart, ...]


class DensityPart(_Part):
    """Says how much of the image a start may read before one full pull is the sooner one."""

    scenario: str
    shape: str
    distance: str
    place: str
    """Names shape, distance and values of other axes, in words."""
    against: str
    """Names the full pull that all are compared with."""
    curves: tuple[ShareCurvePart, ...]


class PackedPointPart(_Part):
    """Holds one case with one compression; its figures are medians."""

    compression: str
    ready_s: float
    ratio: RatioPart | None
    """This is the time to ready over that with the first compression; null for the first."""
    received_bytes: float
    cpu_s: float
    bound_s: float | None


class PackedCasePart(_Part):
    """Holds one case with every compression that it was ready with."""

    label: str
    points: tuple[PackedPointPart, ...]


class PackingPart(_Part):
    """Compares the same image with its layers compressed otherwise."""

    scenario: str
    shape: str
    distance: str
    place: str
    """Names shape, distance and values of other axes, in words."""
    compressions: tuple[str, ...]
    cases: tuple[PackedCasePart, ...]


class StormPointPart(_Part):
    """Holds one case with so many machines; figures are medians over trials, those of single machines come from the
    median trial.
    """

    machines: int
    ready_s: float
    """Sums up the seconds until all are ready."""
    ratio: RatioPart | None
    """This is the time until all are ready over the same with the fewest machines; null for those."""
    each_s: tuple[float, ...]
    """Holds the seconds of each machine of the median trial, the soonest first."""
    received_bytes: float
    cpu_s: float
    """Sums up the CPU seconds of all machines until ready."""
    disk_written_bytes: int
    host_share: float | None
    """Says how busy the host's processors were, with whatever."""
    model_s: float
    """This is the least time that the fewest machines' bytes and CPU allow for this number."""


class StormCasePart(_Part):
    """Holds one case over the numbers of machines."""

    label: str
    points: tuple[StormPointPart, ...]
    beyond: tuple[tuple[int, float], ...]
    """Lists numbers that were not measured, each with the least time by arithmetic."""


class StormPart(_Part):
    """Holds the storms of machines that are started at the same moment."""

    scenario: str
    shape: str
    distance: str
    place: str
    """Names shape, distance, values of other axes, images and uplink, in words."""
    images: str
    uplink_bytes_s: int | None
    host_cores: int
    cases: tuple[StormCasePart, ...]


class Comparison(_Part):
    """Holds what a session's report states, as data."""

    schema_version: int = DOCUMENT_VERSION
    session: str
    """Names the session's directory."""
    report: str
    """Names the HTML file."""
    groups: tuple[GroupPart, ...]
    densities: tuple[DensityPart, ...]
    """Holds one for each scenario, shape and distance with an axis ``read_percent``."""
    packings: tuple[PackingPart, ...]
    """Holds one for each scenario, place and share with an axis ``compression``."""
    storms: tuple[StormPart, ...]
    """Holds one for each scenario and place whose trials start several machines."""


def make_document(session: str, report: str, groups: Sequence[Group]) -> Comparison:
    """Makes the document of a comparison."""
    parts = tuple(_group(group) for group in groups)
    found = tuple(DensityPart.model_validate(density) for density in densities(groups))
    packed = tuple(PackingPart.model_validate(packing) for packing in packings(groups))
    swept = tuple(StormPart.model_validate(sweep) for sweep in storms(groups))
    return Comparison(session=session, report=report, groups=parts, densities=found, packings=packed, storms=swept)


def _group(group: Group) -> GroupPart:
    return GroupPart(
        key=KeyPart.model_validate(group.key),
        answer=AnswerPart.model_validate(answer(group)),
        baselines=group.baselines,
        lines=tuple(CasePart.model_validate(line) for line in group.lines),
        runtime=tuple(RuntimePart.model_validate(line) for line in group.runtime),
        faults=tuple(_fault_line(line) for line in group.faults),
    )


def _fault_line(line: FaultLine) -> FaultPart:
    return FaultPart(
        label=line.label,
        independent={side: IndependencePart.model_validate(found) for side, found in line.independent.items()},
        struck=tuple(
            StruckPart(
                fault=struck.fault,
                trials=len(struck.trials),
                harmless=struck.harmless,
                wrong_bytes=struck.wrong_bytes,
                recovered=None if struck.recovered_s is None else math.isfinite(struck.recovered_s),
                recovered_s=struck.recovered_s,
                reads=tuple(ReadsPart.model_validate(reads) for reads in struck.reads),
            )
            for struck in line.struck.values()
        ),
        excluded=line.excluded,
    )
