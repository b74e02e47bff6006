"""Validity rules on counters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.model.observation import PackUsage
from harness.session.validity import RULES, Evidence, check

MB = 1 << 20
FULL = Evidence(lazy=False, image_compressed_bytes=100 * MB, received_before_ready_bytes=101 * MB)
LAZY = Evidence(
    lazy=True,
    image_compressed_bytes=100 * MB,
    received_before_ready_bytes=8 * MB,
    layers_lazy=2,
    root_file_systems=frozenset({"fuse.coldbench"}),
)


def rules(evidence: Evidence) -> list[str]:
    return [i.rule for i in check(evidence)]


EAGER = replace(FULL, fuse_allowed=True, root_file_systems=frozenset({"fuse.coldbench", "erofs"}))


STREAMED = replace(
    LAZY, received_before_ready_bytes=101 * MB, received_before_root_bytes=3 * MB, streamed_bytes=95 * MB,
    may_stream=True, latency_s=0.23,
)  # fmt: skip


THERE = replace(FULL, already_there=True, received_before_ready_bytes=70)


@pytest.mark.parametrize(
    "evidence", [THERE, FULL, LAZY, EAGER, STREAMED, replace(LAZY, root_file_systems=frozenset({"erofs"}))]
)
def test_clean_trial_is_valid(evidence: Evidence) -> None:
    """A trial that kept every rule has no invalidity."""
    assert check(evidence) == ()


@pytest.mark.parametrize(
    ("evidence", "rule", "words"),
    [
        (replace(LAZY, received_before_ready_bytes=90 * MB), "not-lazy", "90 % of the image's bytes"),
        (replace(STREAMED, streamed_bytes=0), "not-lazy", "101 % of the image's bytes were received before readiness"),
        (replace(STREAMED, streamed_bytes=5 * MB), "not-lazy", "96 % of the image's bytes were received before readi"),
        (
            replace(STREAMED, received_before_root_bytes=90 * MB),
            "not-lazy",
            "90 % of the image's bytes were received b",
        ),
        (replace(STREAMED, streamed_bytes=102 * MB), "stream-unfounded", "are said to have been streamed"),
        (replace(STREAMED, may_stream=False), "stream-unfounded", "which the preset's policy does not do"),
        (replace(STREAMED, latency_s=0.002), "stream-unfounded", "only 2 ms away"),
        (replace(LAZY, root_file_systems=frozenset({"ext4"})), "not-lazy", "neither FUSE nor EROFS but ext4"),
        (replace(LAZY, layers_lazy=0), "not-lazy", "no layer"),
        (replace(FULL, already_there=True), "not-there", "101 % of the image's bytes were received after T0"),
        (replace(FULL, root_file_systems=frozenset({"fuse"})), "fuse-in-full-pull", "served by FUSE"),
        (replace(FULL, received_before_ready_bytes=50 * MB), "cache-not-cold", "only 50 %"),
        (replace(LAZY, received_before_ready_bytes=0), "cache-not-cold", "there already"),
        (replace(FULL, cache_dropped=False), "cache-not-cold", "could not be dropped"),
        (replace(FULL, steal_share=0.06), "host-stolen", "6.0 %"),
        (replace(FULL, limits_wrong=("memory 2 bytes, not 1",)), "limits-not-as-asked", "memory 2 bytes, not 1"),
        (replace(FULL, cpu_s=4.0, wall_s=10.0, ceiling_cores=0.25), "limits-not-as-asked", "4.00 CPU seconds"),
        (replace(FULL, time_to_ready_s=1.0, bound_s=1.5), "below-bound", "1.50 s"),
        (replace(LAZY, daemons_died=("lazyfs",)), "daemon-died", "lazyfs"),
        (replace(LAZY, read_errors=3), "reads-failed", "3 read(s)"),
        (replace(LAZY, background_finished=False), "not-independent", "had not finished"),
        (replace(LAZY, pack=PackUsage(frames_total=9, failure="it is gone")), "pack-not-used", "came: it is gone"),
        (replace(LAZY, pack=PackUsage(frames=9, differs="bytes 0 to 4096")), "pack-differs", "bytes 0 to 4096"),
        (replace(FULL, oom_kills=2), "out-of-memory", "2 process"),
    ],
)
def test_rule(evidence: Evidence, rule: str, words: str) -> None:
    """Each rule speaks alone, and its reason carries the figures."""
    (found,) = check(evidence)
    assert found.rule == rule
    assert words in found.reason


def test_every_rule_is_reached() -> None:
    """All broken rules are reported together, in the stated order."""
    lazy = replace(LAZY, layers_lazy=0, received_before_ready_bytes=0, steal_share=1.0, oom_kills=1)
    lazy = replace(
        lazy,
        read_errors=1,
        pack=PackUsage(differs="somewhere"),
        background_finished=False,
        daemons_died=("d",),
        limits_wrong=("cpu",),
        time_to_ready_s=1.0,
        bound_s=2.0,
    )
    unfounded = replace(STREAMED, latency_s=0.0)
    full = replace(FULL, root_file_systems=frozenset({"fuse"}))
    found = rules(lazy)
    assert found == sorted(found, key=RULES.index)
    there = rules(replace(FULL, already_there=True))
    assert {*found, *rules(full), *there, *rules(unfounded)} == set(RULES)


def test_unready_trial_is_not_judged_on_bytes() -> None:
    """A trial that never got ready breaks no rule about what it had fetched by then."""
    assert check(replace(FULL, ready=False, received_before_ready_bytes=0)) == ()


def test_small_images_may_be_fetched_whole() -> None:
    """Below the stated size a handful of range requests is all of the image, which proves nothing."""
    assert check(replace(LAZY, image_compressed_bytes=2 * MB, received_before_ready_bytes=3 * MB)) == ()
