"""This module sets our presets beside the real programs they speak for: it writes a page from sessions of
``scenarios/credibility``.

In each session the embedded engine's cases stand against the other engines' cases of the same mode, paired in blocks.
What should be the *same* policy (``reference``) is held to the same requests and bytes within ``TOLERANCE``; times and
CPU are shown with their intervals and claim nothing.

    python -m harness.report.credibility SESSION … > docs/credibility.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError
from harness.model.modes import EMBEDDED, uses_library
from harness.model.policy import PYFUSE3
from harness.session import store
from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model.observation import Case, Observation
    from harness.model.session import SessionHeader

TOLERANCE = 0.10

#: Why the counts differ, as the registry's access log shows it.
_WHY = {
    "credibility-soci": """\
The requests for the image's bytes are the same: 19 ranges of the large layer, each of one span, in the same order and
of the same sizes, after two probes of it. SOCI's other eight come of two programs in the place of one: containerd
asks for the head of the tag before its manifest, and SOCI for the heads of three artefacts before it fetches them (4
HEAD); containerd and SOCI each fetch the image's manifest, the SOCI index and the small layer that has no zTOC (3
GET, and the 2.8 MB more); containerd fetches the index's empty configuration (1 GET). Ours asks once for each, by
digest. None of this is part of the policy, so it is not imitated.""",
    "credibility-full-pull": """\
The sixth request is containerd's HEAD of the manifest before it fetches it, and Docker's question whether there is a
registry (/v2/).""",
}

_INTRODUCTION = """# Credibility: our presets beside the real programs

Written by `nox -s credibility` from the sessions it has just run (`scenarios/credibility`); not edited by hand. Ratios
are ours over theirs, paired in blocks, trimmed means with 95 % intervals; bytes and requests are medians up to ready.
A policy that is to be *the same* moves the same bytes by as many requests, within 10 %; how long it takes and what CPU
it costs is another implementation's affair: ours inflates with ISA-L and serves files from Python, theirs is Go.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Holds one case of ours and one of a real engine, in the blocks in which both are valid."""

    ours: Case
    theirs: Case
    trials: tuple[tuple[Observation, Observation], ...]

    def ratio(self, figure: Callable[[Observation], float]) -> str:
        """Returns the paired ratio of a figure, with its interval."""
        values = [(figure(a), figure(b)) for a, b in self.trials]
        found = paired_ratio([a for a, _ in values], [b for _, b in values])
        if found.low is None or found.high is None:
            return f"{found.ratio:.2f} (no interval)"
        return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"

    def medians(self, figure: Callable[[Observation], float]) -> tuple[float, float]:
        """Returns the medians of ours and theirs."""
        return median(figure(a) for a, _ in self.trials), median(figure(b) for _, b in self.trials)


def pairs(observations: Sequence[Observation]) -> list[Pair]:
    """Pairs every case of ours with every case of the same mode that another program serves, where blocks have both."""
    valid = {(o.case.key, o.block): o for o in observations if o.valid}
    cases = {o.case.key: o.case for o in observations}
    theirs = [case for case in cases.values() if is_theirs(case)]
    ours = [case for case in cases.values() if not is_theirs(case)]
    found = []
    for one, other in product(ours, theirs):
        if one.mode != other.mode or one.limits != other.limits:
            continue
        blocks = sorted({o.block for o in observations})
        trials = tuple(
            (valid[one.key, block], valid[other.key, block])
            for block in blocks
            if (one.key, block) in valid and (other.key, block) in valid
        )
        if trials:
            found.append(Pair(one, other, trials))
    return found


def is_theirs(case: Case) -> bool:
    """Says whether a case is theirs: another engine, or our engine with a library in the place of our own session."""
    return case.engine != EMBEDDED or uses_library(case.mode, case.preset)


def received(observation: Observation) -> float:
    return float(observation.wire_before_ready.received_bytes or 0)


def requests(observation: Observation) -> float:
    return float(observation.wire_before_ready.requests or 0)


def ready(observation: Observation) -> float:
    assert observation.time_to_ready_s is not None, "valid trials have one"
    return observation.time_to_ready_s


def cpu(observation: Observation) -> float:
    return observation.cpu_to_ready_s or 0.0


