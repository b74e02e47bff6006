"""When layers are streamed before readiness, and what that does to reads and counters."""

from __future__ import annotations

import gzip
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from harness.errors import RegistryError
from harness.kernel.cpu_meter import CpuMeter, CpuReading
from harness.lazyfs.counters import Counters
from harness.lazyfs.data import stream_width
from harness.lazyfs.data.disk_cache import DiskCache
from harness.lazyfs.data.residency import PACKED
from harness.lazyfs.data.store import Store
from harness.lazyfs.data.stream import Stream, foreseen, seen
from harness.lazyfs.data.stream_width import Width, Worth
from harness.model.modes import lazy_modes
from harness.model.policy import LazyPolicy
from harness.oci.registry.link import Link
from tests.lazyfs.data.test_store import BLOB, TAR, Source, units_of
from tests.lazyfs.support import File, noise, tar_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from harness.lazyfs.data.residency import Layer

POLICY = LazyPolicy(readahead_units=0, block_bytes=0, merge_bytes=100 << 10, merge_gap=0)


class Meter(CpuMeter):
    """Some cores, a quarter of one if not said, of which nothing is ever used."""

    def __init__(self, cores: float = 0.25) -> None:
        super().__init__()
        self.cores = cores

    def read(self) -> CpuReading | None:
        return CpuReading(1.0, self.cores)


def link(latency_s: float) -> Link:
    made = Link()
    made.hint(latency_s)
    return made


def run(
    work: Callable[[Store, Layer, Source, trio.Nursery], Awaitable[None]],
    directory: Path | None,
    latency_s: float = 0.23,
    policy: LazyPolicy = POLICY,
    *,
    clock: trio.abc.Clock | None = None,
    blob: bytes = BLOB,
) -> Counters:
    """Run ``work`` with a store of one layer whose registry is that far away."""
    counters = Counters()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            store = Store(policy, counters, nursery, link(latency_s))
            source, units = Source(blob), units_of(blob)
            layer = store.add_layer(units, source, DiskCache(str(directory) if directory else None, 0, units))
            await work(store, layer, source, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    return counters


@pytest.mark.parametrize(
    ("latency_s", "cores", "expected"),
    [
        (0.23, 0.25, True),
        (0.031, 0.25, False),
        (0.06, 2.0, True),
        (0.001, 2.0, False),
        (0.06, 0.25, False),
        (0.03, 4.0, False),
    ],
    ids=["far", "near and slow", "farther and fast", "beside it", "between", "a busy host"],
)
def test_idleness_foreseen(latency_s: float, cores: float, expected: bool) -> None:
    """What counts is the CPU that lies idle while a miss is on its way, not the latency alone."""
    assert foreseen(latency_s, cores) is expected


def test_idleness_seen() -> None:
    """Else the CPU must have been left while reads waited; a start at the limit of its CPU streams nothing."""
    before = CpuReading(1.0, 0.5)
    assert seen(before, CpuReading(1.1, 0.5), 1.0, 0.9, 0.04) == pytest.approx(0.8)
    assert seen(before, CpuReading(1.25, 0.5), 1.0, 0.9, 0.04) is None, "it was half used: near that is the limit soon"
    assert seen(before, CpuReading(1.1, 0.5), 1.0, 0.2, 0.04) is None, "nobody waited"
    assert seen(before, CpuReading(1.1, 0.5, 0.3), 1.0, 0.9, 0.04) is None, "others had the cores"
    assert seen(before, CpuReading(1.1, 0.5), 1.0, 0.9, 0.012) is None, "so short a round leaves little idle"


def test_width_doubles_where_that_brings_more() -> None:
    """As long as each request keeps its rate there are more; where they only share one link, as many as before."""
    free, shared = Width(), Width()
    for width in (free, shared):
        for _ in range(4):
            width.note(4, 1 << 20, 0.5)
        assert width.now == 8
    for _ in range(8):
        free.note(8, 1 << 20, 0.55)
        shared.note(8, 1 << 20, 1.0)
    assert (free.now, shared.now) == (8, 4)
    for _ in range(4):
        shared.note(4, 1 << 20, 0.5)
    assert shared.now == 4, "it is not tried again"


def laps(worth: Worth, rates: Sequence[float], latency_s: float, width: int = 4) -> None:
    """Tells ``worth`` of laps of half a megabyte a request, which have the link at these rates, in MB/s, together."""
    for rate in rates:
        for _ in range(width):
            worth.note(width, 500_000, latency_s + width * 0.5 / rate)


@pytest.mark.parametrize(
    ("left_mb", "latency_s", "rates", "given"),
    [
        (216, 0.23, [3, 31, 31], True),
        (319, 0.23, [3, 14, 12], True),
        (216, 0.23, [2.3, 2.5], False),
        (216, 0.23, [1, 2, 4], True),
        (20, 0.23, [2.3, 2.5], True),
        (216, 0.012, [12, 12], False),
        (216, 0.23, [2.3], True),
    ],
    ids=[
        "far",
        "far, short of CPU",
        "narrow",
        "slow start",
        "a small image",
        "100 Mbit/s and 10 ms",
        "one lap",
    ],
)
def test_a_stream_is_worth_its_time(left_mb: int, latency_s: float, rates: list[float], given: bool) -> None:
    """It goes on while connections get faster, and then as long as it takes less time than the round trips it saves."""
    worth = Worth(left_mb * 1_000_000, latency_s)
    laps(worth, rates, latency_s)
    assert worth.given is given
    assert worth.rate_bytes_s == pytest.approx(1e6 * rates[-1])


@pytest.mark.parametrize(
    ("body_s", "size", "streamed"),
    [(0.01, 1 << 20, True), (1.0, 1 << 20, False), (0.035, 70_000, False)],
    ids=["room", "full", "slow"],
)
def test_nothing_is_streamed_over_a_link_that_the_reads_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body_s: float, size: int, streamed: bool
) -> None:
    """With the CPU idle and reads waiting, what decides is whether answers take long to begin or long to come, and
    whether the rest would come in time at the rate that they have.
    """
    monkeypatch.setattr(stream_width, "_MISSES", 0.1)

    async def work(store: Store, layer: Layer, _source: Source, _nursery: trio.Nursery) -> None:
        assert store.link is not None
        store.link.note(0.02, size, body_s)
        store.waiting = 1
        with trio.move_on_after(30):
            await Stream(store, Meter(2.0)).run(trio.Event())
        assert store.residency.all_local() is streamed

    told = run(work, tmp_path, latency_s=0.02, clock=trio.testing.MockClock(autojump_threshold=0.01)).usage()
    assert bool(told.streamed_why) is streamed


