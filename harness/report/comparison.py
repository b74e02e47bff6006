"""This module turns observations into what a report states: per group of comparable cases, one line per mode, ratios
with intervals.

A *group* is scenario x engine-independent shape x distance; inside it every mode is compared, paired by block, with
the baselines: overlay2 as Docker does it, and the best full pull there is. Cases without a valid trial keep their line
and say why they have no number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.model import modes
from harness.model.axes import family
from harness.model.observation import BEFORE_READY
from harness.report.faults import FaultLine
from harness.report.faults import line as fault_line
from harness.stats.breakeven import BreakEven, break_even
from harness.stats.correction import holm
from harness.stats.paired import MIN_BLOCKS, PairedRatio, paired_ratio
from harness.stats.summary import Summary, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.faults import FaultObservation
    from harness.model.observation import Case, Observation


#: A difference is called proven when it would be found by chance in one table of twenty.
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class GroupKey:
    scenario: str
    shape: str
    distance: str
    compression: str = ""
    """Says how the image's layers were compressed, where the scenario says so."""
    read_percent: int | None = None
    """This is the share of the image's bytes that its starts read, where that is what they do."""
    machines: int | None = None
    """Counts the machines that a trial starts at the same moment; None where it has one."""
    limits: str = "machine"
    """Says what the shape holds for: ``container`` is a group of its own, which is compared with no machine's."""

    def place(self, axis: str) -> str:
        """Names shape and distance, and the values of all axes but the one of this name: where a sweep along it is."""
        parts = [self.shape]
        if self.distance != "none":
            parts.append(f"registry {self.distance}")
        if self.compression and axis != "compression":
            parts.append(self.compression)
        if self.read_percent is not None and axis != "read_percent":
            parts.append(f"{self.read_percent} % read")
        if self.machines is not None and axis != "machines":
            parts.append(f"{self.machines} machines")
        if self.limits != "machine":
            parts.append(f"limits for the {self.limits} only")
        return ", ".join(parts)

    @property
    def family(self) -> str:
        """Names the scenario that this is a point of; itself where it is on no axis."""
        return family(self.scenario, self.compression, self.read_percent, self.machines)

    @property
    def title(self) -> str:
        distance = "" if self.distance == "none" else f", registry {self.distance}"
        held = "" if self.limits == "machine" else f", limits for the {self.limits} only"
        return f"{self.scenario} on {self.shape}{distance}{held}"


@dataclass(frozen=True, slots=True)
class CaseLine:
    """Holds one case of a group: its summaries over valid trials (None where there is none) and its ratios to
    baselines.
    """

    label: str
    mode: str
    preset: str
    engine: str
    trials: int
    excluded: tuple[str, ...]
    ready: Summary | None
    cpu: Summary | None
    received: Summary | None
    requests: Summary | None
    throttled: Summary | None
    memory: Summary | None
    memory_ready: Summary | None
    """Sums up the bytes at readiness; None where it was not recorded."""
    cache_ready: Summary | None
    """Says how much of the bytes at readiness is page cache."""
    bound_s: float | None
    lazy: bool
    """Says whether the container started before its image was there."""
    style: modes.Style
    """Says how figures draw this case."""
    role: modes.Role
    """Says what this case is compared for."""
    ratios: dict[str, PairedRatio] = field(default_factory=dict)
    median_trial: Observation | None = None
    ready_by_block: dict[int, float] = field(default_factory=dict)
    """Holds the seconds to ready of the valid trials, by block: what pairs with another case's."""
    streamed: Summary | None = None
    """Sums up the bytes that valid lazy trials brought before readiness without being asked for them; None where none
    did.
    """
    restarts: int = 0
    """Counts the daemons that died in valid trials, and were replaced."""
    proven: frozenset[str] = frozenset()
    """Lists the baselines it differs from after the correction over all ratios of its table."""

    @property
    def is_floor(self) -> bool:
        """Says whether the image was on the machine already."""
        return self.role is modes.Role.FLOOR

    @property
    def offered(self) -> bool:
        """Says whether the answer may recommend this case."""
        return self.role is modes.Role.OFFER