def verdict(ours: float, theirs: float) -> str:
    """Says whether two medians agree within the tolerance."""
    if theirs <= 0:
        return "not known"
    away = ours / theirs - 1
    return f"{'yes' if abs(away) <= TOLERANCE else 'no'} ({away:+.0%})"


def section(header: SessionHeader, observations: Sequence[Observation]) -> str:
    """Writes one session as Markdown."""
    scenario = next(iter(header.scenarios.values()))
    lines = [f"## {scenario.name}", "", scenario.description, ""]
    shapes = ", ".join(dict.fromkeys(o.case.shape for o in observations))
    blocks = len({o.block for o in observations})
    kernel = ".".join(str(header.host.get("kernel") or "unknown").split(".")[:2])
    cores, load = header.host.get("cores"), header.host.get("load_per_core")
    host = f"{cores} cores, kernel {kernel}, load per core at the beginning {load}"
    versions = _versions(header, observations)
    lines.append(f"{blocks} blocks, shape {shapes}; {host}; {header.created_at[:10]}; {versions}.")
    lines += [
        "",
        "| ours | theirs | blocks | time to ready | CPU to ready | MB | requests | same bytes | same requests |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for pair in pairs(observations):
        bytes_ours, bytes_theirs = pair.medians(received)
        asked_ours, asked_theirs = pair.medians(requests)
        lines.append(
            f"| {_name(pair.ours)} | {_name(pair.theirs)} "
            f"| {len(pair.trials)} | {pair.ratio(ready)} | {pair.ratio(cpu)} "
            f"| {bytes_ours / 1e6:.1f} : {bytes_theirs / 1e6:.1f} | {asked_ours:.0f} : {asked_theirs:.0f} "
            f"| {verdict(bytes_ours, bytes_theirs)} | {verdict(asked_ours, asked_theirs)} |"
        )
    lines += [text for pair in pairs(observations) for text in _opcodes(pair)]
    if (why := _WHY.get(scenario.name)) is not None:
        lines += ["", why]
    left_out = [o for o in observations if not o.valid]
    if left_out:
        reasons = dict.fromkeys(o.failure.message if o.failure else o.invalid[0].reason for o in left_out)
        lines += ["", f"{len(left_out)} of {len(observations)} trials are left out: {'; '.join(reasons)}."]
    return "\n".join(lines) + "\n"


def _name(case: Case) -> str:
    engine = "" if case.engine == EMBEDDED else f"{case.engine} "
    return f"{engine}`{case.mode}:{case.preset}`"


def _opcodes(pair: Pair) -> list[str]:
    """Lists FUSE requests of the whole trial by opcode, medians, where both sides count them; else nothing."""
    counts = [[(o.lazy.fuse if o.lazy else None) for o in trial] for trial in pair.trials]
    if any(found is None for trial in counts for found in trial):
        return []
    names = sorted({name for trial in counts for found in trial for name in found or {}})
    told = []
    for name in names:
        one, other = ([(trial[side] or {})[name].count if name in (trial[side] or {}) else 0 for trial in counts]
                      for side in (0, 1))  # fmt: skip
        told.append(f"{name} {median(one):.0f} : {median(other):.0f}")
    return (
        ["", f"FUSE requests by opcode, {_name(pair.ours)} : {_name(pair.theirs)}: {', '.join(told)}."] if told else []
    )


def _versions(header: SessionHeader, observations: Sequence[Observation]) -> str:
    """Lists the real programs and libraries that were beside ours, with their versions."""
    found: dict[str, str] = {}
    for observation in observations:
        case = observation.case
        if case.engine == EMBEDDED and uses_library(case.mode, case.preset) and PYFUSE3 in header.versions:
            found[PYFUSE3] = header.versions[PYFUSE3]
        versions = observation.details.versions or {}
        found.update({name: version for name, version in versions.items() if version})
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "versions not recorded"


def page(sessions: Sequence[str]) -> str:
    """Writes the whole page. Raises ColdbenchError for what is no session."""
    return "\n".join([_INTRODUCTION, *(section(*store.load(path)) for path in sessions)])


def main() -> int:
    try:
        sys.stdout.write(page(sys.argv[1:]))
    except ColdbenchError as error:
        sys.stderr.write(f"credibility: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
