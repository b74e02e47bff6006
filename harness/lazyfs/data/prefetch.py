"""Fetches a prefetch list, the part of the image that an earlier start read, before and during the start."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from harness.lazyfs.data.fetch import Sink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from harness.lazyfs.data.memory_cache import Key
    from harness.lazyfs.data.pace import Pace
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store

log = logging.getLogger(__name__)

Extent = tuple[int, int, int]
"""Names a piece of a layer: (layer, begin, end) in the layer's address space."""

_WINDOW_UNITS = 48
"""Counts the units of a prefetch list that may be reordered among each other to merge their requests."""
_LEAD_BYTES = 1 << 20
_LEAD_GROUP_BYTES = 256 << 10
"""Say, far from the registry, how much is fetched in small requests, and how small they are."""
_WIDEST_GAP = 256 << 10
"""Limits the gaps that are fetched along, far from the registry, where that saves a second round of requests."""


def units_of(layer: Layer, begin: int, end: int) -> range:
    """Returns the units that hold a byte of [begin, end)."""
    if end <= begin:
        return range(0)
    first = max(0, bisect_right(layer.starts, begin) - 1)
    if first < len(layer.starts) and layer.ends[first] <= begin:
        first += 1
    return range(first, max(first, bisect_left(layer.starts, end)))


async def prefetch(store: Store, extents: Iterable[Extent]) -> int:
    """Fetches and verifies the units under ``extents``, about in their order, in large requests; returns their number.

    They stay as stored bytes (in memory, later on disk) until they are read: inflating is then as cheap, and what the
    list names in vain costs no CPU.
    """
    ordered: dict[tuple[int, int], None] = {}
    for number, begin, end in extents:
        for unit in units_of(store.layers[number], begin, end):
            ordered.setdefault((number, unit))
    pace = store.pace()
    gap = max(pace.merge_gap, _WIDEST_GAP) if pace.far else pace.merge_gap
    groups = deque(far_groups(store, list(ordered), pace) if pace.far else near_groups(store, list(ordered)))
    await _in_parallel(pace.in_flight, groups, partial(_prefetch_one, store, gap))
    return len(ordered)


def near_groups(store: Store, wanted: Sequence[Key]) -> list[tuple[Layer, list[int]]]:
    """Returns one list of units for each request; units that come soon after one another in ``wanted`` are merged."""
    groups: list[tuple[Layer, list[int]]] = []
    for start in range(0, len(wanted), _WINDOW_UNITS):
        groups += _merged(
            store, wanted[start : start + _WINDOW_UNITS], store.policy.merge_gap, store.policy.merge_bytes
        )
    return groups


def far_groups(store: Store, wanted: Sequence[Key], pace: Pace) -> list[tuple[Layer, list[int]]]:
    """Returns one list of units for each request, when the registry is far and a request costs its latency.

    The units wanted first come in small requests, so that the start has something to go on with. All other units are
    merged with their neighbours in the blob, whenever they are wanted: requests grow, and bridge wider gaps, until all
    of them fit into the flight at once or have reached their largest size. Requests are sent in the order in which
    their first unit is wanted.
    """
    sizes = [store.layers[number].units.extent(unit)[1] for number, unit in wanted]
    lead, lead_bytes = 0, 0
    while lead < min(len(wanted), pace.in_flight // 2) and lead_bytes < _LEAD_BYTES:
        lead_bytes += sizes[lead]
        lead += 1
    first_wanted = {key: position for position, key in enumerate(wanted)}

    def position(group: tuple[Layer, list[int]]) -> int:
        return min(first_wanted[group[0].index, unit] for unit in group[1])

    first = _merged(store, wanted[:lead], pace.merge_gap, _LEAD_GROUP_BYTES)
    slots = max(1, pace.in_flight - len(first))
    largest, widest = store.policy.merge_bytes, max(pace.merge_gap, _WIDEST_GAP)
    most, gap = max(_LEAD_GROUP_BYTES, min(largest, (sum(sizes) - lead_bytes) // slots)), pace.merge_gap
    rest = _merged(store, wanted[lead:], gap, most)
    while len(rest) > slots and (most < largest or gap < widest):
        most, gap = min(2 * most, largest), min(2 * gap, widest)
        rest = _merged(store, wanted[lead:], gap, most)
    return sorted(first, key=position) + sorted(rest, key=position)


def _merged(store: Store, keys: Sequence[Key], gap: int, most: int) -> list[tuple[Layer, list[int]]]:
    groups: list[tuple[Layer, list[int]]] = []
    for layer in store.layers:
        units = sorted(unit for number, unit in keys if number == layer.index)
        groups.extend((layer, group) for group in store.group(layer, units, gap=gap, most=most))
    return groups


async def _prefetch_one(store: Store, gap: int, layer: Layer, group: list[int]) -> None:
    # Looked at again when its turn comes: a read may have fetched it meanwhile.
    missing = [unit for unit in group if store.residency.missing(layer, unit)]
    for units in store.group(layer, missing, gap=gap):
        await store.fetch(layer, units, {}, Sink.MEMORY)


async def _in_parallel(
    tasks: int,
    groups: deque[tuple[Layer, list[int]]],
    work: Callable[[Layer, list[int]], Awaitable[None]],
) -> None:
    """Work the groups off in order, ``tasks`` at a time."""

    async def worker() -> None:
        while groups:
            await work(*groups.popleft())

    async with trio.open_nursery() as nursery:
        for _ in range(max(1, tasks)):
            nursery.start_soon(worker)


async def yield_to_foreground(store: Store) -> None:
    """Waits until no read waits and none has waited for ``background_quiet_s``."""
    while store.waiting:
        await trio.sleep(0.005)
    quiet_s = store.policy.background_quiet_s
    quiet_at = store.last_foreground + quiet_s
    while trio.current_time() < quiet_at or store.waiting:
        await trio.sleep(max(0.005, quiet_at - trio.current_time()))
        quiet_at = store.last_foreground + quiet_s
