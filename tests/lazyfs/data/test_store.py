"""The data path over real units and sources in memory; no FUSE, no root."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import random
import threading
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from harness.errors import ColdbenchError, ContentError, DigestMismatch, RegistryError
from harness.formats.soci import ztoc
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.lazyfs.counters import Counters
from harness.lazyfs.data import prefetch
from harness.lazyfs.data.disk_cache import DiskCache
from harness.lazyfs.data.residency import PACKED, Layer
from harness.lazyfs.data.span_units import SpanInflater, SpanUnits
from harness.lazyfs.data.store import Store
from harness.model.modes import lazy_policy
from harness.model.policy import LazyPolicy
from tests.lazyfs.support import GOLDEN, File, noise, tar_of, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

TAR = tar_of(File("a", text(400_000)), File("b", noise(100_000)), File("c", text(300_000, 3)))
BLOB = gzip.compress(TAR, 6, mtime=0)
SPAN = 64 << 10


def units_of(blob: bytes = BLOB, span: int = SPAN, place: Path | None = None) -> SpanUnits:
    """Spans of a gzip blob, through the real index."""
    import io

    with LayerIndexer("gzip", span) as indexer:
        indexer.read([blob], lambda piece: None)
        out = io.BytesIO()
        indexer.write(out, "test")
    return SpanUnits(ztoc.parse(out.getvalue()))


class Source:
    """A blob in memory that counts its ranges and can be told to fail."""

    def __init__(self, blob: bytes = BLOB) -> None:
        self.blob = blob
        self.ranges: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.lock = threading.Lock()

    def read_range(self, offset: int, size: int) -> bytes:
        with self.lock:
            self.ranges.append((offset, size))
        if self.error is not None:
            raise self.error
        return self.blob[offset : offset + size]


def run(
    work: Callable[[Store, Layer, Source], Awaitable[None]],
    policy: LazyPolicy | None = None,
    directory: Path | None = None,
    units: SpanUnits | None = None,
) -> Counters:
    """Run ``work`` with a store of one layer."""
    counters = Counters()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            store = Store(policy or LazyPolicy(readahead_units=0, block_bytes=0), counters, nursery)
            source = Source()
            disk = DiskCache(str(directory) if directory else None, 0)
            layer = store.add_layer(units or units_of(), source, disk)
            await work(store, layer, source)
            nursery.cancel_scope.cancel()

    trio.run(main)
    return counters


def test_every_read_gives_the_right_bytes() -> None:
    """Any offset and size, across span borders, in any order, with memory for two spans only."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        rng = random.Random(7)
        for _ in range(300):
            offset = rng.randrange(layer.size)
            size = min(rng.choice([1, 100, 4096, 70_000, 200_000]), layer.size - offset)
            assert bytes(await store.read(layer, offset, size, layer.size)) == TAR[offset : offset + size]

    run(work, LazyPolicy(memory_bytes=200_000))


def test_evicted_spans_come_back_from_disk(tmp_path: Path) -> None:
    """With a disk cache nothing is fetched twice, however little memory there is."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        for _ in range(3):
            for offset in range(0, layer.size, 30_000):
                size = min(30_000, layer.size - offset)
                assert bytes(await store.read(layer, offset, size, layer.size)) == TAR[offset : offset + size]
        assert len(source.ranges) == len(set(source.ranges)) <= len(layer)

    run(work, LazyPolicy(memory_bytes=100_000, readahead_units=0, block_bytes=0), tmp_path)


def test_partial_inflate_stops_where_the_reader_does() -> None:
    """The first bytes of a span cost the first step, not the span; the rest continues from there."""
    units = units_of(span=4 << 20)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        await store.read(layer, 0, 1000, layer.size)
        assert store.counters.bytes_inflated == 32 << 10
        await store.read(layer, 33_000, 10, layer.size)
        assert store.counters.bytes_inflated == 64 << 10
        assert bytes(await store.read(layer, 0, layer.size, layer.size)) == TAR[: layer.size]
        assert store.counters.bytes_inflated == layer.size
        assert len(source.ranges) == 1

    run(work, LazyPolicy(inflate_step=32 << 10, block_bytes=0), units=units)


def test_whole_unit_policy_inflates_all() -> None:
    """The reference daemon's way."""
    units = units_of(span=4 << 20)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        await store.read(layer, 0, 10, layer.size)
        assert store.counters.bytes_inflated == layer.size

    run(work, replace(lazy_policy("soci", "reference"), background=False), units=units)


def test_parallel_readers_share_flights() -> None:
    """Many tasks reading everything at once cause one request per span."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        async def reader(offset: int) -> None:
            assert bytes(await store.read(layer, offset, 5000, layer.size)) == TAR[offset : offset + 5000]

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                for offset in range(0, layer.size - 5000, SPAN):
                    nursery.start_soon(reader, offset)
        covered = sorted(source.ranges)
        assert all(a[0] + a[1] <= b[0] + 1 for a, b in itertools.pairwise(covered))

    run(work)


def test_adjacent_missing_spans_are_one_request() -> None:
    """A read over several spans fetches them together, up to the limit."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        await store.read(layer, 0, 5 * SPAN, layer.size)
        assert len(source.ranges) == 1

    run(work)


