"""This module does the work of one range request in a worker thread: it fetches, verifies, inflates and writes.

That is one hop per request. The interpreter lock is free while receiving, hashing and inflating. Nothing here touches
the store's state: results are values that the event loop installs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError, ContentError, FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.formats.table import RangeSource
    from harness.lazyfs.data.disk_cache import DiskCache
    from harness.lazyfs.data.units import Decoded, Units
    from harness.model.policy import LazyPolicy


_side_loads = ThreadPoolExecutor(32, "side-load")


class Sink(Enum):
    """Says where a request's units go."""

    MEMORY = auto()
    PACKED = auto()
    """Puts units into the disk cache as they came (background fetch: no CPU for bytes that may never be read)."""


@dataclass(slots=True)
class Fetched:
    """Holds what one request gave: decoded units, units left as stored bytes, and what failed and why."""

    received_bytes: int = 0
    decoded: list[tuple[Decoded, bytes | None]] = field(default_factory=list)
    """Lists decoded units, with the stored bytes of those that are not whole (of all, where they are to be kept)."""
    packed: list[tuple[int, bytes]] = field(default_factory=list)
    written_inflated: set[int] = field(default_factory=set)
    written_packed: set[int] = field(default_factory=set)
    failed: dict[int, ColdbenchError] = field(default_factory=dict)
    inflated_bytes: int = 0


def union(units: Units, chosen: Sequence[int]) -> tuple[int, int]:
    """Returns (offset, end) of one range over all chosen units."""
    extents = [units.extent(unit) for unit in chosen]
    return min(start for start, _ in extents), max(start + size for start, size in extents)


@dataclass(frozen=True, slots=True)
class Place:
    """Holds what a request needs to know of its layer."""

    units: Units
    source: RangeSource
    disk: DiskCache


def fetch(
    place: Place,
    chosen: Sequence[int],
    upto: Mapping[int, int],
    sink: Sink,
    policy: LazyPolicy,
    *,
    keep_packed: bool = False,
) -> Fetched:
    """Sends one range request for ``chosen``; units in ``upto`` are inflated to there, others stay as stored bytes.

    ``keep_packed`` asks for the stored bytes of whole units, too.

    A unit with bad bytes fails alone; only the request itself raises (RegistryError).
    """
    result = Fetched()
    units, source, disk = place.units, place.source, place.disk
    offset, end = union(units, chosen)
    # What is needed besides comes at the same time, not after: with a distant registry that is half the wait.
    unready = [] if sink is Sink.PACKED else [unit for unit in chosen if not units.ready(unit)]
    side = _side_loads.submit(units.load, unready) if unready else None
    try:
        data = source.read_range(offset, end - offset) if end > offset else b""
    finally:
        if side is not None:
            side.exception()
    if len(data) != end - offset:
        raise FormatError("range", f"{len(data)} bytes came for the {end - offset} at {offset}")
    result.received_bytes = len(data)
    view = memoryview(data)
    if side is not None:
        side.result()
    done: set[int] = set()
    for unit in chosen:
        if unit in done:
            continue
        start, size = units.extent(unit)
        part: bytes | memoryview = view[start - offset : start - offset + size]
        if size == len(data):
            part = data
        try:
            units.verify(unit, part)
            if sink is Sink.PACKED:
                if disk.packed is not None and disk.packed.write(unit, [part]):
                    result.written_packed.add(unit)
                continue
            if unit not in upto:
                result.packed.append((unit, bytes(part)))
                continue
            whole = units.ends[unit] - units.starts[unit]
            if keep_packed or (policy.partial_inflate and upto[unit] < whole):
                part = bytes(part)  # once, for who keeps it and for who inflates from it later
            for piece in units.decode(unit, part, upto[unit] if policy.partial_inflate else whole):
                done.add(piece.unit)
                result.inflated_bytes += sum(map(len, piece.pieces))
                file = disk.inflated if piece.rest is None and policy.cache_inflated else None
                if file is not None and file.write(piece.unit, piece.pieces):
                    result.written_inflated.add(piece.unit)
                kept = piece.rest is not None or (keep_packed and piece.unit == unit)
                result.decoded.append((piece, bytes(part) if kept else None))
        except ContentError as error:
            result.failed[unit] = error
    return result
