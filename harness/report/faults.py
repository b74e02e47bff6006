"""This module says what a session's fault trials show, per case: what fails when the supply does, and from when on
nothing can.

A case is *independent* of the registry, or of its daemon, from the earliest onset at which no trial of such a fault
hurt a single read: none failed, none hung, none was left untried. Where there is no such onset the answer is *never*,
which is a value; where nothing was tried after the background fetch, it is not by the latest onset that was tried.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.model.faults import FAULTS, Sample, SampleReads
from harness.report import wording
from harness.report.cells import Cell, Table, cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from harness.model.faults import FaultObservation

Side = Literal["registry", "daemon"]
SIDES: tuple[Side, ...] = ("registry", "daemon")
_WORDS: dict[Side, str] = {"registry": "registry may go", "daemon": "daemon may die"}
_AT_ONCE_S = 0.05
_SAMPLES: tuple[Sample, ...] = ("untouched", "touched", "evicted", "mapped", "later")


@dataclass(frozen=True, slots=True)
class Struck:
    """Holds all valid trials of one fault of one case, their reads taken together."""

    fault: str
    trials: tuple[FaultObservation, ...]
    reads: tuple[SampleReads, ...]

    @property
    def harmless(self) -> bool:
        """Says whether every read of every trial was answered, and with the right bytes."""
        return bool(self.reads) and not any(r.failed or r.hung or r.untried or r.wrong for r in self.reads)

    @property
    def wrong_bytes(self) -> int:
        return sum(trial.wrong_bytes for trial in self.trials)

    def median(self, value: Callable[[FaultObservation], float | None]) -> float | None:
        """Returns the median over the trials that have a value; of an even number the higher of the
        two in the middle.
        """
        found = [float(v) for trial in self.trials if (v := value(trial)) is not None]
        return statistics.median_high(found) if found else None

    @property
    def recovered_s(self) -> float | None:
        """Returns the median seconds until reads worked again, infinite where they did not in any trial; None where
        none failed.
        """
        if not any(r.failed or r.hung for r in self.reads):
            return None
        return self.median(lambda t: math.inf if t.recovered_s is None else t.recovered_s)


@dataclass(frozen=True, slots=True)
class Independence:
    """Says from when on after ready a case needs nobody, in seconds; infinite means never, as far as was ``tried_s``.

    ``to_the_end``: it was tried with the background fetch ended, or given up; only then is *never* the answer.
    """

    seconds: float
    tried_s: float
    to_the_end: bool


@dataclass(frozen=True, slots=True)
class FaultLine:
    """Holds one case's fault trials, by fault in the order of the plan."""

    label: str
    struck: dict[str, Struck] = field(default_factory=dict)
    independent: dict[Side, Independence] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()


def line(label: str, trials: Sequence[FaultObservation]) -> FaultLine:
    """Sums up what the fault trials of one case say."""
    by_fault: dict[str, list[FaultObservation]] = {}
    for trial in trials:
        if trial.valid:
            by_fault.setdefault(trial.fault.key, []).append(trial)
    struck = {key: Struck(key, tuple(seen), _pooled(seen)) for key, seen in sorted(by_fault.items())}
    why = Counter(
        f"{t.fault.key}: {t.failure.kind}: {t.failure.message}"
        if t.failure
        else f"{t.fault.key}: {'; '.join(f'{i.rule}: {i.reason}' for i in t.invalid)}"
        for t in trials
        if not t.valid
    )
    independent = {side: found for side in SIDES if (found := _independence(struck.values(), side)) is not None}
    return FaultLine(label, struck, independent, tuple(f"{count} x {reason}" for reason, count in why.items()))


def _pooled(trials: Sequence[FaultObservation]) -> tuple[SampleReads, ...]:
    pooled = []
    for sample in _SAMPLES:
        found = [reads for trial in trials if (reads := trial.sample(sample)) is not None]
        if not found:
            continue
        times = [reads.error_s for reads in found if reads.error_s is not None]
        errors: Counter[str] = Counter()
        for reads in found:
            errors.update(reads.errors)
        pooled.append(
            SampleReads(
                sample=sample,
                files=sum(r.files for r in found),
                ok=sum(r.ok for r in found),
                failed=sum(r.failed for r in found),
                hung=sum(r.hung for r in found),
                untried=sum(r.untried for r in found),
                errors=dict(errors),
                error_s=statistics.median(times) if times else None,
                error_max_s=max((r.error_max_s for r in found if r.error_max_s is not None), default=None),
                deadline_s=max(r.deadline_s for r in found),
                wrong=sum(r.wrong for r in found),
                wrong_bytes=sum(r.wrong_bytes for r in found),
            )
        )
    return tuple(pooled)


