"""The credit model and the governor's decisions, on an injected clock."""

from __future__ import annotations

import pytest

from harness.machine.cgroup import CpuLimit
from harness.machine.credits import CreditBalance, CreditPolicy, Governor
from harness.model.shape import Credits, load_shapes, parse_shape

TERMS = Credits(earned_core_s_per_h=360, cap_core_s=20, at_boot_core_s=5)


def test_balance_falls_only_above_the_baseline() -> None:
    """At the baseline the balance stands still, idle it grows, above it pays the part above."""
    balance = CreditBalance(TERMS)
    balance.advance(10, 1.0)
    assert balance.core_s == pytest.approx(5)
    balance.advance(10, 0.0)
    assert balance.core_s == pytest.approx(6)
    balance.advance(1, 1.0)
    assert balance.core_s == pytest.approx(5.1)


def test_cap_holds_for_what_was_earned() -> None:
    """What was there at boot comes on top of the cap; what is earned never exceeds it."""
    balance = CreditBalance(TERMS)
    balance.advance(100_000, 0.0)
    assert balance.core_s == pytest.approx(25)


def test_boot_credits_are_spent_first() -> None:
    """Spending takes what was there at boot before what was earned, so that the cap is reached again by earning."""
    balance = CreditBalance(TERMS)
    balance.advance(100_000, 0.0)
    balance.advance(10, 6.0)
    assert balance.core_s == pytest.approx(20)
    balance.advance(100_000, 0.0)
    assert balance.core_s == pytest.approx(20)


def test_policy_bursts_until_empty_and_again_when_recovered() -> None:
    """Burst while there is a balance, baseline at zero, burst again when a tick at full speed can be paid."""
    policy = CreditPolicy(Credits(earned_core_s_per_h=360, cap_core_s=20, at_boot_core_s=1), 0.1, 1.0)
    assert policy.decide(0, 0).quota_cores == 1.0
    assert policy.decide(1.0, 1.0).quota_cores == 1.0
    assert policy.decide(0.2, 0.2).quota_cores == 0.1
    assert policy.decide(10, 1.0).quota_cores == 0.1
    assert policy.decide(1.0, 0.0).quota_cores == 0.1
    assert policy.decide(0.5, 0.0).quota_cores == 1.0


def test_policy_looks_again_when_the_balance_would_be_empty() -> None:
    """Near the end the next look comes when full speed would have used the rest up, not a whole tick later."""
    policy = CreditPolicy(Credits(earned_core_s_per_h=0, cap_core_s=20, at_boot_core_s=0.01), 0.0, 1.0)
    assert policy.decide(0, 0).look_again_s == pytest.approx(0.01)


def test_surplus_never_throttles() -> None:
    """An unlimited shape bursts on with a negative balance, which is what it is charged for."""
    shape = load_shapes().get("aws-t3.micro:fresh")
    assert shape.credits is not None
    policy = CreditPolicy(shape.credits, 0.2, 2.0)
    assert policy.decide(100, 200).quota_cores == 2.0
    assert policy.balance.core_s == pytest.approx(-180)


class Host:
    """A machine that always burns its whole quota, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used = 7.0
        self.limits: list[CpuLimit] = []

    def set_cpu(self, limit: CpuLimit) -> None:
        self.limits.append(limit)

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds * (self.limits[-1].cores or 0)


def test_governor_holds_the_long_run_average() -> None:
    """Under full load the CPU used over a long time is the credits plus the baseline, whatever ticks overshoot."""
    host = Host()
    shape = parse_shape("cpu=0.25,burst=2,credits=3")
    governor = Governor(shape, lambda: host.used, host.set_cpu, lambda: host.now)
    governor.begin()
    wait = 0.05
    for _look in range(2000):
        host.run(wait)
        wait = governor._step()
    assert host.used - 7.0 == pytest.approx(3 + 0.25 * (host.now - 100.0), abs=0.1)
    assert host.limits == [CpuLimit(200_000, 100_000), CpuLimit(25_000, 100_000)]


def test_governor_writes_only_changes() -> None:
    """A quota is written when it changes and at no other time: each write hands the period's quota out anew."""
    host = Host()
    governor = Governor(parse_shape("cpu=0.25,burst=2,credits=1000"), lambda: host.used, host.set_cpu, lambda: host.now)
    governor.begin()
    for _look in range(50):
        host.run(0.05)
        governor._step()
    assert host.limits == [CpuLimit(200_000, 100_000)]


def test_governor_samples_are_a_series_from_t0() -> None:
    """Samples start at T0 with the balance at boot, rise in time, and note each change of quota."""
    host = Host()
    governor = Governor(parse_shape("cpu=0.25,burst=2,credits=1"), lambda: host.used, host.set_cpu, lambda: host.now)
    governor.begin()
    for _look in range(40):
        host.run(0.05)
        governor._step()
    samples = governor.samples
    assert (samples[0].t_s, samples[0].balance_core_s, samples[0].quota_cores) == (0, 1, 2)
    assert [s.t_s for s in samples] == sorted(s.t_s for s in samples)
    assert [s.quota_cores for s in samples][-1] == 0.25
    assert len(samples) <= 25
