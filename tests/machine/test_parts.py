"""The machine's pure parts: addresses, token buckets, records, pacing."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from harness.errors import MachineError, NotRoot
from harness.machine import addresses, host, records, scratch, shaping
from harness.machine.cgroup import Counters, CpuLimit
from harness.machine.records import ProcessId, Record
from harness.machine.relay import Pacer
from harness.model.shape import Network, load_shapes

if TYPE_CHECKING:
    from pathlib import Path


def test_addresses_do_not_meet() -> None:
    """Blocks drawn one after the other never overlap, with whatever else is in use."""
    used = ["10.0.0.1", "198.18.0.1"]
    blocks = set()
    for seed in range(200):
        block = addresses.choose_block(used, random.Random(seed % 3))
        assert addresses.is_simulated(block.host)
        assert block not in blocks
        blocks.add(block)
        used.append(block.machine)
    assert not addresses.is_simulated("198.20.0.1")
    assert not addresses.is_simulated("example.org")


def test_addresses_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every block is taken the error says how to get some back."""
    monkeypatch.setattr(addresses, "_BLOCKS", 2)
    with pytest.raises(MachineError, match="coldbench clean"):
        addresses.choose_block(["198.18.0.1", "198.18.0.6"], random.Random(1))


def test_one_rate_is_one_bucket() -> None:
    """A plain bandwidth is one token bucket that lets a GSO packet pass whole."""
    (bucket,) = shaping.filters(Network(rate_bits_s=80_000_000))
    assert bucket.rate_bytes_s == 10_000_000
    assert bucket.burst_bytes >= (64 << 10) + 1000
    assert bucket.limit_bytes > bucket.burst_bytes


def test_two_rates_are_two_buckets() -> None:
    """A vendor's bucket is nested in one of the burst rate, and never larger than tbf can hold."""
    network = load_shapes().get("aws-t2.micro").network
    assert network is not None
    outer, inner = shaping.filters(network)
    assert (outer.rate_bytes_s, inner.rate_bytes_s) == (128_000_000, 8_000_000)
    assert inner.burst_bytes == 8_000_000 * 250
    ticks_64ns = inner.burst_bytes / inner.rate_bytes_s / 64e-9
    assert ticks_64ns < 2**32


def test_the_way_to_the_registry_caps_the_rate() -> None:
    """What the way carries in all holds where it is lower, and makes the vendor's bucket moot."""
    network = Network(rate_bits_s=64_000_000, burst_bits_s=1_024_000_000, bucket_bytes=10**9)
    assert [b.rate_bytes_s for b in shaping.filters(network, 3_000_000)] == [3_000_000]
    assert [b.rate_bytes_s for b in shaping.cap_filters(3_000_000)] == [3_000_000]


def test_record_survives_a_round_trip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was saved is found again, with its owner alive; a broken file is no record."""
    monkeypatch.setattr(records, "RUN_DIR", tmp_path / "run")
    record = Record.new("machine", "label")
    record.files.append("/x")
    record.add_process(os.getpid())
    (tmp_path / "run" / "ffffffff.json").write_text('{"format": 1, "id": "ff')
    (tmp_path / "run" / "eeeeeeee.json").write_text('{"format": 2}')
    assert records.stored() == [record]
    assert record.owner.alive
    assert len(record.interface("h")) <= 15
    record.remove()
    assert records.stored() == []


def test_a_reused_pid_is_another_process() -> None:
    """A process is its pid and its start time."""
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.alive
    assert not ProcessId(me.pid, me.start_ticks + 1).alive
    assert ProcessId.of(2**22 + 1) is None


def test_counters_subtract_but_levels_do_not() -> None:
    """A difference is of what grows; the peak stays the peak."""
    later = Counters(cpu_total_s=3.0, nr_periods=9, memory_peak_bytes=500, memory_bytes=7)
    earlier = Counters(cpu_total_s=1.0, nr_periods=4, memory_peak_bytes=400, memory_bytes=6)
    assert later.since(earlier) == Counters(cpu_total_s=2.0, nr_periods=5, memory_peak_bytes=500, memory_bytes=7)


def test_no_part_of_the_cpu_seconds_is_negative() -> None:
    """The kernel puts its estimate of user and system right between two snapshots; the total stays what it is."""
    earlier = Counters(cpu_total_s=2.0, cpu_user_s=1.5, cpu_system_s=0.5)
    later = Counters(cpu_total_s=2.5, cpu_user_s=1.4, cpu_system_s=1.1)
    used = later.since(earlier)
    assert (used.cpu_total_s, used.cpu_user_s, used.cpu_system_s) == (0.5, 0.0, 0.5)
    back = Counters(cpu_total_s=2.5, cpu_user_s=2.3, cpu_system_s=0.2).since(earlier)
    assert (back.cpu_user_s, back.cpu_system_s) == (0.5, 0.0)


def test_the_least_quota() -> None:
    """The kernel refuses quotas below one millisecond, so none is asked for."""
    assert CpuLimit.of_cores(0.001, 100_000).quota_us == 1000


def test_pacer_without_round_trip_keeps_the_rate() -> None:
    """Chunks leave one after the other at the connection's rate, from when they came."""
    pacer = Pacer(rtt_s=0.0, rate_bytes_s=1_000_000)
    assert pacer.due(10.0, 500_000) == pytest.approx(10.5)
    assert pacer.due(10.1, 500_000) == pytest.approx(11.0)
    assert pacer.due(20.0, 1_000_000) == pytest.approx(21.0)


def test_pacer_starts_slowly_over_a_long_way() -> None:
    """With a round trip a connection doubles its rate each round trip up to its limit, and anew after a pause."""
    pacer = Pacer(rtt_s=0.1, rate_bytes_s=10_000_000)
    sent, ends = 0, 0.0
    while sent < 1_000_000:
        piece = pacer.piece()
        ends = pacer.due(0.0, piece)
        sent += piece
    # 14.5 kB doubling each 100 ms reaches 1 MB/s only after six round trips; at the limit alone it would be 0.1 s.
    assert 0.4 < ends < 0.8
    later = pacer.due(ends + 5.0, 14_480) - (ends + 5.0)
    assert later == pytest.approx(0.1)


def test_pacer_without_limits_passes_at_once() -> None:
    """Nothing asked for, nothing held back."""
    assert Pacer(0.0, 0.0).due(5.0, 10**9) == 5.0


def test_a_disk_never_takes_all_that_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no size is asked for, a quarter of the host's free space stays free."""
    for free_bytes, expected in ((1 << 40, 32 << 30), (8 << 30, 6 << 30), (0, 64 << 20)):
        status = os.statvfs_result((4096, 4096, 1 << 28, 0, free_bytes // 4096, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _path, status=status: status)
        assert scratch.default_size(tmp_path / "not" / "there") == expected


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the error says what needs it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRoot, match="a simulated machine needs root; run this with sudo"):
        host.require_root("a simulated machine")
