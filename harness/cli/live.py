"""This module draws a run live on a terminal: what runs now, how long it has taken and will take, and results by
case.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from harness.cli.progress import OncePerCase, duration
from harness.model.modes import EMBEDDED
from harness.session.progress import fault_summary, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from harness.model.faults import FaultObservation
    from harness.model.observation import Case, Observation
    from harness.model.plan import Plan, PlannedTrial

#: Lines of a terminal that are not rows of the table: title, progress, what runs now, heads, a line of air.
_OTHER_LINES = 6


class LiveProgress:
    """Redraws one display in place. What failed, or does not count, is also printed above it and stays.

    The table has a row per case: trials that count, the last result, and the median so far. Where the terminal has
    fewer lines than there are cases, those that ran last are shown.
    """

    def __init__(self, console: Console, live: Live, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._live = live
        self._clock = clock
        self._said = OncePerCase()
        self._cases: dict[str, Case] = {}
        self._planned: dict[str, int] = {}
        self._ready: dict[str, list[float]] = {}
        self._last: dict[str, str] = {}
        self._recent: list[str] = []
        self._total = self._done = 0
        self._left_s = 0.0
        self._began = self._step_began = clock()
        self._now = self._phase = self._bytes = ""

    # -- what a run tells (harness.session.progress.Progress)

    def session(self, plan: Plan, finished: int, remaining_s: float) -> None:
        self._total, self._done, self._left_s = len(plan.trials), finished, remaining_s
        self._began = self._clock()
        self._cases = {planned.case.key: planned.case for planned in plan.cases}
        for trial in plan.trials:
            self._planned[trial.case] = self._planned.get(trial.case, 0) + 1
        self._step("")

    def preparing(self, scenario: str, what: str) -> None:
        self._step(f"preparing {scenario}: {what}")

    def preparing_bytes(self, done: int, total: int) -> None:
        self._bytes = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""

    def remark(self, text: str) -> None:
        self._console.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def trial(self, trial: PlannedTrial, position: int, remaining_s: float) -> None:
        self._left_s = remaining_s
        self._step(f"[{position}/{self._total}] {self._label(trial.case)}")

    def phase(self, name: str) -> None:
        self._phase = name
        self._draw()

    def ended(self, observation: Observation, remaining_s: float) -> None:
        key = observation.case.key
        self._done += 1
        self._left_s = remaining_s
        if observation.valid:
            ready = observation.time_to_ready_s or 0.0
            self._ready.setdefault(key, []).append(ready)
            self._last[key] = f"{ready:.2f} s"
        else:
            self._last[key] = "failed" if observation.failure else "invalid"
            style = "red" if observation.failure else "yellow"
            text = "\n".join([summary(observation), *self._said(observation)])
            self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        self._recent = [key, *(known for known in self._recent if known != key)]
        self._step("")

    def fault_ended(self, observation: FaultObservation, remaining_s: float) -> None:
        self._done += 1
        self._left_s = remaining_s
        style = "red" if observation.failure else "yellow" if observation.invalid else None
        self._console.print(fault_summary(observation), style=style, markup=False, highlight=False, soft_wrap=True)
        self._step("")

    # -- the display

    def _step(self, what: str) -> None:
        self._now, self._phase, self._bytes = what, "", ""
        self._step_began = self._clock()
        self._draw()

    def _draw(self) -> None:
        self._live.update(self)

    def _label(self, key: str) -> str:
        case = self._cases.get(key)
        if case is None:
            return key
        engine = "" if case.engine == EMBEDDED else f" ({case.engine})"
        words = [f"{case.mode}:{case.variant}{engine}"]
        for name in ("scenario", "shape", "distance"):
            if len({getattr(other, name) for other in self._cases.values()}) > 1:
                words.append(str(getattr(case, name)))
        return " ".join(words)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._total:
            gone, left = duration(self._clock() - self._began), duration(self._left_s)
            filled = round(24 * self._done / self._total)
            bar = f"{'━' * filled}{'─' * (24 - filled)}"
            parts.append(Text(f"{self._done} of {self._total} trials {bar} {gone} gone, about {left} left"))
        if self._now:
            since = self._clock() - self._step_began
            words = [self._now, *(word for word in (self._phase, self._bytes) if word), f"{since:.0f} s"]
            parts.append(Text("now  " + " · ".join(words), overflow="ellipsis", no_wrap=True))
        if self._last:
            parts.append(self._table())
        return Group(*parts)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("case", overflow="ellipsis", no_wrap=True)
        for head in ("count", "last", "median"):
            table.add_column(head, justify="right", no_wrap=True)
        room = max(3, self._console.height - _OTHER_LINES)
        shown = set(self._recent[:room])
        for key in (key for key in self._cases if key in shown):
            times = self._ready.get(key, [])
            middle = f"{median(times):.2f} s" if times else ""
            table.add_row(self._label(key), f"{len(times)}/{self._planned.get(key, 0)}", self._last[key], middle)
        return table
