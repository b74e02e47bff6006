"""Large images: many files, a huge directory, a file over 4 GB; in time and memory that stay linear."""

from __future__ import annotations

import gzip
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from tests.lazyfs.support import QUIET, convert, serve, write_image
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

MANY, WIDE = 200_000, 50_000


def header(name: bytes, size: int = 0, kind: bytes = b"0") -> bytes:
    """A tar header (ustar; sizes from 8 GB on would need another form)."""
    fields = [
        name.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"13726131000\0",
        b" " * 8, kind, bytes(100), b"ustar\x0000", bytes(64 + 16 + 155 + 12),
    ]  # fmt: skip
    block = b"".join(fields)[:512].ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def file_tar(count: int, wide: int) -> bytes:
    """``count`` files of one payload block each, ``wide`` of them in one directory."""
    payload = b"payload".ljust(512, b"\0")
    parts = []
    for number in range(count):
        directory = b"wide" if number < wide else b"d%03d/e%02d" % (number // 1000, number // 100 % 10)
        parts += [header(directory + b"/file%06d" % number, 7), payload]
    return b"".join(parts) + bytes(1024)


@pytest.mark.parametrize("mode", ["soci", "erofs"])
def test_two_hundred_thousand_files(mode: str, tmp_path: Path) -> None:
    """A directory of 50 000 lists complete; memory grows by less than 1 KB per file."""
    tar = file_tar(MANY, WIDE)
    source = convert(
        write_image(tmp_path / "image", [tar], [gzip.compress(tar, 1, mtime=0)]), tmp_path / mode, mode,
        **{"span_size" if mode == "soci" else "span_bytes": 4 << 20},
    )  # fmt: skip
    del tar
    with serve(source, mode, tmp_path / "s", options=QUIET) as served:
        root = str(served.root / "0") if mode == "soci" else str(served.root)
        names = os.listdir(f"{root}/wide")
        assert len(names) == len(set(names)) == WIDE
        assert len(os.listdir(root)) == 1 + (MANY - WIDE) // 1000
        for number in (0, 77, WIDE - 1):
            with open(f"{root}/wide/file{number:06d}", "rb") as file:
                assert file.read() == b"payload"
        with open(f"{root}/d199/e09/file199999", "rb") as file:
            assert file.read() == b"payload"
        assert served.usage().memory_peak_bytes < (90 << 20) + MANY * 1024


@pytest.mark.parametrize("mode", ["soci", "erofs"])
def test_file_over_four_gigabytes(mode: str, tmp_path: Path) -> None:
    """Offsets beyond 32 bits reach the right bytes, and only the spans around them are fetched."""
    piece, repeats = bytes(64 << 20), 68
    zeros = gzip.compress(piece, 6, mtime=0)
    size = len(piece) * repeats + 3000
    marks = b"".join(b"%08d" % n for n in range(375))
    head, tail = header(b"huge", size), marks + bytes(-3000 % 512) + header(b"after", 5) + b"after".ljust(512, b"\0")
    blob = gzip.compress(head, mtime=0) + zeros * repeats + gzip.compress(tail + bytes(1024), mtime=0)
    diff_id = hashlib.sha256(head)
    for part in (*[piece] * repeats, tail, bytes(1024)):
        diff_id.update(part)
    put_image(
        LayoutStore(tmp_path / "image", "image", create=True), "image",
        [Layer(blob, diff_id=f"sha256:{diff_id.hexdigest()}")],
    )  # fmt: skip
    source = convert(
        ImageSource(LayoutStore(tmp_path / "image", "image")), tmp_path / mode, mode,
        **{"span_size" if mode == "soci" else "span_bytes": 64 << 20},
    )  # fmt: skip
    with serve(source, mode, tmp_path / "s", options=QUIET) as served:
        root = str(served.root / "0") if mode == "soci" else str(served.root)
        assert os.stat(f"{root}/huge").st_size == size > 1 << 32
        with open(f"{root}/huge", "rb") as file:
            file.seek(size - 3000)
            assert file.read() == marks
            file.seek((1 << 32) - 10)
            assert file.read(20) == bytes(20)
        with open(f"{root}/after", "rb") as file:
            assert file.read() == b"after"
        stats = served.usage()
        assert stats.spans_fetched <= 6 < stats.spans_total
