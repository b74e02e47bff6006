"""These rules say whether a stored observation can be what a trial saw.

Files are edited, cut, merged by hand, and written by bugs.

The rules of validity (``harness.session.validity``) judge what a trial saw; these judge whether it can have been seen
at all. They run when a session is read, so that no statistic meets a zero or a negative time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from harness.model.observation import Observation


#: How CPU seconds divide into user and system is the kernel's estimate, and sessions of earlier versions hold small
#: negative parts of it; their sum is exact.
_ESTIMATED = frozenset({"cpu_user_s", "cpu_system_s"})
_ROUNDING_S = 1e-6


def implausible(observation: Observation) -> str | None:
    """Says what is wrong with it, as ``field: what was expected``; None when nothing is."""
    return next(_problems(observation), None)


def _problems(o: Observation) -> Iterator[str]:
    ready_s = o.time_to_ready_s
    if ready_s is not None and ready_s <= 0:
        yield f"time_to_ready_s: expected more than 0 seconds, got {ready_s:g}"
    if o.status == "ok" and ready_s is None:
        yield "time_to_ready_s: expected a time, since the status is ok"
    if o.status == "ok" and o.failure is not None:
        yield "status: expected failed, since there is a failure"
    if o.status == "failed" and o.failure is None:
        yield "failure: expected one, since the status is failed"
    if o.trial < 0 or o.block < 0:
        yield f"trial and block: expected numbers from 0, got {o.trial} and {o.block}"
    for number, span in enumerate(o.timeline):
        if span.end_s < span.start_s:
            yield f"timeline[{number}] ({span.name}): ends {span.start_s - span.end_s:g} s before it starts"
    parts: list[tuple[str, BaseModel | None]] = [
        ("wire", o.wire),
        ("wire_before_ready", o.wire_before_ready),
        ("lazy", o.lazy),
        ("bound", o.bound),
        *((f"phases[{n}] ({phase.phase})", phase) for n, phase in enumerate(o.phases)),
        *((f"workloads[{n}] ({work.workload})", work) for n, work in enumerate(o.workloads)),
    ]
    for name, part in parts:
        if part is not None:
            yield from _negative(name, part)
    for number, phase in enumerate(o.phases):
        if phase.cpu_s < -_ROUNDING_S:
            yield f"phases[{number}] ({phase.phase}): expected at least 0 CPU seconds, got {phase.cpu_s:g}"
    for name in ("memory_peak_bytes", "disk_written_bytes"):
        value = getattr(o, name)
        if value is not None and value < 0:
            yield f"{name}: expected at least 0, got {value:g}"


def _negative(name: str, part: BaseModel) -> Iterator[str]:
    """Names the numbers of a part that are below 0: none of them can be."""
    for field, value in part:
        if field in _ESTIMATED:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            yield f"{name}.{field}: expected at least 0, got {value:g}"
