"""The data path over real units and sources in memory; no FUSE, no root."""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import os
import random
import threading
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from harness.errors import ColdbenchError, ContentError, DigestMismatch, RegistryError
from harness.formats.soci import ztoc
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.lazyfs.counters import Counters
from harness.lazyfs.data import prefetch
from harness.lazyfs.data.background import Background
from harness.lazyfs.data.disk_cache import DiskCache
from harness.lazyfs.data.outage import Outage
from harness.lazyfs.data.residency import ABSENT, PACKED, Layer
from harness.lazyfs.data.span_units import SpanInflater, SpanUnits
from harness.lazyfs.data.store import Store
from harness.lazyfs.mounting import handover
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


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A blob in memory that counts its ranges and can be told to fail."""

    def __init__(self, blob: bytes = BLOB) -> None:
        self.blob = blob
        self.ranges: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.fail_after: int | None = None
        """The registry is away after so many ranges."""
        self.hold: threading.Event | None = None
        """No range comes before this is set."""
        self.lock = threading.Lock()

    def read_range(self, offset: int, size: int) -> bytes:
        with self.lock:
            self.ranges.append((offset, size))
            if self.fail_after is not None and len(self.ranges) > self.fail_after:
                self.error = RegistryError("refused")
        if self.hold is not None:
            self.hold.wait(20)
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
            source, given = Source(), units or units_of()
            disk = DiskCache(str(directory) if directory else None, 0, given)
            layer = store.add_layer(given, source, disk)
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


@pytest.mark.logs("digest is")
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


def test_a_unit_that_is_lost_while_it_is_written_is_not_on_disk(tmp_path: Path) -> None:
    """Memory that runs over is spilled by a thread; what turns out bad meanwhile is fetched again, not read back."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        residency, lost = store.residency, []
        write_out = residency._write_out

        def written(victims: list[tuple[Any, Any]]) -> list[int]:
            states = write_out(victims)
            (_, unit), _ = victims[0]
            lost.append(unit)
            residency.lose(layer, unit)
            return states

        residency._write_out = written  # type: ignore[method-assign]
        for unit in range(len(layer)):
            await store.read(layer, layer.starts[unit], 1, layer.size)
            await trio.testing.wait_all_tasks_blocked()
        assert lost
        assert residency.state(layer, lost[-1]) == ABSENT

    run(work, LazyPolicy(memory_bytes=100_000, readahead_units=0, block_bytes=0), tmp_path)


@pytest.mark.logs("registry (is away|answers again)")
def test_errors_of_the_registry_reach_all_who_wait() -> None:
    """Everyone waiting for the flight gets the error; a later read tries again."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        clock = Clock()
        store.outage = Outage(clock)
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
        clock.now += 10
        assert bytes(await store.read(layer, 10, 100, layer.size)) == TAR[10:110]

    run(work)


@pytest.mark.logs("bytes came for")
def test_short_answers_are_refused() -> None:
    """A range that comes cut is an error, not a shorter file."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.blob = source.blob[:100]
        with pytest.raises(ContentError):
            await store.read(layer, 0, 10, layer.size)

    run(work)


@pytest.mark.logs("registry (is away|answers again)|bytes came for")
def test_a_probe_that_brings_nothing_of_use_is_an_answer() -> None:
    """A request that probes a registry that was away, and brings cut bytes, fails; the next one may ask again."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        clock = Clock()
        store.outage = Outage(clock)
        source.error = RegistryError("gone")
        with pytest.raises(RegistryError):
            await store.read(layer, 0, 10, layer.size)
        whole, source.error, source.blob = source.blob, None, source.blob[:100]
        clock.now += 10
        with pytest.raises(ContentError):
            await store.read(layer, 0, 10, layer.size)
        source.blob = whole
        assert bytes(await store.read(layer, 0, 10, layer.size)) == TAR[:10]

    run(work)


def test_while_the_registry_is_away_reads_fail_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """After one exhausted series nobody asks the registry, but for one probe now and then; the log says each change."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        clock = Clock()
        store.outage = Outage(clock)
        source.error = RegistryError("refused")
        for _ in range(20):
            with pytest.raises(RegistryError):
                await store.read(layer, 0, 10, layer.size)
        assert len(source.ranges) == 1
        clock.now += 1
        with pytest.raises(RegistryError, match=r"^refused$"):
            await store.read(layer, 0, 10, layer.size)
        for _ in range(20):
            with pytest.raises(RegistryError, match="away since"):
                await store.read(layer, layer.starts[2], 10, layer.size)
        assert len(source.ranges) == 2
        source.error = None
        clock.now += 10
        assert bytes(await store.read(layer, 0, 10, layer.size)) == TAR[:10]

    run(work)
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" since")[0].partition(", after")[0] for line in said] == [
        "the registry is away",
        "the registry answers again",
    ]


