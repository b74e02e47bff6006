"""Decompression that is fed: the same bytes as the form that pulls, in bounded pieces."""

from __future__ import annotations

import gzip

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FormatError, UnsupportedMediaType
from harness.formats.gzip.inflate import MAX_PIECE, Pusher


def pushed(stored: bytes, size: int) -> list[bytes]:
    pieces: list[bytes] = []
    pusher = Pusher(pieces.append, "layer")
    for at in range(0, len(stored), size):
        pusher.feed(stored[at : at + size])
    pusher.finish()
    return pieces


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=5000), min_size=1, max_size=4),
    size=st.integers(1, 3000),
    padding=st.integers(0, 20),
)
def test_members_and_frames_are_one_stream(parts: list[bytes], size: int, padding: int) -> None:
    """Any number of members (with zeros behind) or frames, fed in pieces that end anywhere."""
    members = b"".join(gzip.compress(part) for part in parts) + bytes(padding)
    assert b"".join(pushed(members, size)) == b"".join(parts)
    frames = b"".join(zstandard.compress(part) for part in parts)
    assert b"".join(pushed(frames, size)) == b"".join(parts)
    plain = b"a name/" + b"".join(parts)
    assert b"".join(pushed(plain, size)) == plain


def test_bomb_comes_in_pieces() -> None:
    """However much a few bytes inflate to, no piece is larger than the limit."""
    plain = bytes(40 << 20)
    for stored in (gzip.compress(plain), zstandard.compress(plain)):
        sizes = [len(piece) for piece in pushed(stored, len(stored))]
        assert max(sizes) <= MAX_PIECE
        assert sum(sizes) == len(plain)


def test_damage() -> None:
    """A changed or cut stream and what stands behind it are errors; so is a compression that layers do not have."""
    stored = gzip.compress(bytes(range(256)) * 100)
    with pytest.raises(FormatError, match="ends early"):
        pushed(stored[:-3], 100)
    with pytest.raises(FormatError, match="damaged gzip"):
        pushed(stored[:-8] + bytes(8), 100)
    with pytest.raises(FormatError, match="ends early"):
        pushed(zstandard.compress(b"x" * 100)[:-1], 100)
    with pytest.raises(FormatError, match="behind the zstd stream"):
        pushed(zstandard.compress(b"x" * 100) + b"no frame", 100)
    with pytest.raises(UnsupportedMediaType):
        pushed(b"BZh91AY&SY", 100)
