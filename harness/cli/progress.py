"""This module draws a run's progress: one live display on a terminal, a line per trial elsewhere (logs, CI)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from harness.session.progress import fault_summary, output_of, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.faults import FaultObservation
    from harness.model.observation import Observation
    from harness.model.plan import Plan, PlannedTrial
    from harness.session.progress import Progress


def duration(seconds: float) -> str:
    """Writes a duration as ``45 s``, ``3 min`` or ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class OncePerCase:
    """Remembers what failed trials said last and passes it on once per case, since each says the same every time."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, observation: Observation) -> list[str]:
        lines = output_of(observation)
        if not lines or observation.case.key in self._shown:
            return []
        self._shown.add(observation.case.key)
        return lines


class PlainProgress:
    """Prints one line per event that matters: preparation steps and trials."""

    def __init__(self, stream: IO[str]) -> None:
        self._said = OncePerCase()
        self._stream = stream
        self._total = 0
        self._position = 0

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None:
        self._total = len(plan.trials)
        done = f", {finished} recorded already" if finished else ""
        self._print(
            f"{self._total} trials of {len(plan.cases)} cases, seed {plan.seed}{done}; about {duration(remaining_s)}"
        )

    def preparing(self, scenario: str, what: str) -> None:
        self._print(f"preparing {scenario}: {what}")

    def preparing_bytes(self, done: int, total: int) -> None: ...

    def remark(self, text: str) -> None:
        self._print(f"note: {text}")

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None:
        self._position = position

    def phase(self, name: str) -> None: ...

    def ended(self, observation: Observation, remaining_s: float) -> None:
        left = f"  ({duration(remaining_s)} left)" if remaining_s else ""
        self._print(
            "\n".join([f"[{self._position}/{self._total}] {summary(observation)}{left}", *self._said(observation)])
        )

    def fault_ended(self, observation: FaultObservation, remaining_s: float) -> None:
        left = f"  ({duration(remaining_s)} left)" if remaining_s else ""
        self._print(f"[{self._position}/{self._total}] {fault_summary(observation)}{left}")


@contextmanager
def make_progress(stream: IO[str]) -> Iterator[Progress]:
    """Makes the progress for a stream: one live display on a terminal, a line per trial elsewhere and in CI."""
    if not stream.isatty() or os.environ.get("CI"):
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.live import Live

    from harness.cli.live import LiveProgress

    # Twice a second: drawing costs CPU on the host that is being measured. What it showed last stays.
    console = Console(file=stream, emoji=False, highlight=False)
    with Live(console=console, refresh_per_second=2) as live:
        yield LiveProgress(console, live)