def test_a_stream_that_the_link_does_not_carry_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began as foreseen; reads have the link to themselves from then on, and what was streamed is told."""

    layer_blob = gzip.compress(tar_of(File("a", noise(3_000_000))), 1, mtime=0)

    class Narrow(Source):
        """Brings one range after the other, as a narrow link does."""

        line = threading.Lock()

        def read_range(self, offset: int, size: int) -> bytes:
            with self.line:
                threading.Event().wait(size / 20e6)
            return super().read_range(offset, size)

    async def work(store: Store, layer: Layer, _source: Source, _nursery: trio.Nursery) -> None:
        source = Narrow(layer_blob)
        object.__setattr__(layer.place, "source", source)
        await Stream(store, Meter()).run(trio.Event())
        assert not store.residency.all_local()
        assert 0 < sum(size for _, size in source.ranges) < len(source.blob)

    monkeypatch.setattr(stream_width, "_MISSES", 0.001)
    told = run(work, tmp_path, policy=replace(POLICY, merge_bytes=64 << 10), blob=layer_blob).usage()
    assert "given up, at " in told.streamed_why
    assert told.bytes_streamed > 0


def test_far_everything_comes_along_as_stored_bytes(tmp_path: Path) -> None:
    """The layers come whole, nothing of them is inflated, reads find it all there, and it is counted as streamed."""

    async def work(store: Store, layer: Layer, source: Source, _nursery: trio.Nursery) -> None:
        assert bytes(await store.read(layer, 0, 10, layer.size)) == TAR[:10]
        asked = store.counters.bytes_fetched
        inflated = store.counters.bytes_inflated
        await Stream(store, Meter()).run(trio.Event())
        assert store.residency.all_local()
        assert {store.residency.state(layer, unit) for unit in range(1, len(layer))} == {PACKED}
        assert store.counters.bytes_inflated == inflated
        assert store.counters.bytes_fetched == sum(size for _, size in source.ranges) >= len(source.blob) - 20
        assert store.counters.bytes_streamed == store.counters.bytes_fetched - asked
        requests = len(source.ranges)
        assert bytes(await store.read(layer, 0, layer.size, layer.size)) == TAR[: layer.size]
        assert len(source.ranges) == requests
        store.counters.freeze()

    told = run(work, tmp_path).usage()
    assert told.bytes_streamed_before_ready == told.bytes_streamed > 0
    assert told.streamed_since_s is not None
    assert "230 ms a round, 0.25 cores" in told.streamed_why


def test_a_read_goes_beside_the_stream(tmp_path: Path) -> None:
    """While the stream's requests are held up, a read of something else is a request of its own and is answered."""

    class Held(Source):
        """Holds up the first four ranges."""

        def read_range(self, offset: int, size: int) -> bytes:
            with self.lock:
                self.ranges.append((offset, size))
                held = len(self.ranges) <= 4
            if held and self.hold is not None:
                self.hold.wait(20)
            return self.blob[offset : offset + size]

    async def work(store: Store, layer: Layer, _source: Source, nursery: trio.Nursery) -> None:
        source = Held()
        source.hold = threading.Event()
        object.__setattr__(layer.place, "source", source)
        nursery.start_soon(Stream(store, Meter()).run, trio.Event())
        while len(source.ranges) < 4:
            await trio.sleep(0.001)
        free = next(unit for unit in range(len(layer)) if store.residency.missing(layer, unit))
        begin = layer.starts[free]
        assert bytes(await store.read(layer, begin, 10, layer.size)) == TAR[begin : begin + 10]
        assert len(source.ranges) == 5
        source.hold.set()

    run(work, tmp_path, policy=replace(POLICY, merge_bytes=64 << 10))