@dataclass(frozen=True, slots=True)
class RuntimeLine:
    """Holds one run-time workload at one temperature under one mode, against the baseline of its group."""

    workload: str
    temperature: str
    label: str
    wall: Summary
    ratio: PairedRatio | None
    cpu: Summary
    cpu_ratio: PairedRatio | None
    """Holds the CPU seconds of workload and daemon over the baseline's: what a CFS quota's periods cannot blur."""
    fuse: Summary | None
    """Counts FUSE requests of one pass; None where they were not counted."""
    break_even: BreakEven | None
    proven: bool = False
    """Says whether the ratio differs from 1 after the correction over all ratios of its table."""


@dataclass(frozen=True, slots=True)
class Group:
    key: GroupKey
    baselines: tuple[str, ...]
    lines: tuple[CaseLine, ...]
    runtime: tuple[RuntimeLine, ...]
    failed_workloads: dict[str, dict[str, str]] = field(default_factory=dict)
    """Says by workload under which cases it failed in a valid trial, and with what message."""
    faults: tuple[FaultLine, ...] = ()
    """Says what fails after ready, by case; empty where no fault trial was run."""

    @property
    def floor(self) -> str:
        """Returns the label of the case whose image was on the machine already; empty where none was measured."""
        return next((line.label for line in self.lines if line.is_floor and line.ready is not None), "")

    def line(self, label: str) -> CaseLine | None:
        """Returns the case's line, None where the group has no such case."""
        return next((line for line in self.lines if line.label == label), None)

    def ratio(self, candidate: str, baseline: str) -> PairedRatio | None:
        """Returns time to ready of one case over another's, paired; None where no block holds a valid trial of both."""
        mine, theirs = self.line(candidate), self.line(baseline)
        return _pairs(mine.ready_by_block, theirs.ready_by_block) if mine and theirs else None


def label_of(observation: Observation) -> str:
    """Returns ``mode:preset``, with the engine when it is not the embedded one."""
    return label_of_case(observation.case)


def label_of_case(case: Case) -> str:
    """Returns the label of a case, as ``label_of``."""
    engine = "" if case.engine == modes.EMBEDDED else f" ({case.engine})"
    return f"{case.mode}:{case.variant}{engine}"


def _place(case: Case) -> tuple[int, int, int]:
    return modes.place(case.engine, case.mode, case.preset)


def _is_baseline(case: Case) -> bool:
    """Says whether it is a full pull that others are compared with; one that changes its preset's policies is none."""
    return not case.label and modes.is_baseline(case.engine, case.mode, case.preset)


def compare(observations: Sequence[Observation], struck: Sequence[FaultObservation] = ()) -> list[Group]:
    """Compares all groups, in the order their first trials ran; fault trials stand apart, and no
    start time is theirs.
    """
    grouped: dict[GroupKey, list[Observation]] = {}
    for o in observations:
        grouped.setdefault(_key(o.case), []).append(o)
    failing: dict[GroupKey, list[FaultObservation]] = {}
    for trial in struck:
        failing.setdefault(_key(trial.case), []).append(trial)
    return [replace(_group(key, members), faults=_faults(failing.get(key, []))) for key, members in grouped.items()]


def _key(case: Case) -> GroupKey:
    return GroupKey(
        case.scenario, case.shape, case.distance, case.compression, case.read_percent, case.machines, case.limits
    )


def _faults(trials: Sequence[FaultObservation]) -> tuple[FaultLine, ...]:
    by_label: dict[str, list[FaultObservation]] = {}
    for trial in sorted(trials, key=lambda t: (*_place(t.case), label_of_case(t.case))):
        by_label.setdefault(label_of_case(trial.case), []).append(trial)
    return tuple(fault_line(label, seen) for label, seen in by_label.items())


