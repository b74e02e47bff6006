"""Getting FUSE out of the way: everything inflated into the cache file, and the kernel turned to that file.

The cache file has each byte where the served file has it, so that it is the same EROFS image once nothing is missing.
From then on no read comes here any more, and the end of the daemon harms nobody.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError
from harness.lazyfs.data.prefetch import yield_to_foreground
from harness.lazyfs.mounting.loop_device import change_backing

if TYPE_CHECKING:
    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store

log = logging.getLogger(__name__)


async def inflate_all(store: Store) -> bool:
    """Inflate into the cache file what is local but packed, unit by unit, yielding to reads; whether all is there.

    Takes at most ``inflate_share`` of the time. What was stored packed is given back layer by layer.
    """
    for layer in store.layers:
        for unit in store.residency.not_inflated(layer):
            await yield_to_foreground(store)
            started = time.monotonic()
            try:
                if not await trio.to_thread.run_sync(_inflate, store, layer, unit):
                    return False
            except ColdbenchError as error:
                store.note_bad(layer, unit, error)
                return False
            store.residency.note_inflated(layer, unit)
            share = max(0.01, store.policy.inflate_share)
            await trio.sleep((time.monotonic() - started) * (1 / share - 1))
        if layer.disk.packed is not None:
            layer.disk.packed.clear()
    return True


def _inflate(store: Store, layer: Layer, unit: int) -> bool:
    """One unit, in a worker thread; the store's own copy, if a reader is at work on it, is left alone."""
    file, packed_file = layer.disk.inflated, layer.disk.packed
    if file is None or packed_file is None:
        return False
    resident = store.residency.resident(layer, unit)
    if resident is not None and resident.complete and not resident.busy:
        return file.write_pieces(layer.starts[unit], list(resident.pieces))
    packed = resident.packed if resident is not None else None
    if packed is None:
        packed = packed_file.read(*layer.units.extent(unit))
    if packed is None:
        return False
    layer.units.verify(unit, packed)
    if not layer.units.ready(unit):
        layer.units.load([unit])
    size = layer.ends[unit] - layer.starts[unit]
    for decoded in layer.units.decode(unit, packed, size):
        if decoded.unit == unit and not file.write_pieces(layer.starts[unit], decoded.pieces):
            return False
    return True


def hand_over(device: str, mounted: str, file: SparseFile, metadata: memoryview, size: int) -> bool:
    """Complete ``file`` and turn ``device`` to it; False, with a warning, when disk or kernel refuses. Blocks.

    ``mounted``: the device that EROFS is mounted from, this or another.
    """
    if device == mounted and not file.write(0, metadata):
        return False  # mounted from two devices, this one has the layers only
    try:
        os.ftruncate(file.descriptor, size)
        change_backing(device, file.descriptor, mounted)
    except OSError as error:
        log.warning("handing the mount over to the local file: %s", error)
        return False
    return True
