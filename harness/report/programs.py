"""This module writes the sentence that people repeat: what Docker, the real snapshotters and the best of ours take, by
version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.model import modes
from harness.report import wording

if TYPE_CHECKING:
    from harness.report.comparison import CaseLine, Group


def sentence(group: Group) -> str:
    """Writes ``Docker 28.5.2 takes 46 s on this machine, the real SOCI 0.16.1 16 s, ours (erofs:tuned) 4.6 s
    (medians).``

    Each program is there once, with its soonest preset, the slowest first. Empty where no other program, or nothing of
    ours that the answer may recommend, has a valid trial.
    """
    soonest: dict[str, tuple[float, str]] = {}
    ours: tuple[float, str] | None = None
    for line in group.lines:
        if line.ready is None or line.is_floor:
            continue
        program, told_as = modes.program_of(line.engine, line.mode)
        if program:
            soonest[program] = min((line.ready.median, _named(line, program, told_as)), soonest.get(program, _NEVER))
        elif line.engine == modes.EMBEDDED and line.offered:
            ours = min((line.ready.median, f"ours ({line.label})"), ours or _NEVER)
    if ours is None or not soonest:
        return ""
    (first_s, first), *others = sorted(soonest.values(), reverse=True)
    told = [f"{name} {wording.seconds(median_s)}" for median_s, name in (*others, ours)]
    said = ", ".join([f"{first} takes {wording.seconds(first_s)} on this machine", *told])
    return f"{said[0].upper()}{said[1:]} (medians)."


_NEVER = (float("inf"), "")


def _named(line: CaseLine, program: str, told_as: tuple[str, ...]) -> str:
    """Returns the program with the version that its trials tell."""
    if line.median_trial is None:
        return program
    details = line.median_trial.details
    known = {"docker_version": details.docker_version, **(details.versions or {})}
    version = next((known[name] for name in told_as if known.get(name)), "")
    return f"{program} {version}" if version else program
