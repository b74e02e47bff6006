"""This module gets FUSE out of the way: it inflates everything into the cache file, and turns the kernel to that file.

The cache file has each byte where the served file has it, so that it is the same EROFS image once nothing is missing.
From then on no read comes here any more, and the end of the daemon harms nobody. No checksum of ours is held against
what the kernel reads there, so the file is synced and read back from the disk itself before the kernel is turned to it.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError, ContentError
from harness.lazyfs.data.prefetch import yield_to_foreground
from harness.lazyfs.mounting.loop_device import change_backing, read_ahead_as_local

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store

log = logging.getLogger(__name__)

_CHECKED_UNITS = 16
"""Counts the units read back from the disk between two looks at whether somebody waits for a read."""


async def inflate_all(store: Store) -> str:
    """Inflates into the cache file what is local but packed, unit by unit, yielding to reads.

    Returns "" when all is there, else what is in the way; units that turned out bad are lost, to be fetched again. It
    takes at most ``inflate_share`` of the time. What was stored packed is given back layer by layer, once the disk
    holds the layer.
    """
    for layer in store.layers:
        for unit in store.residency.not_inflated(layer):
            await yield_to_foreground(store)
            started = time.monotonic()
            try:
                if not await trio.to_thread.run_sync(_inflate, store, layer, unit):
                    if layer.disk.failure is None:
                        store.residency.lose(layer, unit)
                        return f"layer {layer.index}, unit {unit} is gone from the disk"
                    return f"the disk takes no more ({layer.disk.failure.strerror})"
            except ContentError as error:
                store.note_bad(layer, unit, error)
                store.residency.lose(layer, unit)
                return str(error)
            except ColdbenchError as error:
                return str(error)
            store.residency.note_inflated(layer, unit)
            await _rest(store, started)
        why = await _check(store, layer)
        if why:
            return why
        if layer.disk.packed is not None:
            layer.disk.packed.file.clear()
    return ""


async def _rest(store: Store, started: float) -> None:
    share = max(0.01, store.policy.inflate_share)
    await trio.sleep((time.monotonic() - started) * (1 / share - 1))


async def _check(store: Store, layer: Layer) -> str:
    """Syncs the layer and reads it back from the disk; returns "" when the disk holds what was written to it."""
    inflated = layer.disk.inflated
    if inflated is None:
        return "there is no disk cache"
    if not await trio.to_thread.run_sync(inflated.file.sync):
        return f"the disk does not keep what is written to it ({layer.disk.failure})"
    if store.policy.trust_disk:
        return ""
    bad: list[int] = []
    for units in _slices(len(layer)):
        await yield_to_foreground(store)
        started = time.monotonic()
        bad += await trio.to_thread.run_sync(inflated.bad_on_disk, units)
        await _rest(store, started)
    for unit in bad:
        store.residency.lose(layer, unit)
    return f"the disk lost {len(bad)} of the {len(layer)} units written to it" if bad else ""


def _slices(units: int) -> Iterator[range]:
    for first in range(0, units, _CHECKED_UNITS):
        yield range(first, min(first + _CHECKED_UNITS, units))


def _inflate(store: Store, layer: Layer, unit: int) -> bool:
    """Inflates one unit, in a worker thread; the store's own copy is left alone if a reader is at work on it."""
    inflated = layer.disk.inflated
    if inflated is None:
        return False
    resident = store.residency.resident(layer, unit)
    if resident is not None and resident.complete and not resident.busy:
        return inflated.write(unit, list(resident.pieces))
    packed = resident.packed if resident is not None else None
    if packed is None:
        packed = store.residency.read_packed(layer, unit)
    if packed is None:
        return False
    layer.units.verify(unit, packed)
    if not layer.units.ready(unit):
        layer.units.load([unit])
    size = layer.ends[unit] - layer.starts[unit]
    for decoded in layer.units.decode(unit, packed, size):
        if decoded.unit == unit and not inflated.write(unit, decoded.pieces):
            return False
    return True


def hand_over(devices: Sequence[str], mounted: str, file: SparseFile, metadata: memoryview, size: int) -> str:
    """Completes ``file``, syncs it and turns ``devices`` to it; returns "", or why disk or kernel refuse. Blocks.

    ``mounted`` is the device that EROFS is mounted from, one of these or another. A device that is not turned goes on
    reading the same bytes through FUSE.
    """
    if mounted in devices and not file.write(0, metadata):  # mounted from two devices, this one has the layers only
        return f"the disk takes no more ({file.health.failure})"
    try:
        os.ftruncate(file.descriptor, size)
    except OSError as error:
        return f"the disk does not take the file ({error.strerror})"
    if not file.sync():
        return f"the disk does not keep what is written to it ({file.health.failure})"
    try:
        for device in devices:
            change_backing(device, file.descriptor)
    except OSError as error:
        return f"the kernel does not turn the device to the local file ({error.strerror})"
    read_ahead_as_local(mounted)
    return ""
