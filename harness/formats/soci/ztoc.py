"""This module reads a zTOC: the file table as columns, and where the spans are. Hostile input gives FormatError.

Layout facts (see ``ztoc_write``): the root table, CompressionInfo and the span digests stand first, then the
checkpoints (17 bytes of numbers and a 32 KiB window each), then the file table. Parsing touches no window, so a zTOC
may be a memory map; :meth:`Ztoc.window` reads one when its span is inflated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import FormatError
from harness.formats.gzip.checkpoints import WINDOW_BYTES, Checkpoint
from harness.formats.soci.flatbuffer import Table
from harness.formats.soci.ztoc_layout import FIXED, GZIP, HEADER, UNCOMPRESSED

if TYPE_CHECKING:
    import numpy.typing as npt

    from harness.formats.table import LayerTable

MAX_SPANS = 1 << 22
MAX_ENTRIES = 1 << 22
MAX_SPAN_BYTES = 1 << 28
"""A reader accepts so many decompressed bytes of one span at most: it holds one span in memory."""
RECORD_BYTES = FIXED.size + WINDOW_BYTES


@dataclass(frozen=True, slots=True)
class Ztoc:
    """Holds a parsed zTOC over its buffer.

    Of the spans ``ins``, ``outs``, ``bits`` are the checkpoints' columns (an uncompressed layer has them at multiples
    of ``span_size``), ``digests`` the sha256 of each span's stored bytes. ``archive_bytes`` is the size of the
    decompressed tar up to its end marker; ``compressed_bytes`` that of the layer's blob.
    """

    buffer: memoryview
    version: str
    tool: str
    algorithm: int
    compressed_bytes: int
    archive_bytes: int
    span_size: int
    ins: npt.NDArray[np.int64]
    outs: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]
    digests: list[bytes]
    first_window: int
    """This is where the first stored window stands in the buffer."""
    left_out: int
    """It is 1 where checkpoint 0 is left out (old form), else 0."""
    metadata: tuple[int, int]
    """Holds the position of the entry vector's first element, and the number of entries."""

    def __len__(self) -> int:
        return self.metadata[1]

    @property
    def spans(self) -> int:
        return len(self.digests)

    def checkpoint(self, span: int) -> Checkpoint:
        return Checkpoint(int(self.ins[span]), int(self.outs[span]), int(self.bits[span]))

    def window(self, span: int) -> memoryview:
        """Returns the 32 KiB of output before the span."""
        if self.algorithm != GZIP or span < self.left_out:
            return memoryview(bytes(WINDOW_BYTES))
        start = self.first_window + (span - self.left_out) * RECORD_BYTES
        return self.buffer[start : start + WINDOW_BYTES]

    def to_table(self) -> LayerTable:
        """Returns the file table in the form every presentation takes."""
        from harness.formats.soci.ztoc_table import table_of

        return table_of(self)


def _digests(strings: list[bytes]) -> list[bytes]:
    result = []
    for index, text in enumerate(strings):
        try:
            if text[:7] != b"sha256:" or len(text) != 71:
                raise ValueError
            result.append(bytes.fromhex(text[7:].decode("ascii")))
        except ValueError:
            raise FormatError(f"zTOC digest of span {index}", f"{text[:80]!r} is not a sha256 digest") from None
    return result


def _gzip_columns(
    buffer: memoryview, start: int, size: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8], int]:
    """Returns span size, ins, outs, bits, and how many first checkpoints are left out."""
    if size < HEADER.size:
        raise FormatError("zTOC checkpoints", f"{size} bytes hold no header")
    count, span_size = HEADER.unpack_from(buffer, start)
    if not 0 < count <= MAX_SPANS or span_size < 1:
        raise FormatError("zTOC checkpoints", f"{count} checkpoints of {span_size} bytes")
    missing = count - (size - HEADER.size) // RECORD_BYTES
    if (size - HEADER.size) % RECORD_BYTES or missing not in (0, 1):
        raise FormatError("zTOC checkpoints", f"{size} bytes do not hold {count} checkpoints")
    kind = np.dtype(
        {
            "names": ["in", "out", "bits"],
            "formats": ["<i8", "<i8", "u1"],
            "offsets": [0, 8, 16],
            "itemsize": RECORD_BYTES,
        }
    )
    records = (
        np.frombuffer(buffer, kind, count - missing, start + HEADER.size) if count > missing else np.empty(0, kind)
    )
    ins = records["in"].astype(np.int64)
    outs = records["out"].astype(np.int64)
    bits = records["bits"].astype(np.uint8)
    if missing:  # the old form leaves out the first checkpoint, behind a plain gzip header
        ins, outs = np.concatenate([[10], ins]), np.concatenate([[0], outs])
        bits = np.concatenate([np.zeros(1, np.uint8), bits])
    return span_size, ins, outs, bits, missing