@pytest.mark.parametrize(
    ("latency_s", "stream", "why"),
    [(0.002, True, "near"), (0.23, False, "switched off"), (0.23, True, "no disk")],
    ids=["near", "off", "no disk"],
)
def test_nothing_is_streamed(tmp_path: Path, latency_s: float, stream: bool, why: str) -> None:
    """Near, by policy, and where nothing can be kept: only what is read comes, and no stream is told of."""

    async def work(store: Store, _layer: Layer, source: Source, nursery: trio.Nursery) -> None:
        ready = trio.Event()
        nursery.start_soon(Stream(store, Meter()).run, ready)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        ready.set()
        assert not source.ranges

    told = run(work, None if why == "no disk" else tmp_path, latency_s, replace(POLICY, stream=stream)).usage()
    assert (told.bytes_streamed, told.streamed_since_s, told.streamed_why) == (0, None, "")


def test_a_prefetch_list_goes_first(tmp_path: Path) -> None:
    """Nothing is streamed while a list is fetched, and readiness meanwhile ends the wait."""

    async def work(store: Store, _layer: Layer, source: Source, nursery: trio.Nursery) -> None:
        ready, ended = trio.Event(), trio.Event()

        async def stream() -> None:
            await Stream(store, Meter(), prefetched=trio.Event()).run(ready)
            ended.set()

        nursery.start_soon(stream)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        ready.set()
        await ended.wait()
        assert not source.ranges

    run(work, tmp_path)


@pytest.mark.logs("registry is away|refused")
def test_an_outage_ends_the_stream(tmp_path: Path) -> None:
    """It leaves the rest to the background fetch, which waits for the registry."""

    async def work(store: Store, layer: Layer, source: Source, _nursery: trio.Nursery) -> None:
        source.error = RegistryError("refused")
        await Stream(store, Meter()).run(trio.Event())
        assert len(store.residency.absent_on_disk(layer)) == len(layer)

    assert run(work, tmp_path).bytes_streamed == 0


def test_who_imitates_others_does_not_stream() -> None:
    """The reference daemons have nothing of the kind, and neither have their imitations nor a full pull."""
    streaming = {f"{mode.name}:{preset.name}" for mode in lazy_modes() for preset in mode.presets if preset.streams({})}
    assert not any("reference" in name or "eager" in name for name in streaming)
    assert {f"{mode.name}:{mode.best.name}" for mode in lazy_modes()} <= streaming
    assert not any(mode.best.streams({"stream": False}) for mode in lazy_modes())
