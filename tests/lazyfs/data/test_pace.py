"""Sizes and counts by how far the registry is."""

from __future__ import annotations

import pytest

from harness.lazyfs.data.pace import Pace, block_around, pace_of, tail_of
from harness.model.modes import lazy_modes, lazy_policy
from harness.model.policy import LazyPolicy
from harness.oci.registry.link import Link

FAR_S = 0.23
LAN_S = 0.002

PRESETS = [(mode.name, preset.name) for mode in lazy_modes() for preset in mode.presets]


def link(latency_s: float, rate: float = 25e6) -> Link:
    """A link that has answered two requests of a megabyte."""
    made = Link()
    for _ in range(2):
        made.note(latency_s, 1_000_000, 1_000_000 / rate)
    return made


@pytest.mark.parametrize("known", [None, Link(), link(LAN_S)], ids=["no network", "nothing known", "near"])
def test_near_the_numbers_are_the_policys(known: Link | None) -> None:
    """Where requests are cheap nothing changes: each policy's numbers were tuned there."""
    for mode, preset in PRESETS:
        policy = lazy_policy(mode, preset)
        pace = pace_of(policy, known)
        assert not pace.far
        assert (pace.in_flight, pace.merge_gap, pace.block) == (
            policy.prefetch_in_flight, policy.merge_gap, policy.block_bytes,
        )  # fmt: skip


def test_far_more_is_asked_for_at_once() -> None:
    """A gap is worth what one connection brings in a request's share of the latency."""
    policy = LazyPolicy()
    pace = pace_of(policy, link(FAR_S))
    assert pace.far
    assert pace.in_flight == 23
    assert pace.merge_gap == int(FAR_S * 25e6) // 23
    assert policy.block_bytes < pace.block <= 2 << 20


def test_far_never_asks_for_less_than_near() -> None:
    """A slow link makes no gap smaller than the policy's."""
    policy = LazyPolicy()
    pace = pace_of(policy, link(FAR_S, rate=100e3))
    assert pace.far
    assert (pace.merge_gap, pace.block) == (policy.merge_gap, policy.block_bytes)


def test_farthest_is_bounded() -> None:
    """However far: in flight, gap and block have limits."""
    policy = LazyPolicy()
    pace = pace_of(policy, link(30.0, rate=1e9))
    assert pace.in_flight == policy.far_in_flight
    assert pace.merge_gap == 1 << 20
    assert pace.block == 2 << 20


@pytest.mark.parametrize(("mode", "preset"), [names for names in PRESETS if names[1] == "reference"])
def test_reference_presets_do_not_adapt(mode: str, preset: str) -> None:
    """Those daemons do not either."""
    policy = lazy_policy(mode, preset)
    assert pace_of(policy, link(FAR_S)) == pace_of(policy, None)


def test_block_around_a_miss_shrinks_with_what_may_still_come() -> None:
    """A power of two, at most an eighth of the allowance, and never less than near."""
    pace = Pace(far=True, in_flight=9, merge_gap=0, block=1_500_000, least_block=128 << 10)
    assert [block_around(pace, allowance) for allowance in (100 << 20, 4 << 20, 1 << 20, 0, -(1 << 20))] == [
        1 << 20, 512 << 10, 128 << 10, 128 << 10, 128 << 10,
    ]  # fmt: skip


def test_no_block_stays_none() -> None:
    """A policy that fetches nothing around a miss does so however the allowance stands."""
    assert block_around(Pace(far=False, in_flight=1, merge_gap=0, block=0, least_block=0), 1 << 30) == 0


def test_far_the_tail_holds_the_toc() -> None:
    """One round instead of two, within limits; near, the footer comes with a small TOC only."""
    policy, near = LazyPolicy(), 64 << 10
    assert tail_of(policy, link(LAN_S), 1 << 30, near) == near
    assert [tail_of(policy, link(FAR_S), size, near) for size in (1000, 128 << 20, 64 << 30)] == [
        near,
        1 << 20,
        4 << 20,
    ]
    assert tail_of(lazy_policy("estargz", "reference"), link(FAR_S), 128 << 20, near) == near


def test_a_little_way_off_a_miss_brings_little_more() -> None:
    """A tenth of the latency: what a round trip would carry is a tenth, and a tenth of that is worth its CPU."""
    policy = LazyPolicy()
    near, far = pace_of(policy, link(0.02, rate=100e6)), pace_of(policy, link(0.2, rate=100e6))
    assert near.far
    assert policy.block_bytes < near.block < far.block // 4