def _pairs(candidate: dict[int, float], baseline: dict[int, float]) -> PairedRatio | None:
    blocks = sorted(candidate.keys() & baseline.keys())
    if not blocks:
        return None
    return paired_ratio([candidate[b] for b in blocks], [baseline[b] for b in blocks])


def _group(key: GroupKey, members: Sequence[Observation]) -> Group:
    by_label: dict[str, list[Observation]] = {}
    for o in members:
        by_label.setdefault(label_of(o), []).append(o)
    cases = {label: trials[0].case for label, trials in by_label.items()}
    labels = sorted(by_label, key=lambda label: (*_place(cases[label]), label))
    baselines = tuple(label for label in labels if _is_baseline(cases[label]))
    if not baselines:
        # A group without a full pull still has a strongest line to stand against: its first one.
        baselines = tuple(labels[:1]) if len(labels) > 1 else ()
    ready = {
        name: {o.block: o.time_to_ready_s for o in by_label[name] if o.valid and o.time_to_ready_s} for name in labels
    }
    lines = tuple(_line(name, by_label[name], baselines, ready) for name in labels)
    runtime = _marked_runtime(_runtime(by_label, labels, baselines, ready))
    return Group(key, baselines, _marked_lines(lines), runtime, _failed_workloads(by_label, labels))


def _survivors(ratios: dict[str, PairedRatio]) -> frozenset[str]:
    """Returns which of a table's ratios differ from 1 at 5 % after Holm's correction over all of them.

    A bare 95 % interval in every cell of a large table is a promise of false alarms. Fewer blocks than a verdict needs
    prove nothing.
    """
    adjusted = holm({name: ratio.p_value for name, ratio in ratios.items() if ratio.p_value is not None})
    return frozenset(name for name, p in adjusted.items() if p < ALPHA and ratios[name].blocks >= MIN_BLOCKS)


def _marked_lines(lines: Sequence[CaseLine]) -> tuple[CaseLine, ...]:
    cells = {f"{line.label}\n{base}": ratio for line in lines for base, ratio in line.ratios.items()}
    proven = _survivors(cells)
    return tuple(
        replace(line, proven=frozenset(base for base in line.ratios if f"{line.label}\n{base}" in proven))
        for line in lines
    )


def _marked_runtime(lines: Sequence[RuntimeLine]) -> tuple[RuntimeLine, ...]:
    proven = _survivors({str(number): line.ratio for number, line in enumerate(lines) if line.ratio is not None})
    return tuple(replace(line, proven=str(number) in proven) for number, line in enumerate(lines))


def _failed_workloads(by_label: dict[str, list[Observation]], labels: Sequence[str]) -> dict[str, dict[str, str]]:
    failed: dict[str, dict[str, str]] = {}
    for label in labels:
        for o in by_label[label]:
            for w in o.workloads:
                if o.valid and w.failure is not None:
                    failed.setdefault(w.workload, {}).setdefault(label, w.failure.message)
    return failed


