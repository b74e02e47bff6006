"""This module writes comparisons and gates as JSON: what ``compare --json`` prints and ``gate.json`` holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from harness.gate.aa import AaRecord
from harness.gate.counters import Status
from harness.gate.result import Decision
from harness.report.document import RatioPart
from harness.stats.paired import Verdict

if TYPE_CHECKING:
    from harness.gate.comparing import Compared
    from harness.gate.result import GateResult

DOCUMENT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class DifferencePart(_Part):
    """Names one thing that is not the same on both sides; decisive ones make times incomparable."""

    what: str
    baseline: str
    candidate: str
    decisive: bool


class HostsPart(_Part):
    """Says, where several hosts took part, the overall ratio's model and how much the hosts differ."""

    hosts: int
    model: Literal["random effects over hosts", "these hosts only"]
    tau_log: float
    inconsistency: float
    heterogeneity_p: float | None


class LinePart(_Part):
    """Holds candidate over baseline of one metric of one case."""

    case: str
    metric: str
    ratio: RatioPart
    candidate: float
    """This is the median of the valid trials."""
    baseline: float
    margin: float
    adjusted_p: float | None
    """This p-value is corrected by Holm for all lines that decide together; it is null for what only informs."""
    proven: bool
    """Says whether the difference, whatever its size, survives that correction."""
    verdict: Verdict | None
    hosts: HostsPart | None


class ComparedPart(_Part):
    """Holds what ``coldbench compare --json`` prints."""

    schema_version: int = DOCUMENT_VERSION
    baseline: str
    candidate: str
    host: str
    differences: tuple[DifferencePart, ...]
    anyway: bool
    """It is true where decisive differences were overruled: these numbers compare what is not comparable."""
    side_by_side: bool
    lines: tuple[LinePart, ...]
    alone: tuple[str, ...]
    excluded: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    """Describes the hosts that took part, where a side has several."""


def document(compared: Compared) -> str:
    """Writes a comparison as JSON."""
    return ComparedPart.model_validate(compared).model_dump_json(indent=2)


class CounterPart(_Part):
    """Holds one counter or image metric; ``case`` is empty for the image's own."""

    case: str
    metric: str
    baseline: float
    candidate: float
    tolerance: float
    status: Status


class RegressionPart(_Part):
    """Names one regression that counts, and says why."""

    case: str
    metric: str
    sentence: str
    reasons: tuple[str, ...]


class FailurePart(_Part):
    """Holds the error that a gate ended in."""

    kind: str
    """It is a stable name, as `HostUnfit`."""
    message: str
    exit_code: int


class GatePart(_Part):
    """Holds what ``gate.json`` holds."""

    schema_version: int = DOCUMENT_VERSION
    scenario: str
    file: str
    baseline: str
    decision: Decision
    exit_code: int
    """This is the exit code that the command ended with."""
    host: str
    blocks: int
    most_blocks: int
    alpha: float
    lines: tuple[LinePart, ...]
    confirmation: tuple[LinePart, ...]
    counters: tuple[CounterPart, ...]
    regressions: tuple[RegressionPart, ...]
    unconfirmed: tuple[str, ...]
    differences: tuple[DifferencePart, ...]
    anyway: bool
    notes: tuple[str, ...]
    alone: tuple[str, ...]
    excluded: tuple[str, ...]
    aa: AaRecord | None
    repeat: str
    failure: FailurePart | None
    """It is set where the gate could not be run to its end; `decision` is then `error`."""


def gate_document(result: GateResult) -> str:
    """Writes a gate's result as JSON."""
    return GatePart.model_validate(result).model_dump_json(indent=2)
