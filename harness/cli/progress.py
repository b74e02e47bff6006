"""Draws a run's progress: a live line with rich on a terminal, plain lines elsewhere (logs, CI)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from harness.session.progress import fault_summary, output_of, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bar

    from harness.model.faults import FaultObservation
    from harness.model.observation import Observation
    from harness.model.plan import Plan, PlannedTrial
    from harness.session.progress import Progress


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class OncePerCase:
    """What failed trials say last: of each case once, since it says the same every time."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, observation: Observation) -> list[str]:
        lines = output_of(observation)
        if not lines or observation.case.key in self._shown:
            return []
        self._shown.add(observation.case.key)
        return lines


class PlainProgress:
    """One line per event that matters: preparation steps and trials."""

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


class LiveProgress:
    """A line that shows what runs, its phase, the time it has taken and the time that is left."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._said = OncePerCase()
        self._whole = bar.add_task("session", total=None, phase="", left="")
        self._step: int | None = None
        self._total = 0

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None:
        self._total = len(plan.trials)
        self._bar.update(self._whole, total=self._total, completed=finished, left=f"{duration(remaining_s)} left")
        self._bar.console.print(f"{self._total} trials of {len(plan.cases)} cases, seed {plan.seed}", highlight=False)

    def _begin(self, description: str, total: float | None) -> None:
        if self._step is not None:
            self._bar.remove_task(self._step)  # type: ignore[arg-type]
        self._step = self._bar.add_task(description, total=total, phase="", left="")

    def preparing(self, scenario: str, what: str) -> None:
        self._begin(f"{scenario}: {what}", None)

    def preparing_bytes(self, done: int, total: int) -> None:
        if self._step is not None:
            left = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
            self._bar.update(self._step, completed=done, total=total or None, left=left)  # type: ignore[arg-type]

    def remark(self, text: str) -> None:
        self._bar.console.print(f"note: {text}", style="yellow", markup=False, highlight=False, emoji=False)

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None:
        self._begin(f"[{position}/{self._total}] {trial.case}", None)
        self._bar.update(self._whole, left=f"{duration(remaining_s)} left")

    def phase(self, name: str) -> None:
        if self._step is not None:
            self._bar.update(self._step, phase=name)  # type: ignore[arg-type]

    def ended(self, observation: Observation, remaining_s: float) -> None:
        style = "red" if observation.failure else "yellow" if observation.invalid else None
        text = "\n".join([summary(observation), *self._said(observation)])
        self._bar.console.print(text, style=style, markup=False, highlight=False)
        self._bar.update(self._whole, advance=1, left=f"{duration(remaining_s)} left")

    def fault_ended(self, observation: FaultObservation, remaining_s: float) -> None:
        style = "red" if observation.failure else "yellow" if observation.invalid else None
        self._bar.console.print(fault_summary(observation), style=style, markup=False, highlight=False)
        self._bar.update(self._whole, advance=1, left=f"{duration(remaining_s)} left")


@contextmanager
def make_progress(stream: IO[str]) -> Iterator[Progress]:
    """The progress for a stream: live on a terminal, plain lines elsewhere and in CI."""
    if not stream.isatty() or os.environ.get("CI"):
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # Twice a second: drawing costs CPU on the host that is being measured.
    console = Console(file=stream, soft_wrap=True, emoji=False)
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        yield LiveProgress(bar)
