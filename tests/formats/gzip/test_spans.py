"""Spans: geometry, digests, and inflation that starts in the middle of a byte."""

from __future__ import annotations

import io
import tarfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DigestMismatch, FormatError
from harness.formats.gzip.spans import _PRIMERS, Spans, ZtocByteSource, inflate_at
from harness.formats.soci import ztoc
from tests.formats.soci.ztocs import VECTORS, Memory, golden_ztoc, gzipped, layer, parsed, small_tar

GZIP_LAYERS = sorted({vector["Layer"] for vector in VECTORS if vector["Algorithm"] == "gzip"})


@pytest.mark.parametrize("name", [*GZIP_LAYERS, "pax.tar", "gnu.tar"])
@pytest.mark.parametrize("span_size", [1, 20_000, 65_536, 1 << 22])
def test_every_file_at_every_span_size(name: str, span_size: int) -> None:
    """Each file read through spans is what tarfile extracts, for every compressor."""
    stored = layer(name)
    if span_size == 1 and not name.endswith(".gz"):
        span_size = 512
    read = parsed(stored, span_size, "gzip" if name.endswith(".gz") else "none")
    source = ZtocByteSource(read, Memory(stored))
    table = read.to_table()
    with tarfile.open(fileobj=io.BytesIO(layer(name.split(".", maxsplit=1)[0] + ".tar"))) as tar:
        members = tar.getmembers()
        assert len(members) == len(table)
        for index, member in enumerate(members):
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                offset = max(int(table.offsets[index]), 0)
                assert source.extract(offset, int(table.sizes[index])) == file.read()


def test_reference_ztocs_cover_all_bit_positions() -> None:
    """The reference's checkpoints of the golden layers start at each of the eight bit positions, and inflate."""
    seen: set[int] = set()
    for name in GZIP_LAYERS:
        read = parsed(layer(name), 10_000)
        seen |= set(read.bits.tolist())
        assert (
            ZtocByteSource(read, Memory(layer(name))).read(0, 1 << 30)
            == layer(name.split(".")[0] + ".tar")[: read.archive_bytes]
        )
    assert seen == set(range(8))
    golden = ztoc.parse(golden_ztoc("pax.manymembers.tar.gz.span65536.ztoc"))
    stored = Memory(layer("pax.manymembers.tar.gz"))
    assert ZtocByteSource(golden, stored).extract(0, golden.archive_bytes) == layer("pax.tar")[: golden.archive_bytes]


@pytest.mark.parametrize("bits", range(1, 8))
def test_primers_are_empty_blocks(bits: int) -> None:
    """What is fed before a span decodes to nothing, in zlib as well, and leaves room for exactly its bits."""
    whole, partial = _PRIMERS[bits]
    assert partial < 1 << (8 - bits)
    # A final empty stored block may start at any bit: its three header bits follow, then alignment.
    block = (1 << (8 - bits)) | partial
    tail = bytes([block & 0xFF, block >> 8])[: 1 if bits >= 3 else 2]
    inflater = zlib.decompressobj(-15)
    assert inflater.decompress(whole + tail + b"\0\0\xff\xff") == b""
    assert inflater.eof


def test_only_as_far_as_asked() -> None:
    """A span may be inflated up to a place; more than it holds is not an error."""
    stored = layer("pax.zlib6.tar.gz")
    spans = Spans(parsed(stored, 60_000))
    tar = layer("pax.tar")
    for span in range(len(spans)):
        offset, size = spans.span_compressed_extent(span)
        start, end = spans.span_bounds(span)
        for upto in (0, 1, 1000, end - start, 1 << 30):
            got = spans.inflate_span(span, stored[offset : offset + size], upto)
            assert got == tar[start : min(start + upto, end)]