def test_walking_reader_is_read_ahead_of() -> None:
    """Who walks from one span into the next finds the one after it under way, within the limit it gave."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        limit = layer.starts[4]
        await store.read(layer, 0, 10, limit)
        await store.read(layer, layer.starts[1], 10, limit)
        await store.read(layer, layer.starts[1] + 10, 10, limit)
        while flights := [f for unit in range(len(layer)) if (f := store.residency.flight(layer, unit))]:
            await flights[0].done.wait()
        assert not store.residency.missing(layer, 2)
        assert not store.residency.missing(layer, 3)
        assert store.residency.missing(layer, 4)

    run(work, LazyPolicy(readahead_units=8, block_bytes=0))


def test_flipped_bits_never_come_through() -> None:
    """A wrong digest fails the read, is counted, and the next read asks again."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        good = source.blob
        broken = bytearray(good)
        broken[layer.units.extent(1)[0] + 100] ^= 4
        source.blob = bytes(broken)
        with pytest.raises(DigestMismatch):
            await store.read(layer, layer.starts[1], 100, layer.size)
        # Of spans that came in one request only the bad one fails.
        assert (
            bytes(await store.read(layer, layer.starts[2], 9, layer.size)) == TAR[layer.starts[2] : layer.starts[2] + 9]
        )
        source.blob = good
        begin = layer.starts[1]
        assert bytes(await store.read(layer, begin, 100, layer.size)) == TAR[begin : begin + 100]

    assert run(work).digest_mismatches == 1


def test_errors_of_the_registry_reach_all_who_wait() -> None:
    """Everyone waiting for the flight gets the error; later reads try again."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.error = RegistryError("gone")
        failures = []

        async def reader() -> None:
            try:
                await store.read(layer, 10, 100, layer.size)
            except ColdbenchError as error:
                failures.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(reader)
        assert failures == ["gone"] * 5
        source.error = None
        assert bytes(await store.read(layer, 10, 100, layer.size)) == TAR[10:110]

    run(work)


def test_short_answers_are_refused() -> None:
    """A range that comes cut is an error, not a shorter file."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.blob = source.blob[:100]
        with pytest.raises(ContentError):
            await store.read(layer, 0, 10, layer.size)

    run(work)


def test_background_keeps_stored_bytes_on_disk(tmp_path: Path) -> None:
    """Everything is local at the end, nothing was inflated for it, and reads give the right bytes."""
    policy = LazyPolicy(background_after_s=0.0, background_interval_s=0.0, readahead_units=0)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        assert await prefetch.background(store)
        assert {store.residency.state(layer, unit) for unit in range(len(layer))} == {PACKED}
        assert store.counters.bytes_inflated == 0
        asked = len(source.ranges)
        assert bytes(await store.read(layer, 0, layer.size, layer.size)) == TAR[: layer.size]
        assert len(source.ranges) == asked

    run(work, policy, tmp_path)


def test_background_gives_up_on_a_registry_that_is_gone(tmp_path: Path) -> None:
    """It ends and says so; it does not try for ever."""
    policy = LazyPolicy(background_after_s=0.0, background_interval_s=0.0, background_units=1)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.error = RegistryError("gone")
        assert not await prefetch.background(store)
        assert len(source.ranges) < len(layer)

    run(work, policy, tmp_path)


def test_bytes_that_do_not_fit_on_disk_stay_right(tmp_path: Path) -> None:
    """A disk that refuses every write costs requests, never bytes."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def work(store: Store, layer: Layer, source: Source) -> None:
        for file in (layer.disk.inflated, layer.disk.packed):
            assert file is not None
            file._pwrite = refuse
        for offset in range(0, layer.size, 50_000):
            size = min(50_000, layer.size - offset)
            assert bytes(await store.read(layer, offset, size, layer.size)) == TAR[offset : offset + size]
        while store.residency.memory.used > store.residency.memory.budget:
            await trio.sleep(0)

    assert run(work, LazyPolicy(memory_bytes=100_000), tmp_path).disk_full


def test_prefetch_does_not_ask_for_what_is_there() -> None:
    """Units that a read brought meanwhile are left out; all others come, stored."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        await store.read(layer, 0, 10, layer.size)
        asked = len(source.ranges)
        await prefetch.prefetch(store, [(0, 0, layer.size)])
        assert len(source.ranges) > asked
        assert layer.units.extent(0)[0] not in {offset for offset, _ in source.ranges[asked:]}
        assert not any(store.residency.missing(layer, unit) for unit in range(len(layer)))

    run(work)


@pytest.mark.parametrize("name", ["manymembers", "pigz", "flush", "stored", "huffman", "fixed", "zlib9"])
def test_inflater_continues_where_it_stopped(name: str) -> None:
    """In steps of any size a span gives the same bytes as at once, across members."""
    blob, tar = (GOLDEN / f"pax.{name}.tar.gz").read_bytes(), (GOLDEN / "pax.tar").read_bytes()
    units = units_of(blob, 32 << 10)
    rng = random.Random(3)
    for unit, (start, end) in enumerate(zip(units.starts, units.ends, strict=True)):
        offset, size = units.extent(unit)
        packed = blob[offset : offset + size]
        units.verify(unit, packed)
        step = rng.randrange(1, 9000)
        data, rest = b"", None
        for decoded in units.decode(unit, packed, step):
            data, rest = b"".join(decoded.pieces), decoded.rest
        while rest is not None and len(data) < end - start:
            data += b"".join(rest.inflate(min(rng.randrange(1, 9000), end - start - len(data))))
        assert data == tar[start:end]


def test_inflater_refuses_damage() -> None:
    """Garbage and early ends are FormatErrors, not wrong or missing bytes."""
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = raw.compress(TAR) + raw.flush()
    with pytest.raises(ContentError, match="ends"):
        SpanInflater(data[:1000], 0, bytes(32768), "span").inflate(len(TAR))
    with pytest.raises(ContentError):
        SpanInflater(hashlib.sha256(b"x").digest() * 100, 0, bytes(32768), "span").inflate(len(TAR))
