"""The lower bound: its formulas at hand-made figures, and that it never errs upwards."""

from __future__ import annotations

import math

import pytest

from harness.model import bound
from harness.model.bound import CpuBudget, ImageSize, LazyWork, Rates, Setting
from harness.model.shape import Distance, Shape, load_shapes, parse_shape

RATES = Rates(
    inflate_bytes_s=1e9,
    inflate_zstd_bytes_s=2e9,
    hash_bytes_s=1e9,
    receive_core_s_per_byte=1e-10,
    write_core_s_per_byte=1e-10,
    create_core_s=1e-5,
    fuse_request_core_s=1e-6,
)
IMAGE = ImageSize(compressed_bytes=338_000_000, uncompressed_bytes=1_050_000_000, files=43_000)
NEAR = Distance()


def setting(shape: str, distance: Distance = NEAR, application_core_s: float = 0.0) -> Setting:
    return Setting(parse_shape(shape), distance, RATES, host_cores=2, application_core_s=application_core_s)


def test_time_for_cpu_with_credits() -> None:
    """X core-seconds take X/b while credits last, then the rest at the baseline (with what the edges give away)."""
    cpu = CpuBudget(parse_shape("cpu=0.25,burst=2,credits=7"), host_cores=2)
    credit = 7 + 1.75 * 0.1
    assert cpu.seconds(4) == pytest.approx(2.0)
    at_burst = credit / 1.75
    assert cpu.seconds(2 * at_burst + 1) == pytest.approx(at_burst + (1 - 0.05) / 0.25)


def test_first_periods_quota_comes_at_once() -> None:
    """A quota is not spread over its period: what two periods hand out may be used at the speed of the host's cores."""
    cpu = CpuBudget(parse_shape("cpu=0.25"), host_cores=2)
    assert cpu.seconds(0.05) == pytest.approx(0.025)
    assert cpu.seconds(1.05) == pytest.approx(4)


def test_time_for_cpu_is_monotonic() -> None:
    """More work never takes less time, over the point where the credits run out."""
    for shape in load_shapes():
        cpu = CpuBudget(shape, host_cores=2)
        times = [cpu.seconds(x / 4) for x in range(80)]
        assert times == sorted(times), shape.label


def test_surplus_never_throttles() -> None:
    """An unlimited shape runs at its ceiling for ever."""
    cpu = CpuBudget(load_shapes().get("aws-t3.micro:fresh"), host_cores=8)
    assert cpu.seconds(1e6) == pytest.approx(5e5)
    assert math.isinf(cpu.credit_after(10, 10))


def test_no_limit_is_the_host() -> None:
    """Without a quota the host's cores bound the CPU, and nothing else bounds anything."""
    result = bound.full_pull(setting("unlimited"), IMAGE)
    work = sum(value for name, value in result.terms.items() if name.endswith("_core_s"))
    assert result.seconds == pytest.approx(work / 2)


def test_full_pull_terms() -> None:
    """Each term of the formula by hand, for a shape bound by its CPU and for one bound by its network."""
    result = bound.full_pull(setting("cpu=0.25,bandwidth=1Gbit"), IMAGE)
    work = 338e6 * 1e-10 + 338e6 / 1e9 + 1050e6 / 1e9 + 1050e6 * 1e-10 + 43_000 * 1e-5
    assert result.terms["cpu_s"] == pytest.approx((work - 0.05) / 0.25)
    assert result.seconds == result.terms["cpu_s"]
    slow = bound.full_pull(setting("cpu=2,bandwidth=24Mbit"), IMAGE)
    assert slow.seconds == pytest.approx((338e6 - (128 << 10)) / 3e6)


def test_rounds_and_application_add_up() -> None:
    """Control rounds come before, the application after, whatever bounds the middle."""
    distance = Distance(rtt_ms=80, first_byte_ms=120)
    bare = bound.full_pull(setting("cpu=1,bandwidth=1Gbit"), IMAGE)
    far = bound.full_pull(setting("cpu=1,bandwidth=1Gbit", distance, application_core_s=3.0), IMAGE)
    assert far.seconds == pytest.approx(bare.seconds + 2 * 0.2 + 3.0 - 0.0, abs=0.21)
    assert far.seconds > bare.seconds + 0.4 + 2.7