def _independence(struck: Iterable[Struck], side: Side) -> Independence | None:
    """Returns the independence; None where no such fault was tried. For the daemon's, the fault is that it was
    killed.
    """
    by_onset: dict[str, list[Struck]] = {}
    for one in struck:
        fault = one.trials[0].fault
        if not fault.quiet and (fault.of_registry if side == "registry" else fault.fault == "daemon-killed"):
            by_onset.setdefault(fault.onset, []).append(one)
    if not by_onset:
        return None
    tried = max(trial.onset_s or 0.0 for many in by_onset.values() for one in many for trial in one.trials)
    times = [_time(onset, many) for onset, many in by_onset.items() if all(one.harmless for one in many)]
    to_the_end = any(onset == "after" for onset in by_onset)
    return Independence(min(times, default=math.inf), tried, to_the_end)


def _time(onset: str, struck: Sequence[Struck]) -> float:
    """Returns an onset in seconds after ready: the background fetch's own end where the trials waited for it."""
    if onset == "ready":
        return 0.0
    times = [one.median(lambda t: t.onset_s if t.background_s is None else t.background_s) for one in struck]
    return max(time for time in times if time is not None)


# -- tables


def independent(found: Independence | None) -> str:
    """Writes a cell: seconds after ready, or never."""
    if found is None:
        return wording.NO_NUMBER
    if math.isinf(found.seconds):
        return "never" if found.to_the_end else f"not by {wording.seconds(found.tried_s)}"
    return "at ready" if found.seconds == 0 else wording.seconds(found.seconds)


def matrix(lines: Sequence[FaultLine]) -> Table:
    """Makes the table of faults by cases: what fails, with which error, how soon, and when it comes back; independence
    comes first.
    """
    keys = sorted(dict.fromkeys(key for one in lines for key in one.struck), key=_order)
    head = ("what fails", *(one.label for one in lines))
    rows = [
        cells(f"{_WORDS[side]}, after ready", *(independent(one.independent.get(side)) for one in lines))
        for side in SIDES
    ]
    rows += [cells(key, *(_struck(one.struck.get(key)) for one in lines)) for key in keys]
    return Table(head, tuple(rows))


def _order(key: str) -> tuple[int, str]:
    """Returns a key that sorts as the faults are listed, and by onset."""
    name = key.partition("@")[0]
    return next(number for number, fault in enumerate(FAULTS) if fault == name), key


def _struck(struck: Struck | None) -> str:
    if struck is None:
        return wording.NO_NUMBER
    said = [_reads(reads) for reads in struck.reads if reads.failed or reads.hung or not reads.tried]
    if struck.wrong_bytes:
        said.insert(0, f"WRONG BYTES: {wording.size(struck.wrong_bytes)}")
    untried = sum(reads.untried for reads in struck.reads)
    if not said and not untried:
        return "nothing fails"
    recovered = struck.recovered_s
    if recovered is not None:
        limit = max(trial.recovery_limit_s for trial in struck.trials)
        said.append(f"not back in {limit:g} s" if math.isinf(recovered) else f"back after {wording.seconds(recovered)}")
    return "; ".join(said or ["nothing tried fails"]) + (f" ({untried} files untried)" if untried else "")


def _reads(reads: SampleReads) -> str:
    if not reads.tried:
        return f"{reads.sample} none tried"
    how = []
    if reads.failed:
        how.append(f"{_percent(reads.failed, reads.tried)} {'/'.join(reads.errors)} {_soon(reads.error_s)}")
    if reads.hung:
        how.append(f"{_percent(reads.hung, reads.tried)} hang over {reads.deadline_s:g} s")
    return f"{reads.sample} {' and '.join(how)}"