def _plain_columns(
    buffer: memoryview, start: int, size: int, compressed_bytes: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8], int]:
    info = Table.root(buffer[start : start + size], "TarZinfo")
    span_size, layer_size = info.int64(1), info.int64(2)
    if span_size < 1 or layer_size != compressed_bytes or layer_size // span_size > MAX_SPANS:
        raise FormatError("zTOC of an uncompressed layer", f"spans of {span_size} bytes in {layer_size}")
    starts = np.arange(0, layer_size, span_size, dtype=np.int64)
    return span_size, starts, starts, np.zeros(len(starts), np.uint8), 0


def parse(data: bytes | memoryview) -> Ztoc:
    """Checks a zTOC's frame (root, spans, digests, entry vector); entries are checked by :meth:`Ztoc.to_table`."""
    buffer = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    root = Table.root(buffer, "Ztoc")
    version = root.string(0).decode("utf-8", "replace")
    if version != "0.9":
        raise FormatError("zTOC", f"version {version[:40]!r} is not 0.9")
    toc, info = root.table(4, "TOC"), root.table(5, "CompressionInfo")
    if toc is None or info is None:
        raise FormatError("zTOC", "no TOC or no CompressionInfo")
    compressed, archive = root.int64(2), root.int64(3)
    if compressed < 0 or archive < 0:
        raise FormatError("zTOC", "negative size")
    algorithm = info.int8(0, GZIP)
    start, size = info.vector(3, 1)
    if algorithm == GZIP:
        span_size, ins, outs, bits, left_out = _gzip_columns(buffer, start, size)
    elif algorithm == UNCOMPRESSED:
        span_size, ins, outs, bits, left_out = _plain_columns(buffer, start, size, compressed)
    else:
        raise FormatError("zTOC", f"compression algorithm {algorithm} is unknown")
    digests = _digests(info.strings(2, longest=71, most=MAX_SPANS))
    spans = len(ins)
    if len(digests) != spans or info.int32(1) != max(spans - 1, 0):
        raise FormatError("zTOC", f"{spans} spans, {len(digests)} digests, last span id {info.int32(1)}")
    if spans:
        in_order = bool(np.all(np.diff(ins) > 0) and np.all(np.diff(outs) >= 0))
        if not in_order or outs[0] != 0 or np.any(ins < 0) or int(ins[-1]) > compressed or np.any(bits > 7):
            raise FormatError("zTOC checkpoints", "out of order or outside the layer")
        if np.any((ins == 0) & (bits > 0)) or np.any(np.diff(outs, append=archive) > MAX_SPAN_BYTES):
            raise FormatError("zTOC checkpoints", "a span is too large or starts before the layer")
    elif archive:
        raise FormatError("zTOC checkpoints", "no span for the layer's bytes")
    metadata = toc.vector(0, 4)
    if metadata[1] > MAX_ENTRIES:
        raise FormatError("zTOC", f"{metadata[1]} entries (at most {MAX_ENTRIES})")
    tool = root.string(1)[:1024].decode("utf-8", "replace")
    return Ztoc(
        buffer=buffer,
        version=version,
        tool=tool,
        algorithm=algorithm,
        compressed_bytes=compressed,
        archive_bytes=archive,
        span_size=span_size,
        ins=ins,
        outs=outs,
        bits=bits,
        digests=digests,
        first_window=start + HEADER.size + FIXED.size,
        left_out=left_out,
        metadata=metadata,
    )
