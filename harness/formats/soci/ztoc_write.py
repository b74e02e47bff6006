"""This module serialises a zTOC, byte for byte as the reference indexer does.

The order of writing decides the bytes: strings of the version and the tool; entries from the last to the first (their
strings, their PAX records by key, the record vector, the table); the entry vector; the TOC; checkpoints; span
digests; CompressionInfo; root. In the finished buffer everything stands the other way round: root and digests first,
then the windows, then the file table, so a reader may leave the windows on disk.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Protocol

from harness.errors import FormatError
from harness.formats.soci.flatbuffer import PADDING, Layout, Writer
from harness.formats.soci.ztoc_layout import GZIP, TYPES, VERSION
from harness.formats.soci.ztoc_spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.formats.soci.ztoc_spool import CheckpointStore
    from harness.formats.tar.scanner import TarEntry

_PIECES = 1 << 16
_SCALARS = ((2, "q"), (3, "q"), (5, "q"), (6, "I"), (7, "I"), (11, "q"), (12, "q"))


class Backwards(Protocol):
    """Gives entries that can be walked from the last to the first."""

    def __reversed__(self) -> Iterator[TarEntry]: ...


def rfc3339(seconds: int, nanoseconds: int) -> bytes:
    """Writes Go's RFC 3339 text of a time in UTC, years 0 to 9999 (trailing zeros of the fraction cut)."""
    days, rest = divmod(seconds, 86400)
    # Days to a civil date in years of 400-year eras starting in March (Hinnant, "chrono-compatible date algorithms").
    era, day = divmod(days + 719468, 146097)
    of_era = (day - day // 1460 + day // 36524 - day // 146096) // 365
    of_year = day - (365 * of_era + of_era // 4 - of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = of_era + era * 400 + (month <= 2)
    if not 0 <= year <= 9999:
        raise FormatError("tar entry", f"time {seconds} s lies outside the years 0 to 9999")
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    date = f"{year:04d}-{month:02d}-{of_year - (153 * shifted + 2) // 5 + 1:02d}"
    return f"{date}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}{fraction}Z".encode()


class PlainCheckpoints:
    """Stands in the place of checkpoints for an uncompressed layer: span size and layer size."""

    def __init__(self, span_size: int, size: int) -> None:
        writer = Writer()
        writer.finish(writer.table([(0, "i", 2), (1, "q", span_size), (2, "q", size)]))
        self._bytes = b"".join(reversed(writer.pieces))
        self.size = len(self._bytes)

    def pieces(self) -> Iterator[bytes]:
        yield self._bytes

    def close(self) -> None:
        pass


def _write_pax(writer: Writer, pax: Mapping[bytes, bytes]) -> int:
    tables = []
    for key in sorted(pax):
        first = writer.string(key)
        tables.append(writer.table([(0, "o", first), (1, "o", writer.string(pax[key]))]))
    return writer.offsets(tables)


def _write_entries(writer: Writer, entries: Backwards, table: Spool) -> array[int]:
    """Writes all entries, last first; returns the offsets of their tables in the entries' order. Finished bytes go to
    ``table``.
    """
    layouts: dict[tuple[int | bool, ...], Layout] = {}
    owners: dict[tuple[int, bytes, bytes, bytes], tuple[bytes, int, int, int, int]] = {}
    times: dict[tuple[int, int], bytes] = {}
    pieces, pack_length = writer.pieces, struct.Struct("<I").pack
    tables = array("Q")
    size = writer.size
    for entry in reversed(entries):
        name = entry.name
        length = len(name)
        piece = pack_length(length) + name + PADDING[1 + (-(size + length + 1) & 3)]
        pieces.append(piece)
        size += len(piece)
        name_at = size
        # type, link target and owner names repeat, and once a string has ended all is aligned to 4: keep their bytes.
        owner = (entry.flag, entry.linkname, entry.uname, entry.gname)
        known = owners.get(owner)
        if known is None:
            kind = TYPES.get(entry.flag)
            if kind is None:
                where = f"tar entry {name[:200]!r} at offset {entry.header_offset}"
                raise FormatError(where, f"type {chr(entry.flag)!r} has no place in a zTOC")
            part = Writer()
            ends = [part.string(text) for text in (kind, entry.linkname, entry.uname, entry.gname)]
            known = (b"".join(reversed(part.pieces)), ends[0], ends[1], ends[2], ends[3])
            if len(owners) < 65536:
                owners[owner] = known
        pieces.append(known[0])
        time = times.get((entry.mtime_s, entry.mtime_ns))
        if time is None:
            part = Writer()
            part.string(rfc3339(entry.mtime_s, entry.mtime_ns))
            time = b"".join(reversed(part.pieces))
            if len(times) < 65536:
                times[entry.mtime_s, entry.mtime_ns] = time
        time_at = size + known[4] + len(time)
        pieces.append(time)
        if entry.pax:
            writer.size = time_at
            pax_at = _write_pax(writer, entry.pax)
        else:
            pieces.append(PADDING[4])
            writer.size = pax_at = time_at + 4
        payload, stored, mode = entry.payload_offset, entry.size, entry.mode
        uid, gid = entry.uid & 0xFFFFFFFF, entry.gid & 0xFFFFFFFF
        major, minor = entry.devmajor, entry.devminor
        key = (writer.size & 7, payload != 0, stored != 0, mode != 0, uid != 0, gid != 0, major != 0, minor != 0)
        layout = layouts.get(key)
        if layout is None:
            codes = {0: "o", 1: "o", 4: "o", 8: "o", 9: "o", 10: "o", 13: "o"}
            codes.update(scalar for scalar, stored_too in zip(_SCALARS, key[1:], strict=True) if stored_too)
            layout = layouts[key] = Layout(writer.size & 7, tuple(sorted(codes.items())))
        base = writer.size
        place = layout.positions
        # Fields by descending id, as they stand in the table; references count from their own place.
        values = [base + place[-1] - pax_at]
        if minor:
            values.append(minor)
        if major:
            values.append(major)
        after = -2 - (minor != 0) - (major != 0)
        values += (
            base + place[after] - time_at,
            base + place[after - 1] - size - known[4],
            base + place[after - 2] - size - known[3],
        )
        if gid:
            values.append(gid)
        if uid:
            values.append(uid)
        if mode:
            values.append(mode)
        after += -3 - (gid != 0) - (uid != 0) - (mode != 0)
        values.append(base + place[after] - size - known[2])
        if stored:
            values.append(stored)
        if payload:
            values.append(payload)
        values += (base + place[1] - size - known[1], base + place[0] - name_at)
        tables.append(writer.table_packed(layout, values))
        size = writer.size
        if len(pieces) >= _PIECES:
            table.add(b"".join(reversed(pieces)))
            pieces.clear()
    tables.reverse()
    return tables


def serialise(
    entries: Backwards,
    checkpoints: CheckpointStore | PlainCheckpoints,
    span_digests: Iterable[bytes],
    *,
    algorithm: int,
    tool: str,
    compressed_bytes: int,
    archive_bytes: int,
) -> Iterator[bytes]:
    """Yields the zTOC in pieces, first byte first; the windows are copied straight from where ``checkpoints`` keeps
    them.
    """
    writer = Writer()
    version_at = writer.string(VERSION)
    tool_at = writer.string(tool.encode())
    table = Spool()
    metadata = writer.offsets(_write_entries(writer, entries, table))
    toc = writer.table([(0, "o", metadata)])
    table.add(b"".join(reversed(writer.pieces)))
    padding = writer.blob_start(checkpoints.size)
    checkpoints_at = writer.size
    writer.pieces = []
    digests = [writer.string(b"sha256:" + digest.hex().encode()) for digest in span_digests]
    digests_at = writer.offsets(digests)
    fields = [(1, "i", len(digests) - 1)] if len(digests) > 1 else []
    fields += [(2, "o", digests_at), (3, "o", checkpoints_at)]
    if algorithm != GZIP:
        fields.append((0, "b", algorithm))
    info = writer.table(fields)
    root = [(0, "o", version_at), (1, "o", tool_at), (4, "o", toc)]
    root += [(2, "q", compressed_bytes)] if compressed_bytes else []
    root += [(3, "q", archive_bytes)] if archive_bytes else []
    writer.finish(writer.table([*root, (5, "o", info)]))
    yield b"".join(reversed(writer.pieces))
    yield struct.pack("<I", checkpoints.size)
    yield from checkpoints.pieces()
    yield PADDING[padding]
    yield from reversed(table)
    table.close()