@pytest.mark.logs("registry (is away|answers again)")
def test_reads_may_wait_for_the_registry_instead() -> None:
    """With ``wait_out_outages`` a read of absent bytes comes back when the registry does."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.error = RegistryError("refused")
        with pytest.raises(RegistryError):
            await store.read(layer, 0, 10, layer.size)
        got: list[bytes] = []

        async def reader() -> None:
            got.append(bytes(await store.read(layer, 0, 10, layer.size)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            source.error = None
        assert got == [TAR[:10]]

    run(work, LazyPolicy(wait_out_outages=True, readahead_units=0, block_bytes=0))


@pytest.mark.logs("no answer for a read|answers again")
def test_a_read_has_a_deadline() -> None:
    """A registry that says nothing costs a read ``read_timeout_s``; what it says afterwards is kept all the same."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.hold = threading.Event()
        with pytest.raises(RegistryError, match="no answer for a read within"):
            await store.read(layer, 0, 10, layer.size)
        source.hold.set()
        flight = store.residency.flight(layer, 0)
        assert flight is not None
        await flight.done.wait()
        assert bytes(await store.read(layer, 0, 10, layer.size)) == TAR[:10]
        assert len(source.ranges) == 1

    run(work, LazyPolicy(read_timeout_s=0.05, readahead_units=0, block_bytes=0))


def test_what_a_killed_reader_had_asked_for_comes_all_the_same() -> None:
    """A reader that goes away leaves its request under way, and others get what it brings."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.hold = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.read, layer, 0, 10, layer.size)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        source.hold.set()
        assert bytes(await store.read(layer, 0, 10, layer.size)) == TAR[:10]
        assert len(source.ranges) == 1

    run(work)


LOSSES: dict[str, Callable[[int, bytes | memoryview, int], int]] = {
    "nothing is written": lambda descriptor, data, offset: len(data),
    "the wrong place": lambda descriptor, data, offset: os.pwrite(descriptor, data, offset + 4096),
    "a bit is flipped": lambda descriptor, data, offset: os.pwrite(
        descriptor, bytes(data[:-1]) + bytes([data[-1] ^ 1]), offset
    ),
}


@pytest.mark.logs("disk cache does not give back")
@pytest.mark.files
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("inflated", [False, True])
def test_a_disk_that_loses_writes_costs_requests_and_no_byte(tmp_path: Path, loss: str, inflated: bool) -> None:
    """Whatever comes back from the cache is held against its checksum, and fetched again where it does not fit."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        for file in (layer.disk.inflated, layer.disk.packed):
            assert file is not None
            file.file._pwrite = LOSSES[loss]
        for _ in range(2):
            for offset in range(0, layer.size, 50_000):
                size = min(50_000, layer.size - offset)
                assert bytes(await store.read(layer, offset, size, layer.size)) == TAR[offset : offset + size]
        assert len(source.ranges) > len(layer)

    policy = LazyPolicy(memory_bytes=100_000, readahead_units=0, block_bytes=0, cache_inflated=inflated)
    assert run(work, policy, tmp_path).read_errors == 0


