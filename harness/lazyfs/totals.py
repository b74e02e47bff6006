"""This module keeps what a daemon counted where its death does not reach, and adds up all daemons of a mount.

Requests and bytes are written with each request that ends, everything else about once a second: a daemon that is
killed loses no more of it. The memory is shared (memfd) and held open by the holder.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import replace

import msgspec

from harness.lazyfs.messages import Histogram, OpcodeUsage, PackUsage, Usage

_WIRE = struct.Struct("<QQQ")
"""Holds requests, bytes fetched, retries."""
_SLOT = struct.Struct("<QII")
"""Holds the number of the writing, size, checksum; then come the counters."""
_FIRST, _SLOT_BYTES = 4096, 64 << 10
_SUMS = (
    "bytes_fetched", "requests", "retries", "spans_fetched", "bytes_inflated", "digest_mismatches", "bytes_pushed",
    "cpu_s", "read_errors", "layers_refetched", "bytes_streamed",
)  # fmt: skip


class Totals:
    """Keeps the counters in shared memory; ``descriptor`` is an earlier daemon's."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Raises OSError when memory is out."""
        size = _FIRST + 2 * _SLOT_BYTES
        fresh = descriptor is None
        self.descriptor = os.memfd_create("coldbench-totals") if descriptor is None else descriptor
        if fresh:
            os.ftruncate(self.descriptor, size)
        self._memory = mmap.mmap(self.descriptor, size)
        self._writing = 0

    def save_wire(self, requests: int, fetched_bytes: int, retries: int) -> None:
        """Saves what crossed the wire up to now, of all daemons."""
        _WIRE.pack_into(self._memory, 0, requests, fetched_bytes, retries)

    def save(self, usage: Usage) -> None:
        """Saves all counters up to now, of all daemons."""
        data = msgspec.json.encode(usage)
        if len(data) > _SLOT_BYTES - _SLOT.size:
            return
        self.save_wire(usage.requests, usage.bytes_fetched, usage.retries)
        self._writing += 1
        place = _FIRST + self._writing % 2 * _SLOT_BYTES
        self._memory[place + _SLOT.size : place + _SLOT.size + len(data)] = data
        _SLOT.pack_into(self._memory, place, self._writing, len(data), zlib.crc32(data))

    def load(self) -> Usage | None:
        """Returns what was counted up to the last daemon's death; None when it had counted nothing yet."""
        found: dict[int, bytes] = {}
        for place in (_FIRST, _FIRST + _SLOT_BYTES):
            writing, size, checksum = _SLOT.unpack_from(self._memory, place)
            data = self._memory[place + _SLOT.size : place + _SLOT.size + min(size, _SLOT_BYTES)]
            if writing and zlib.crc32(data) == checksum:
                found[writing] = data
        if not found:
            return None
        self._writing = max(found)
        usage = msgspec.json.decode(found[self._writing], type=Usage)
        requests, fetched_bytes, retries = _WIRE.unpack_from(self._memory)
        return replace(
            usage,
            requests=max(usage.requests, requests),
            bytes_fetched=max(usage.bytes_fetched, fetched_bytes),
            retries=max(usage.retries, retries),
        )


def added(before: Usage, now: Usage) -> Usage:
    """Adds up what daemons counted one after the other. A state (complete, handed over) is the last one's."""
    sums = {name: getattr(before, name) + getattr(now, name) for name in _SUMS}
    names = sorted(before.fuse.keys() | now.fuse.keys())
    return replace(
        now,
        **sums,
        fuse={name: _opcodes(before.fuse.get(name), now.fuse.get(name)) for name in names},
        memory_peak_bytes=max(before.memory_peak_bytes, now.memory_peak_bytes),
        disk_full=before.disk_full or now.disk_full,
        streamed_since_s=now.streamed_since_s if before.streamed_since_s is None else before.streamed_since_s,
        streamed_why=before.streamed_why or now.streamed_why,
        pack=now.pack or _given_up(before.pack, compared=before.handed_over),
    )


def _given_up(pack: PackUsage | None, *, compared: bool) -> PackUsage | None:
    """Returns the counters of a start pack that nobody follows any more, since the daemon that did died."""
    if pack is None or compared:
        return pack
    why = pack.failure or "its daemon died: what it brought was not held against the layers"
    return replace(pack, failures=pack.failures + 1, failure=why)


def _opcodes(before: OpcodeUsage | None, now: OpcodeUsage | None) -> OpcodeUsage:
    if before is None or now is None:
        found = before or now
        assert found is not None
        return found
    return OpcodeUsage(
        before.count + now.count, _histograms(before.service, now.service), _histograms(before.queueing, now.queueing)
    )


def _histograms(before: Histogram, now: Histogram) -> Histogram:
    size = max(len(before.counts), len(now.counts))
    left, right = ((*each.counts, *[0] * (size - len(each.counts))) for each in (before, now))
    counts = tuple(one + other for one, other in zip(left, right, strict=True))
    return Histogram(counts, before.total_s + now.total_s, max(before.max_s, now.max_s))