def test_geometry() -> None:
    """Spans meet without gaps, and every byte belongs to one."""
    stored = layer("pax.members.tar.gz")
    read = parsed(stored, 50_000)
    spans = Spans(read)
    assert spans.span_bounds(0)[0] == 0
    for span in range(len(spans)):
        start, end = spans.span_bounds(span)
        assert spans.span_of(start) == spans.span_of(end - 1) == span
        offset, size = spans.span_compressed_extent(span)
        if span + 1 < len(spans):
            assert spans.span_bounds(span + 1)[0] == end
            assert spans.span_compressed_extent(span + 1)[0] + bool(read.bits[span + 1]) == offset + size
        else:
            assert offset + size == len(stored)
            assert end == spans.size == read.archive_bytes
    for outside in (-1, spans.size):
        with pytest.raises(FormatError, match="outside"):
            spans.span_of(outside)


def test_reads_fetch_one_span() -> None:
    """A small read moves one span's bytes, and a second one beside it none."""
    stored = layer("pax.zlib6.tar.gz")
    memory = Memory(stored)
    source = ZtocByteSource(parsed(stored, 60_000), memory)
    source.read(200_000, 10)
    first = memory.given
    assert first < len(stored) / 4
    source.read(200_020, 10)
    assert memory.given == first
    assert source.read(source.size - 5, 100) == layer("pax.tar")[source.size - 5 : source.size]
    with pytest.raises(FormatError, match="leave"):
        source.extract(source.size - 5, 100)


def test_changed_stored_bytes_are_noticed() -> None:
    """A byte flipped anywhere in a span is a DigestMismatch before any byte of it is used."""
    stored = layer("pax.zlib1.tar.gz")
    read = parsed(stored, 60_000)
    spans = Spans(read)
    for position in range(11, len(stored), 9973):
        bad = bytearray(stored)
        bad[position] ^= 0x10
        source = ZtocByteSource(read, Memory(bytes(bad)))
        touched = [
            span
            for span in range(len(spans))
            if 0 <= position - spans.span_compressed_extent(span)[0] < spans.span_compressed_extent(span)[1]
        ]
        assert touched
        for span in range(len(spans)):
            if span in touched:
                with pytest.raises(DigestMismatch, match=f"span {span}"):
                    source.span(span)
            else:
                source.span(span)


def test_damaged_spans() -> None:
    """Without the digest in the way, damage and shortness are still FormatErrors."""
    stored = layer("pax.zlib6.tar.gz")
    spans = Spans(parsed(stored, 60_000))
    offset, size = spans.span_compressed_extent(2)
    good = stored[offset : offset + size]
    for bad in (b"", good[:1], good[: size // 2], b"\xff" * size):
        with pytest.raises(FormatError, match="span 2"):
            spans.inflate_span(2, bad)
    plain = Spans(parsed(layer("gnu.tar"), 100_000, "none"))
    with pytest.raises(FormatError, match="fewer"):
        plain.inflate_span(0, b"short")


def test_thousands_of_members_in_a_span() -> None:
    """A span of empty members is inflated in time proportional to its size."""
    empty = gzipped(b"")
    tar = small_tar({"a": b"first", "b": b"last"})
    stored = gzipped(tar[:700]) + empty * 20_000 + gzipped(tar[700:])
    read = parsed(stored, 1 << 22)
    assert read.spans == 1
    source = ZtocByteSource(read, Memory(stored))
    assert source.read(0, 1 << 20) == tar[: read.archive_bytes]
    with pytest.raises(FormatError, match="before what was promised"):
        inflate_at(stored[10:], 0, bytes(32768), len(tar) + 1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 3000)), min_size=1, max_size=12),
    st.integers(0, 9),
    st.sampled_from([1, 700, 5000, 1 << 20]),
    st.integers(1, 4),
    st.data(),
)
def test_any_read_of_any_layer(
    runs: list[tuple[bytes, int]], level: int, span_size: int, members: int, data: st.DataObject
) -> None:
    """Reads at random places of random layers give the tar's bytes."""
    tar = small_tar({f"f{index}": (run * count)[:50_000] for index, (run, count) in enumerate(runs)})
    step = -(-len(tar) // members)
    stored = b"".join(gzipped(tar[at : at + step], level) for at in range(0, len(tar), step))
    source = ZtocByteSource(parsed(stored, span_size), Memory(stored))
    for _ in range(4):
        offset = data.draw(st.integers(0, source.size))
        size = data.draw(st.integers(0, source.size - offset))
        assert source.extract(offset, size) == tar[offset : offset + size]
