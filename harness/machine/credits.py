"""This module models CPU credits, what a shared-CPU VM may burn above its baseline, and holds a machine to them by a
governor.

The model is pure. A balance earns all the time at the baseline's rate and pays for every core-second used; so it
falls only while more than the baseline is used. What was there at boot is spent first and does not count towards the
cap on what is earned (EC2 user guide: launch credits). Fly's bucket ("unused quota accrues") is the same arithmetic.

The governor sits outside the machine, reads its CPU time, and moves the quota: burst while there is a balance,
baseline when it has run out. ``cpu.max.burst`` could not do that: it holds less than one period's quota.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.machine.cgroup import CpuLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model.shape import Credits, Shape

TICK_S = 0.05
_MIN_SLEEP_S = 0.005


class CreditBalance:
    """Keeps a balance in core-seconds. It may fall below zero by what one tick overshoots; that is paid back before
    bursting.
    """

    def __init__(self, terms: Credits) -> None:
        self._terms = terms
        self._at_boot = terms.at_boot_core_s
        self._earned = 0.0

    @property
    def core_s(self) -> float:
        """Returns what is left; negative when overdrawn (by a tick's overshoot, or as surplus to be charged)."""
        return self._at_boot + self._earned

    def advance(self, elapsed_s: float, used_core_s: float) -> None:
        """Lets time pass in which so much CPU was used; both count since the last call."""
        self._earned += elapsed_s * self._terms.earned_core_s_per_h / 3600
        from_boot = min(self._at_boot, max(0.0, used_core_s - elapsed_s * self._terms.earned_core_s_per_h / 3600))
        self._at_boot -= from_boot
        self._earned = min(self._earned - (used_core_s - from_boot), self._terms.cap_core_s)


@dataclass(frozen=True, slots=True)
class Decision:
    """Says what holds until the next look: the quota in cores, and when to look again."""

    quota_cores: float
    look_again_s: float


class CreditPolicy:
    """Decides the quota from the balance. It is pure: time and usage come in, a decision comes out."""

    def __init__(self, terms: Credits, baseline_cores: float, burst_cores: float) -> None:
        self.balance = CreditBalance(terms)
        self._surplus = terms.surplus
        self._baseline = baseline_cores
        self._burst = burst_cores
        self._bursting = terms.surplus or terms.at_boot_core_s > 0

    def decide(self, elapsed_s: float, used_core_s: float) -> Decision:
        """Decides the quota to hold now, given what happened since the last decision."""
        self.balance.advance(elapsed_s, used_core_s)
        left = self.balance.core_s
        if self._surplus:
            return Decision(self._burst, TICK_S)
        above = self._burst - self._baseline
        if self._bursting and left <= 0:
            self._bursting = False
        elif not self._bursting and left > above * TICK_S:  # enough for one tick at full speed
            self._bursting = True
        if not self._bursting:
            return Decision(self._baseline, TICK_S)
        # At full speed the balance is empty after left / above; look then, not a tick later.
        empty_s = left / above if above > 0 else TICK_S
        return Decision(self._burst, max(_MIN_SLEEP_S, min(TICK_S, empty_s)))


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds the state of the governor: seconds after T0, balance in core-seconds, quota in cores."""

    t_s: float
    balance_core_s: float
    quota_cores: float


class Governor:
    """Holds a machine's quota to its credits from ``start`` to ``stop``, in a thread of its own.

    ``cpu_used_s`` reads the control group's CPU time, ``set_cpu`` moves its quota. It takes a sample at each change of
    quota, and at most ten a second between.
    """

    def __init__(
        self,
        shape: Shape,
        cpu_used_s: Callable[[], float],
        set_cpu: Callable[[CpuLimit], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if shape.credits is None or shape.baseline_cores is None or shape.ceiling_cores is None:
            raise ValueError("a governor needs a shape with credits, a baseline and a ceiling")
        self._policy = CreditPolicy(shape.credits, shape.baseline_cores, shape.ceiling_cores)
        self._period_us = shape.period_us
        self._cpu_used_s = cpu_used_s
        self._set_cpu = set_cpu
        self._clock = clock
        self._samples: list[Sample] = []
        self._quota: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_t = self._last_used = self._t0 = 0.0
        self.failure: Exception | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(self._samples)

    def begin(self) -> None:
        """Starts at T0: the first quota is in force when this returns."""
        self._t0 = self._last_t = self._clock()
        self._last_used = self._cpu_used_s()
        self._step()

    def _step(self) -> float:
        """Looks once; returns the seconds until the next look."""
        now, used = self._clock(), self._cpu_used_s()
        decision = self._policy.decide(now - self._last_t, used - self._last_used)
        self._last_t, self._last_used = now, used
        # Each write refills the period's quota, so it is written only when it changes.
        changed = decision.quota_cores != self._quota
        if changed:
            self._set_cpu(CpuLimit.of_cores(decision.quota_cores, self._period_us))
            self._quota = decision.quota_cores
        t_s = now - self._t0
        if changed or t_s - self._samples[-1].t_s >= 0.1:
            self._samples.append(Sample(t_s, self._policy.balance.core_s, decision.quota_cores))
        return decision.look_again_s

    def start(self) -> None:
        """Begins (``begin``), then keeps looking from a thread."""
        self.begin()
        self._thread = threading.Thread(target=self._run, name="coldbench-governor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait_s = TICK_S
        while not self._stop.wait(wait_s):
            try:
                wait_s = self._step()
            except Exception as error:  # shown by whoever reads the machine next
                self.failure = error
                return

    def stop(self) -> None:
        """Ends the thread; the quota stays as it is."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
