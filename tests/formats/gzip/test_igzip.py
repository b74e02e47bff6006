"""ISA-L's inflate into our own buffers gives what zlib gives, wherever steps, members and input pieces end."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from harness.errors import FormatError
from harness.formats.gzip import igzip
from harness.lazyfs.data.span_units import SpanInflater

pytestmark = pytest.mark.skipif(not igzip.available, reason="this python-isal does not export ISA-L's functions")


def _plain(source: random.Random) -> bytes:
    return source.randbytes(source.randrange(50)) * source.randrange(source.choice([3, 3000, 60000]))


def _streamed(stream: bytes, cuts: list[int]) -> bytes:
    made = bytearray()
    inflater = igzip.StreamInflater(made.extend, "test")
    position = 0
    for cut in cuts:
        inflater.feed(stream[position : position + cut])
        position += cut
    inflater.feed(stream[position:])
    inflater.finish()
    return bytes(made)


def test_streams_of_members_in_pieces() -> None:
    """Members with padding between them, fed in pieces that end anywhere, come out whole."""
    source = random.Random(5)
    for _ in range(120):
        plain = [_plain(source) for _ in range(source.randrange(1, 5))]
        stream = b"".join(
            gzip.compress(data, source.choice([0, 1, 6])) + bytes(source.choice([0, 5])) for data in plain
        )
        most = source.choice([1, 10, 1000, 100_000])
        cuts = [source.randrange(1, most + 1) for _ in range(source.randrange(1, 300))]
        assert _streamed(stream, cuts) == b"".join(plain)


def test_headers_with_every_field() -> None:
    """Extra field, name, comment and header checksum are passed over, even byte by byte."""
    member = gzip.compress(b"content")
    head = member[:3] + bytes([2 | 4 | 8 | 16]) + member[4:10] + b"\5\0extra" + b"name\0" + b"a comment\0" + b"\0\0"
    stream = head + member[10:]
    assert _streamed(stream, []) == _streamed(stream, [1] * len(stream)) == b"content"


def test_cut_and_damaged_streams() -> None:
    """A stream that ends early anywhere, or is damaged, or is no gzip is a FormatError."""
    stream = gzip.compress(random.Random(1).randbytes(3000))
    for size in [*range(1, 40), *range(len(stream) - 12, len(stream))]:
        with pytest.raises(FormatError):
            _streamed(stream[:size], [])
    with pytest.raises(FormatError):
        _streamed(stream[:12] + b"\xff" * 40 + stream[52:], [])
    with pytest.raises(FormatError):
        _streamed(b"no gzip at all", [])


def test_spans_in_steps_and_across_members() -> None:
    """From a checkpoint with a window, in steps; a member's end in the middle of a step is crossed."""
    source = random.Random(2)
    window, plain = source.randbytes(32768), source.randbytes(200) * 3000
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=window)
    packed = packer.compress(plain + window) + packer.flush() + bytes(8) + gzip.compress(b"second" * 1000)
    inflater = SpanInflater(packed, 0, window, "test")
    made = b"".join(b"".join(inflater.inflate(size)) for size in (1, 100_000, 499_999, 32768 + 6, 5994))
    assert made == plain + window + b"second" * 1000
    with pytest.raises(FormatError):
        inflater.inflate(1)


def test_lengths_that_32_bits_do_not_hold_are_refused() -> None:
    """The C struct would take them modulo 2**32 and give back memory as it was."""
    data = zlib.compress(b"hello", wbits=-15)
    for size in (1 << 32, (1 << 32) + 5, -1):
        with pytest.raises(ValueError, match="cannot be inflated"):
            igzip.RawInflater(data, 0, b"").inflate(size)
    with pytest.raises(ValueError, match="cannot be inflated"):
        igzip.RawInflater(b"", 3, b"")


def test_a_short_inflate_gives_nothing() -> None:
    """Fewer bytes than asked for are no bytes, never zeros at the end."""
    assert igzip.RawInflater(zlib.compress(b"hello", wbits=-15), 0, b"").inflate(6) is None


def test_a_header_without_end_is_refused() -> None:
    """A name of any length would be searched again with every piece: beyond a limit it is damage."""
    inflater = igzip.StreamInflater(lambda _: None, "layer")
    for piece in [b"\x1f\x8b\x08\x08\0\0\0\0\0\3", *[b"n" * 65536] * 15]:
        inflater.feed(piece)
    with pytest.raises(FormatError, match="gzip header of more than"):
        inflater.feed(b"n" * 131072)


def test_what_stands_behind_is_not_an_early_end() -> None:
    """Zeros are padding, another member goes on, anything else is said to stand behind; a cut one ends early."""
    member = gzip.compress(b"a" * 1000)
    made = bytearray()
    inflater = igzip.StreamInflater(made.extend, "layer")
    inflater.feed(member + bytes(100) + member + bytes(3))
    inflater.finish()
    assert bytes(made) == b"a" * 2000
    with pytest.raises(FormatError, match="stands behind"):
        igzip.StreamInflater(made.extend, "layer").feed(member + b"garbage")
    cut = igzip.StreamInflater(made.extend, "layer")
    cut.feed(member[:-1])
    with pytest.raises(FormatError, match="ends early"):
        cut.finish()