@pytest.mark.logs("the disk takes no more|background fetch ends")
@pytest.mark.files
@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENODEV, errno.ENOSPC, errno.EUCLEAN])
def test_any_error_of_the_disk_means_no_cache_any_more(tmp_path: Path, number: int) -> None:
    """Reads go on with memory and the registry; only a full disk is called full."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    async def work(store: Store, layer: Layer, source: Source) -> None:
        for file in (layer.disk.inflated, layer.disk.packed):
            assert file is not None
            file.file._pwrite = refuse
        assert not await Background(store).run()
        for offset in range(0, layer.size, 50_000):
            size = min(50_000, layer.size - offset)
            assert bytes(await store.read(layer, offset, size, layer.size)) == TAR[offset : offset + size]

    policy = LazyPolicy(memory_bytes=100_000, background_after_s=0.0)
    assert run(work, policy, tmp_path).disk_full is (number == errno.ENOSPC)


@pytest.mark.files
def test_a_background_fetch_resumes_after_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It pauses while the registry is away, and then brings all the rest; the log has one line for each change."""
    policy = LazyPolicy(
        background_after_s=0.0, background_interval_s=0.0, background_units=1, background_quiet_s=0.0,
        background_retry_s=0.01,
    )  # fmt: skip

    async def work(store: Store, layer: Layer, source: Source) -> None:
        clock = Clock()
        store.outage = Outage(clock)
        source.fail_after = 5
        background = Background(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background.run)
            while not any("paused" in record.getMessage() for record in caplog.records):
                await trio.sleep(0.001)
            assert len(store.residency.absent_on_disk(layer)) == len(layer) - 5
            source.fail_after, source.error = None, None
            clock.now += 100
        assert store.residency.all_local()

    run(work, policy, tmp_path)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert said.count("background fetch paused: the registry is away since") == 1
    assert said.count("MB missing") == 1
    assert said.count("resumed and complete") == 1


@pytest.mark.logs("disk cache does not give back")
@pytest.mark.files
def test_nothing_is_handed_over_that_the_disk_does_not_hold(tmp_path: Path) -> None:
    """Before the kernel is turned to the file, it is read back from the disk; what is not there is lost, and said."""
    policy = LazyPolicy(background_after_s=0.0, background_interval_s=0.0, inflate_share=1.0)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        assert await Background(store).run()
        inflated = layer.disk.inflated
        assert inflated is not None
        inflated.file._pwrite = LOSSES["nothing is written"]
        assert "the disk lost" in await handover.inflate_all(store)
        assert not store.residency.is_whole()
        inflated.file._pwrite = os.pwrite
        assert await Background(store).run()
        assert await handover.inflate_all(store) == ""
        assert store.residency.is_whole()
        assert os.pread(inflated.file.descriptor, layer.size, 0) == TAR[: layer.size]

    run(work, policy, tmp_path)


@pytest.mark.logs("the disk takes no more")
@pytest.mark.files
def test_a_disk_that_cannot_sync_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of fdatasync means that the disk may not hold what it took."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def work(store: Store, layer: Layer, source: Source) -> None:
        assert await Background(store).run()
        monkeypatch.setattr(os, "fdatasync", fail)
        assert "does not keep" in await handover.inflate_all(store)
        assert bytes(await store.read(layer, 0, layer.size, layer.size)) == TAR[: layer.size]

    run(work, LazyPolicy(background_after_s=0.0, background_interval_s=0.0, inflate_share=1.0), tmp_path)


def test_background_keeps_stored_bytes_on_disk(tmp_path: Path) -> None:
    """Everything is local at the end, nothing was inflated for it, and reads give the right bytes."""
    policy = LazyPolicy(background_after_s=0.0, background_interval_s=0.0, readahead_units=0)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        assert await Background(store).run()
        assert {store.residency.state(layer, unit) for unit in range(len(layer))} == {PACKED}
        assert store.counters.bytes_inflated == 0
        asked = len(source.ranges)
        assert bytes(await store.read(layer, 0, layer.size, layer.size)) == TAR[: layer.size]
        assert len(source.ranges) == asked

    run(work, policy, tmp_path)


@pytest.mark.logs("background fetch ends|is away")
def test_a_background_fetch_that_does_not_resume_gives_up(tmp_path: Path) -> None:
    """The reference daemons' way: it ends at the fifth failure in a row, and says so."""
    policy = LazyPolicy(background_after_s=0.0, background_interval_s=0.0, background_units=1, background_resumes=False)

    async def work(store: Store, layer: Layer, source: Source) -> None:
        source.error = RegistryError("gone")
        assert not await Background(store).run()
        assert len(source.ranges) < len(layer)

    run(work, policy, tmp_path)


@pytest.mark.logs("No space left")
def test_bytes_that_do_not_fit_on_disk_stay_right(tmp_path: Path) -> None:
    """A disk that refuses every write costs requests, never bytes."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def work(store: Store, layer: Layer, source: Source) -> None:
        for file in (layer.disk.inflated, layer.disk.packed):
            assert file is not None
            file.file._pwrite = refuse
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
