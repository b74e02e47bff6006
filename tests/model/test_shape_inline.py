"""Shapes and distances as users write them on the command line."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.model.shape import load_shapes, parse_distance, parse_shape


def test_inline_definition() -> None:
    """Each part lands in its field, in base units; what is not said is not limited."""
    shape = parse_shape("cpu=0.25,memory=1G,bandwidth=1Gbit,rtt=10ms")
    assert shape.baseline_cores == shape.ceiling_cores == 0.25
    assert shape.memory_bytes == 1 << 30
    assert shape.rate_bits_s == 10**9
    assert shape.distance is not None
    assert shape.distance.rtt_ms == 10
    assert shape.credits is None
    assert shape.disk is None
    assert shape.label == "cpu=0.25,memory=1G,bandwidth=1Gbit,rtt=10ms"


def test_inline_disk() -> None:
    """Rate, operations and size of the disk; the size alone sets no limit on how fast it is."""
    assert parse_shape("disk-size=2G").disk is None
    shape = parse_shape("gcp-e2-micro,disk=50MB/s,iops=300,disk-size=512M")
    assert shape.disk is not None
    assert (shape.disk.bytes_per_s, shape.disk.iops, shape.disk_size_bytes) == (50_000_000, 300, 512 << 20)
    with pytest.raises(UsageError, match="disk-size: expected at least 16777216, got 1048576"):
        parse_shape("disk-size=1M")


def test_inline_credits() -> None:
    """Credits lift the CPU to the burst and are earned at the baseline unless said otherwise."""
    shape = parse_shape("cpu=250m,burst=2,credits=30,period=80ms")
    assert shape.credits is not None
    assert (shape.credits.at_boot_core_s, shape.credits.earned_core_s_per_h) == (30, 900)
    assert (shape.ceiling_cores, shape.period_us) == (2, 80_000)
    assert shape.label.endswith(":fresh")


def test_changes_to_a_named_shape() -> None:
    """A name followed by parts is that shape with these parts changed."""
    shape = parse_shape("aws-t2.micro:drained,bandwidth=64Mbit,distance=far,rtt=20ms")
    assert shape.baseline_cores == 0.1
    assert shape.form == "drained"
    assert shape.network is not None
    assert shape.network.burst_bits_s is None
    assert shape.distance is not None
    assert (shape.distance.rtt_ms, shape.distance.first_byte_ms) == (20, 150)
    assert parse_shape("aws-t2.micro") is load_shapes().get("aws-t2.micro")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty shape"),
        ("cpu=0.25,memroy=1G", "did you mean memory="),
        ("cpu=0.25,whatever", "unknown part 'whatever'"),
        ("cpu=0.25,cpu=1", "cpu is given twice"),
        ("memory=1X", "a size such as 512M or 1G"),
        ("memory=1", "memory: expected at least 16777216, got 1"),
        ("bandwidth=100", "a rate such as 1Gbit"),
        ("rtt=10", "a duration such as 10ms"),
        ("cpu=-1", "a number such as"),
        ("cpu=0", "cpu: expected more than 0, got 0"),
        ("cpu=0.5,burst=2", "credits=SECONDS"),
        ("cpu=0.5,credits=10", "burst=CORES or vcpus=N"),
        ("bucket=1G", "need bandwidth="),
        ("gcp-e2-micor,rtt=1ms", "did you mean gcp-e2-micro"),
        ("distance=fra", "did you mean far"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    """A wrong inline form says which part is wrong and what was expected, in one line."""
    with pytest.raises(UsageError, match=says.replace("(", "\\(")) as caught:
        parse_shape(text)
    assert "\n" not in str(caught.value)


def test_distance_forms() -> None:
    """A distance is a preset or its own figures, and nothing that belongs to a machine."""
    assert parse_distance("near").first_byte_ms == 30
    inline = parse_distance("rtt=10ms,per-connection=25MB/s,in-all=50MB/s")
    assert (inline.rtt_ms, inline.per_connection_bytes_s, inline.total_bytes_s) == (10, 25_000_000, 50_000_000)
    assert inline.name == "rtt=10ms,per-connection=25MB/s,in-all=50MB/s"
    with pytest.raises(UsageError, match="belong to a distance"):
        parse_distance("rtt=10ms,memory=1G")
    with pytest.raises(UsageError, match="did you mean near"):
        parse_distance("neer")