def test_credit_left_speeds_the_application() -> None:
    """Credits the pull did not use pay for the application."""
    rich = bound.full_pull(setting("cpu=0.1,burst=1,credits=1000", application_core_s=10), IMAGE)
    poor = bound.full_pull(setting("cpu=0.1,burst=1,credits=1", application_core_s=10), IMAGE)
    assert rich.terms["application_s"] == pytest.approx(10 - 2 * 0.1)
    assert poor.terms["application_s"] > 50


def test_network_bucket() -> None:
    """A burst rate holds until its bucket is empty, then the sustained rate."""
    network = parse_shape("bandwidth=80Mbit,burst-bandwidth=800Mbit,bucket=90M").network
    bucket = 90 << 20
    at_peak = bucket / 90e6
    size = 100e6 * at_peak + 50e6
    expected = at_peak + (50e6 - bound.burst_bytes(100e6)) / 10e6
    assert bound.transfer_seconds(size, network) == pytest.approx(expected)
    assert bound.transfer_seconds(size, network, total_bytes_s=5_000_000) == pytest.approx(
        (size - bound.burst_bytes(5e6)) / 5e6
    )
    assert bound.transfer_seconds(0, network) == 0


def test_disk_counts_only_where_it_must() -> None:
    """What fits in memory need not have reached the disk; a limit that does not hold for writeback is no bound."""
    shape = parse_shape("cpu=2,memory=1G,disk=10MB/s")
    big = ImageSize(compressed_bytes=10**9, uncompressed_bytes=3 * 10**9, files=1)
    held = Setting(shape, NEAR, RATES, host_cores=2, disk_limited=True)
    assert bound.full_pull(held, big).terms["disk_s"] == pytest.approx((3e9 - (1 << 30)) / 10e6)
    assert bound.full_pull(held, IMAGE).terms["disk_s"] == 0
    loose = Setting(shape, NEAR, RATES, host_cores=2)
    assert bound.full_pull(loose, big).terms["disk_s"] == 0


def test_lazy_terms() -> None:
    """Dependent rounds bound a lazy start where little has to move."""
    far = Distance(rtt_ms=100)
    work = LazyWork(compressed_bytes=10_000_000, uncompressed_bytes=30_000_000, index_bytes=1_000_000,
                    dependent_rounds=40)  # fmt: skip
    result = bound.lazy(setting("cpu=2,bandwidth=1Gbit", far), work)
    assert result.seconds == pytest.approx(0.1 + 40 * 0.1 + (10e6 - 250_000) / 125e6)
    assert bound.lazy(setting("cpu=0.1,bandwidth=1Gbit"), work).seconds < result.seconds


def test_a_start_pack_is_unpacked_too() -> None:
    """Its bytes bound a start by zstd's rate, whatever the layers' compression is."""
    without = bound.lazy(setting("cpu=0.1"), LazyWork(10_000_000, 0))
    packed = bound.lazy(setting("cpu=0.1"), LazyWork(10_000_000, 0, unpacked_bytes=10**9))
    assert packed.terms["unpack_core_s"] == pytest.approx(0.5)
    assert packed.seconds > without.seconds + 0.9 * 0.5 / 0.1


def test_lazy_never_above_full_for_the_same_bytes() -> None:
    """Lazily moving all of the image is bounded by no more than pulling it."""
    for name in ("gcp-e2-micro", "aws-t2.micro:drained", "unlimited"):
        whole = LazyWork(IMAGE.compressed_bytes, IMAGE.uncompressed_bytes)
        assert bound.lazy(setting(name), whole).seconds <= bound.full_pull(setting(name), IMAGE).seconds


def test_uncompressed_layers_cost_no_inflating() -> None:
    """A layer that is not compressed, or with zstd, is bounded by its own rate."""
    plain = ImageSize(10**9, 10**9, 1, compression="none")
    zstd = ImageSize(10**9, 10**9, 1, compression="zstd")
    assert bound.full_pull(setting("unlimited"), plain).terms["inflate_core_s"] == 0
    assert bound.full_pull(setting("unlimited"), zstd).terms["inflate_core_s"] == pytest.approx(0.5)


def test_the_ceiling_is_no_more_than_the_host() -> None:
    """A shape larger than the host is bounded by the host."""
    assert CpuBudget(Shape(name="big", vcpus=64, baseline_cores=64), host_cores=2).seconds(4) == 2
