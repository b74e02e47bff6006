"""Whole gzip layers inflated by spans: the bytes of the stream, whatever the index says."""

from __future__ import annotations

import ctypes
import gzip
import mmap
import os
import random
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DigestMismatch, FormatError
from harness.formats.erofs.layout import align
from harness.formats.erofs.spans import IndexedLayer
from harness.formats.gzip.checkpoints import index_gzip
from harness.lazyfs.data import span_stream
from harness.lazyfs.data.disk_cache import DIRECT_ALIGN, SparseFile
from harness.lazyfs.data.span_stream import Disagreement, SpanStream
from harness.lazyfs.data.whole import fetch_whole
from harness.oci.descriptor import digest_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.skipif(not span_stream.available, reason="the package deflate hides libdeflate's functions")


def words(size: int, seed: int) -> bytes:
    chosen = random.Random(seed)
    known = [chosen.randbytes(chosen.randrange(1, 40)) for _ in range(200)]
    return b"".join(chosen.choices(known, k=size // 20))


def indexed(stored: bytes, span_bytes: int) -> IndexedLayer:
    """What an index says of a gzip stream."""
    windows: list[bytes] = []
    found = index_gzip([stored], span_bytes, lambda _, window: windows.append(window), lambda _: None, lambda _: None)
    points = found.checkpoints
    starts = [point.out_offset for point in points]
    size = len(gzip.decompress(stored))
    return IndexedLayer(
        0, digest_bytes(stored), len(stored), "gzip", 0, size, starts, [*starts[1:], size],
        [point.in_offset for point in points], bytes(point.bits for point in points), [0] * len(points),
        [len(window.strip(b"\0")) for window in windows], memoryview(b""), memoryview(b""),
    )  # fmt: skip


def streamed(layer: IndexedLayer, stored: bytes, size: int) -> bytes:
    out = bytearray()

    def write(position: int, data: memoryview) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0
        assert not any(value % DIRECT_ALIGN for value in (position, len(data), address))
        assert position == len(out)
        out.extend(data)

    stream = SpanStream(layer, write)
    for at in range(0, len(stored), size):
        stream.feed(stored[at : at + size])
    stream.finish()
    assert not any(out[layer.size :])
    return bytes(out[: layer.size])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000), size=st.integers(1, 900_000), level=st.integers(1, 9), piece=st.integers(100, 300_000),
    span_bytes=st.sampled_from([32 << 10, 100_000, 1 << 20]), flush=st.booleans(),
)  # fmt: skip
def test_all_spans_are_the_stream(
    *, seed: int, size: int, level: int, piece: int, span_bytes: int, flush: bool
) -> None:
    """Spans of any size, at any bit, with empty blocks between or not, fed in any pieces, give the layer."""
    plain = words(size, seed)
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    middle = packer.compress(plain[: size // 2]) + (packer.flush(zlib.Z_FULL_FLUSH) if flush else b"")
    stored = middle + packer.compress(plain[size // 2 :]) + packer.flush()
    layer = indexed(stored, span_bytes)
    if span_stream.fits(layer):
        assert streamed(layer, stored, piece) == plain


PLAIN = words(3_000_000, 1)
STORED = gzip.compress(PLAIN, 6)
LAYER = indexed(STORED, 64 << 10)


def test_the_sample_is_taken() -> None:
    """The layer of the tests below has many spans, and is one that this way is for."""
    assert len(LAYER) > 4
    assert span_stream.fits(LAYER)


def test_a_window_of_zeros_is_one() -> None:
    """A span behind 32 KiB of zeros has no window in the index and needs none here; members of their own do not fit."""
    plain = PLAIN[:1_000_000] + bytes(5_000_000) + PLAIN + PLAIN
    stored = gzip.compress(plain, 6)  # a block begins among the zeros: each holds some 16 000 matches of 258 bytes
    layer = indexed(stored, 64 << 10)
    assert 0 in layer.window_sizes[1:]
    assert span_stream.fits(layer)
    assert streamed(layer, stored, 10_000) == plain
    members = replace(layer, window_sizes=[0] * len(layer))
    assert not span_stream.fits(members)


def shifted(layer: IndexedLayer, column: str, span: int, by: int) -> IndexedLayer:
    values: Any = list(getattr(layer, column))
    values[span] += by
    if column == "starts":
        return replace(layer, starts=values, ends=[*values[1:], layer.size])
    return replace(layer, bits=bytes(values)) if column == "bits" else replace(layer, ins=values)


LIES: dict[str, Callable[[IndexedLayer], IndexedLayer]] = {
    "begins later": lambda layer: shifted(layer, "ins", 2, 1),
    "begins earlier": lambda layer: shifted(layer, "ins", 2, -3),
    "other bit": lambda layer: shifted(layer, "bits", 2, 1 if layer.bits[2] < 7 else -1),
    "stands later": lambda layer: shifted(layer, "starts", 2, 5),
    "stands earlier": lambda layer: shifted(layer, "starts", 3, -5),
    "longer layer": lambda layer: replace(layer, size=layer.size + 1, ends=[*layer.ends[:-1], layer.size + 1]),
    "longer blob": lambda layer: replace(layer, compressed_bytes=layer.compressed_bytes + 9),
}


class Blob:
    """A store of one blob; counts how often it is streamed."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.times = 0

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        self.times += 1
        for at in range(0, len(self.data), 1000):
            sink(self.data[at : at + 1000])
        return len(self.data)


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_noticed(lie: str) -> None:
    """Where spans do not stand where the index says, nothing is taken for the layer."""
    with pytest.raises(Disagreement):
        streamed(LIES[lie](LAYER), STORED, 10_000)


@pytest.mark.files
@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "longer layer"])
def test_whole_layers_come_out_right_all_the_same(tmp_path: Path, lie: str) -> None:
    """Then the layer is inflated as a stream, what is on disk is the layer, and the second fetch is counted."""
    sink, blob, layer = SparseFile(str(tmp_path), "layer"), Blob(STORED), LIES[lie](LAYER)
    store: Any = blob
    fetched = fetch_whole(store, LAYER.digest, "gzip", len(PLAIN), sink, layer=layer)
    assert fetched.requests == 2
    assert fetched.refetched
    assert len(STORED) < fetched.received_bytes <= 2 * len(STORED)
    assert sink.read(0, len(PLAIN)) == PLAIN
    assert blob.times == 2
    sink.close()


@pytest.mark.files
def test_what_is_written_leaves_the_page_cache_alone(tmp_path: Path) -> None:
    """Nothing of the file is cached after it was filled, and it is right all the same."""
    sink, blob = SparseFile(str(tmp_path), "layer"), Blob(STORED)
    store: Any = blob
    fetch_whole(store, LAYER.digest, "gzip", len(PLAIN), sink, layer=LAYER)
    os.ftruncate(sink.descriptor, align(len(PLAIN), mmap.PAGESIZE))
    with mmap.mmap(sink.descriptor, 0, prot=mmap.PROT_READ) as mapped:
        assert cached_pages(mapped) == 0
        assert mapped[: len(PLAIN)] == PLAIN
        assert cached_pages(mapped) > 0
    sink.close()


def cached_pages(mapped: mmap.mmap) -> int:
    """mincore(2), which tells of the page cache."""
    vector = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
    address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), vector) == 0
    return sum(page & 1 for page in vector)


@pytest.mark.files
def test_one_pass_where_they_agree(tmp_path: Path) -> None:
    """A good index costs one pass; another blob, or one with a wrong checksum that it was indexed with, is refused."""
    sink, blob = SparseFile(str(tmp_path), "layer"), Blob(STORED)
    store: Any = blob
    fetched = fetch_whole(store, LAYER.digest, "gzip", len(PLAIN), sink, layer=LAYER)
    assert (fetched.received_bytes, fetched.requests, fetched.refetched) == (len(STORED), 1, "")
    assert sink.read(0, len(PLAIN)) == PLAIN
    assert blob.times == 1
    blob.data = STORED[:5000] + b"?" + STORED[5001:]
    with pytest.raises((DigestMismatch, FormatError)):
        fetch_whole(store, LAYER.digest, "gzip", len(PLAIN), sink, layer=LAYER)
    sink.close()


def test_members_are_not_for_it() -> None:
    """A layer of many members (eStargz) is left to the stream."""
    stored = b"".join(gzip.compress(PLAIN[at : at + 50_000]) for at in range(0, len(PLAIN), 50_000))
    layer = indexed(stored, 64 << 10)
    if span_stream.fits(layer):
        with pytest.raises(Disagreement):
            streamed(layer, stored, 10_000)


@pytest.mark.files
def test_a_device_that_takes_no_such_writes_gets_cached_ones(tmp_path: Path) -> None:
    """A write past the cache that is not aligned is refused by the kernel, and then goes through it."""
    sink = SparseFile(str(tmp_path), "layer")
    uncached = sink.uncached()
    assert uncached.write(100, b"unaligned")
    assert sink.read(100, 9) == b"unaligned"
    uncached.close()
    sink.close()