def _soon(seconds: float | None) -> str:
    return "at once" if seconds is None or seconds < _AT_ONCE_S else f"after {wording.seconds(seconds)}"


def _percent(part: int, whole: int) -> str:
    """Writes a percentage; never 0 % for what happened, nor 100 % for what did not always."""
    share = 100 * part / whole
    if 0 < share < 1:
        return "under 1 %"
    return "over 99 %" if 99 < share < 100 else f"{share:.0f} %"


def rest(lines: Sequence[FaultLine]) -> Table:
    """Makes one row per case and fault, with everything else that was recorded."""
    head = (
        "mode", "fault", "trials", "begun, after ready", "hit", "files read", "fetched before, over image",
        "fetched in all",
        "background resumes", "unhealthy", "probe from memory green", "probe that lists green",
    )  # fmt: skip
    rows = []
    for one in lines:
        for key, struck in one.struck.items():
            hit = sorted({hit for trial in struck.trials for hit in trial.hit})
            rows.append(
                cells(
                    one.label,
                    key,
                    str(len(struck.trials)),
                    wording.seconds(struck.median(lambda t: t.onset_s)),
                    ", ".join(hit) or "nothing to hit",
                    str(sum(reads.tried for reads in struck.reads)),
                    _factor(struck.median(lambda t: _share(t.received_before_bytes, t))),
                    _factor(struck.median(lambda t: _share(t.received_bytes, t))),
                    _resumes(struck),
                    *_health(struck),
                )
            )
    return Table(head, tuple(rows))


def _share(received_bytes: int, trial: FaultObservation) -> float | None:
    """Returns the bytes as a share of the image; None where nothing was counted."""
    return received_bytes / trial.image_bytes if trial.image_bytes and received_bytes else None


def _health(struck: Struck) -> tuple[str, str, str]:
    """Says how long reads failed, and how long of that two probes said that all is well; nothing where none failed."""
    unhealthy = struck.median(lambda t: t.unhealthy_s)
    if not unhealthy:
        return wording.NO_NUMBER, wording.NO_NUMBER, wording.NO_NUMBER
    return (
        wording.seconds(unhealthy),
        f"{struck.median(lambda t: t.falsely_healthy_s):.0f} s",
        f"{struck.median(lambda t: t.listing_healthy_s):.0f} s",
    )


def _factor(value: float | None) -> str:
    return wording.NO_NUMBER if value is None else f"{value:.2f}x"


def _resumes(struck: Struck) -> str:
    said = [trial.background_resumed for trial in struck.trials if trial.background_resumed is not None]
    if not said:
        return wording.NO_NUMBER
    if not all(said):
        return "no" if not any(said) else f"{sum(said)} of {len(said)}"
    return f"after {wording.seconds(struck.median(lambda t: t.resumed_s))}"


def excluded(lines: Sequence[FaultLine]) -> list[str]:
    """Says what is in no number, and why."""
    return [f"{one.label}: {reason}" for one in lines for reason in one.excluded]


# -- the sentence


def sentence(lines: Sequence[FaultLine], use: str | None) -> str:
    """Says, for the answer, when the mode to use needs nobody any more, and which others never do; empty where not
    tried.
    """
    mine = next((one for one in lines if one.label == use), None)
    if mine is None or not mine.independent:
        return ""
    said = _needs(mine)
    never = [one.label for one in lines if one is not mine and _never(one)]
    return f"{mine.label} is {said}" + (f"; {', '.join(never)} never" if never else "") + "."


def _never(one: FaultLine) -> bool:
    return any(math.isinf(found.seconds) and found.to_the_end for found in one.independent.values())


def _needs(one: FaultLine) -> str:
    texts = {side: independent(found) for side, found in one.independent.items()}
    if len(set(texts.values())) == 1:
        return _when(" and ".join(texts), next(iter(texts.values())))
    return " and ".join(_when(side, text) for side, text in texts.items())


def _when(whom: str, text: str) -> str:
    if text == "never" or text.startswith("not by"):
        return f"{text} independent of {whom}"
    return f"independent of {whom} {text if text == 'at ready' else f'after {text}'}"


__all__ = ["Cell", "FaultLine", "Independence", "Struck", "excluded", "line", "matrix", "rest", "sentence"]