def _line(
    name: str, trials: Sequence[Observation], baselines: Sequence[str], ready: dict[str, dict[int, float]]
) -> CaseLine:
    valid = [o for o in trials if o.valid]
    why = Counter(
        f"{o.failure.kind}: {o.failure.message}" if o.failure else "; ".join(f"{i.rule}: {i.reason}" for i in o.invalid)
        for o in trials
        if not o.valid
    )
    ordered = sorted(valid, key=lambda o: o.time_to_ready_s or 0.0)
    bounds = [o.bound.seconds for o in valid if o.bound]
    case = trials[0].case
    ratios = {}
    for baseline in baselines:
        ratio = _pairs(ready[name], ready[baseline]) if baseline != name else None
        if ratio is not None:
            ratios[baseline] = ratio
    return CaseLine(
        label=name,
        mode=case.mode,
        preset=case.variant,
        engine=case.engine,
        trials=len(trials),
        excluded=tuple(f"{count} x {reason}" for reason, count in why.items()),
        ready=summarise([o.time_to_ready_s for o in valid if o.time_to_ready_s is not None]),
        cpu=summarise([o.cpu_to_ready_s for o in valid if o.cpu_to_ready_s is not None]),
        received=summarise(
            [float(o.wire_before_ready.received_bytes) for o in valid if o.wire_before_ready.received_bytes is not None]
        ),
        requests=summarise(
            [float(o.wire_before_ready.requests) for o in valid if o.wire_before_ready.requests is not None]
        ),
        throttled=summarise(
            [sum(p.throttled_s for p in o.phases if p.phase in BEFORE_READY) for o in valid if o.phases]
        ),
        memory=summarise([float(o.memory_peak_bytes) for o in valid if o.memory_peak_bytes is not None]),
        memory_ready=summarise([float(o.memory_ready_bytes) for o in valid if o.memory_ready_bytes is not None]),
        cache_ready=summarise(
            [float(o.memory_ready_cache_bytes) for o in valid if o.memory_ready_cache_bytes is not None]
        ),
        bound_s=min(bounds) if bounds else None,
        lazy=modes.is_lazy(case.engine, case.mode, case.preset),
        style=modes.style(case.engine, case.mode, case.preset),
        role=modes.role(case.engine, case.mode, case.preset),
        ratios=ratios,
        median_trial=ordered[(len(ordered) - 1) // 2] if ordered else None,
        ready_by_block=ready[name],
        streamed=_streamed(valid),
        restarts=sum(o.lazy.restarts or 0 for o in valid if o.lazy is not None),
    )


def _streamed(valid: Sequence[Observation]) -> Summary | None:
    """Returns what lazy starts streamed before they were ready: of all of them, as soon as one did."""
    streamed = [float(o.lazy.bytes_streamed_before_ready) for o in valid if o.lazy is not None]
    return summarise(streamed) if any(streamed) else None


def _runtime(
    by_label: dict[str, list[Observation]],
    labels: Sequence[str],
    baselines: Sequence[str],
    ready: dict[str, dict[int, float]],
) -> list[RuntimeLine]:
    # wall[workload, temperature][label][block]
    wall: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    cpu: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    fuse: dict[tuple[str, str, str], list[float]] = {}
    for name in labels:
        for o in by_label[name]:
            if not o.valid:
                continue
            for w in o.workloads:
                if w.failure is not None or w.wall_s <= 0:
                    continue
                wall.setdefault((w.workload, w.temperature), {}).setdefault(name, {})[o.block] = w.wall_s
                used = w.cpu_workload_s + w.cpu_daemon_s
                cpu.setdefault((w.workload, w.temperature), {}).setdefault(name, {})[o.block] = used
                if w.fuse_requests is not None:
                    fuse.setdefault((w.workload, w.temperature, name), []).append(float(w.fuse_requests))
    lines = []
    baseline = baselines[0] if baselines else None
    for (workload, temperature), per_label in wall.items():
        for name in labels:
            if name not in per_label:
                continue
            walls = summarise(list(per_label[name].values()))
            used_cpu = cpu[workload, temperature]
            cpus = summarise(list(used_cpu[name].values()))
            requests = summarise(fuse.get((workload, temperature, name), []))
            assert walls is not None
            assert cpus is not None
            ratio = cpu_ratio = None
            point = None
            if baseline is not None and name != baseline and baseline in per_label:
                ratio = _pairs(per_label[name], per_label[baseline])
                if min(*used_cpu[name].values(), *used_cpu[baseline].values()) > 0:
                    cpu_ratio = _pairs(used_cpu[name], used_cpu[baseline])
                mine, theirs = summarise(list(ready[name].values())), summarise(list(ready[baseline].values()))
                if ratio is not None and mine is not None and theirs is not None:
                    point = break_even(theirs.median - mine.median, ratio.ratio, ratio.low, ratio.high)
            lines.append(RuntimeLine(workload, temperature, name, walls, ratio, cpus, cpu_ratio, requests, point))
    return lines
