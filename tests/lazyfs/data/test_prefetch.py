"""How a prefetch list becomes requests, near the registry and far from it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from harness.lazyfs.counters import Counters
from harness.lazyfs.data import prefetch
from harness.lazyfs.data.disk_cache import DiskCache
from harness.lazyfs.data.pace import Pace
from harness.lazyfs.data.store import Store
from harness.lazyfs.data.units import Decoded
from harness.model.policy import LazyPolicy
from harness.oci.registry.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from harness.lazyfs.data.residency import Layer

KIB = 1 << 10
UNIT = 90 * KIB
UNITS = 200


class Plain:
    """Units of ``UNIT`` bytes that are stored as they are."""

    size = UNIT * UNITS
    starts: Sequence[int] = range(0, size, UNIT)
    ends: Sequence[int] = range(UNIT, size + 1, UNIT)

    def extent(self, unit: int) -> tuple[int, int]:
        return unit * UNIT, UNIT

    def ready(self, unit: int) -> bool:
        return True

    def load(self, units: Sequence[int]) -> None:
        """Nothing."""

    def verify(self, unit: int, packed: bytes | memoryview) -> None:
        """Nothing."""

    def decode(self, unit: int, packed: bytes | memoryview, upto: int) -> list[Decoded]:
        return [Decoded(unit, [bytes(packed)], None)]


class Source:
    """Zeros, and a note of each range."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def read_range(self, offset: int, size: int) -> bytes:
        self.ranges.append((offset, size))
        return bytes(size)


FAR = Pace(far=True, in_flight=16, merge_gap=250 * KIB, block=KIB, least_block=KIB)


def run(work: Callable[[Store, Layer, Source], Awaitable[None]], link: Link | None = None) -> None:
    """Run ``work`` with a store of one layer."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            store = Store(LazyPolicy(), Counters(), nursery, link)
            source = Source()
            plain = Plain()
            layer = store.add_layer(plain, source, DiskCache(None, 0, plain))
            await work(store, layer, source)
            nursery.cancel_scope.cancel()

    trio.run(main)


def planned(wanted: Sequence[int], pace: Pace | None) -> list[list[int]]:
    """The units of each request, in the order of sending."""
    found: list[list[int]] = []

    async def work(store: Store, layer: Layer, source: Source) -> None:
        keys = [(0, unit) for unit in wanted]
        groups = prefetch.near_groups(store, keys) if pace is None else prefetch.far_groups(store, keys, pace)
        found.extend(units for _, units in groups)

    run(work)
    return found


def test_every_unit_is_in_one_request() -> None:
    """Whatever the order of the list and the distance."""
    wanted = [*range(150, 190, 3), *range(0, 100, 2), *range(101, 120)]
    for pace in (None, FAR):
        assert sorted(itertools.chain(*planned(wanted, pace))) == sorted(wanted)


def test_far_the_first_come_in_small_requests() -> None:
    """What the start waits for does not stand behind a megabyte."""
    groups = planned(list(range(UNITS)), FAR)
    first = [len(group) for group in groups if group[0] < 8]
    assert groups[0][0] == 0
    assert all(size * UNIT <= 256 * KIB for size in first)


def test_far_gaps_are_fetched_along() -> None:
    """Neighbours join over what a request's share of the latency brings, however far apart on the list they are."""
    lead = list(range(100, 111))
    scattered = [*range(0, 90, 4), *range(2, 90, 4)]
    assert len(planned([*lead, *scattered], None)) > 40
    far = planned([*lead, *scattered], FAR)
    assert all(later - earlier == 2 for group in far if group[0] < 90 for earlier, later in itertools.pairwise(group))


def test_far_requests_are_sized_for_all_in_flight() -> None:
    """A list is shared out among the connections rather than left to one of them."""
    groups = [group for group in planned(list(range(UNITS)), FAR) if group[0] > 11]
    sizes = [len(group) * UNIT for group in groups]
    assert max(sizes) <= 2 * UNITS * UNIT // FAR.in_flight
    assert FAR.in_flight // 2 <= len(groups) <= FAR.in_flight


def test_far_what_is_wanted_first_is_asked_for_first() -> None:
    """Requests go out in the order of the first unit on the list that each brings."""
    wanted = [*range(11), *range(180, 190), *range(100, 130), *range(50, 60)]
    groups = planned(wanted, FAR)
    positions = [min(wanted.index(unit) for unit in group) for group in groups]
    assert positions == sorted(positions)


def test_prefetch_follows_the_link() -> None:
    """The same list takes fewer requests once the registry has shown to be far."""
    asked: dict[bool, int] = {}
    for far in (False, True):
        link = Link()
        link.hint(0.23 if far else 0.001)

        async def work(store: Store, layer: Layer, source: Source, far: bool = far) -> None:
            await prefetch.prefetch(store, [(0, unit * UNIT, unit * UNIT + 1) for unit in range(0, UNITS, 2)])
            assert [store.residency.missing(layer, unit) for unit in range(UNITS)] == [False, True] * (UNITS // 2)
            asked[far] = len(source.ranges)

        run(work, link)
    assert asked[True] < asked[False]


def test_far_a_miss_brings_its_neighbours_while_it_may() -> None:
    """Far wider than near, units in part of the block included; never most of the layer."""
    brought: dict[float, list[int]] = {}
    for latency_s in (0.001, 0.23):
        link = Link()
        link.hint(latency_s)

        async def work(store: Store, layer: Layer, source: Source, latency_s: float = latency_s) -> None:
            await store.read(layer, 100 * UNIT, 10, layer.size)
            brought[latency_s] = [unit for unit in range(UNITS) if not store.residency.missing(layer, unit)]
            for unit in range(0, UNITS, 20):
                await store.read(layer, unit * UNIT, 10, layer.size)
            assert store.counters.bytes_fetched < layer.size * 3 // 4

        run(work, link)
    assert len(brought[0.001]) <= 2
    block = 1 << 20
    first, last = brought[0.23][0], brought[0.23][-1]
    low = 100 * UNIT // block * block
    assert first * UNIT < low < (first + 1) * UNIT
    assert last * UNIT < low + block <= (last + 1) * UNIT


def test_far_all_requests_are_in_flight_at_once_where_that_is_possible() -> None:
    """Pieces scattered wider than the gap are joined rather than left for a second round."""
    far = replace(FAR, merge_gap=UNIT // 2)
    wanted = list(range(0, UNITS, 3))
    assert len(planned(wanted, far)) <= far.in_flight
    apart = list(range(0, UNITS, 8))
    assert sorted(itertools.chain(*planned(apart, far))) == apart, "too far apart to be joined: more rounds"
