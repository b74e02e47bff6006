"""This module makes the lazy layer's table and its chunk map from a TOC's entries, column by column.

A machine with a quarter of a CPU does this for every layer before its container can start, so the work is done on
whole columns: 43 000 entries take about 0.13 CPU seconds together with inflating and parsing the TOC (2 GHz Xeon).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import FormatError
from harness.formats.estargz.chunks import ADDRESS_ALIGNMENT, ChunkMap
from harness.formats.estargz.names import clean_names, clean_target
from harness.formats.estargz.toc import HIDDEN_NAMES, PREFETCH_LANDMARK, TocEntry
from harness.formats.table import Kind, LayerTable
from harness.formats.tar.limits import MAX_OWNER, check_owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

MAX_FILE_BYTES = 1 << 40

_CHUNK = 0
_KINDS = {
    "reg": int(Kind.REG), "dir": int(Kind.DIR), "symlink": int(Kind.SYMLINK), "hardlink": int(Kind.HARDLINK),
    "char": int(Kind.CHAR), "block": int(Kind.BLOCK), "fifo": int(Kind.FIFO), "chunk": _CHUNK,
}  # fmt: skip
_WHERE = "eStargz TOC"


@dataclass(frozen=True, slots=True)
class TocLayer:
    """Holds what ``build_layer`` makes of a TOC (fields as in ``estargz_reader.EstargzToc``)."""

    table: LayerTable
    chunks: ChunkMap
    file_digests: Sequence[str]
    prefetch_bytes: int


def build_layer(entries: list[TocEntry], payload_end: int, *, zstd: bool = False) -> TocLayer:
    """Checks every entry and lays the layer out. ``payload_end`` is where in the blob the payload members end.

    Raises FormatError or UnsafePath: unknown types, values out of range, chunks that do not add up to their file.
    """
    kinds = _kinds(entries)
    is_chunk = kinds == _CHUNK
    rows = list(compress(entries, ~is_chunk)) if is_chunk.any() else entries
    names = clean_names([entry.name for entry in rows])
    row_kinds = kinds[~is_chunk]
    sizes = np.where(row_kinds == Kind.REG, _column(rows, "size"), 0)
    if len(sizes) and (int(sizes.min()) < 0 or int(sizes.max()) > MAX_FILE_BYTES):
        at = int(np.argmax((sizes < 0) | (sizes > MAX_FILE_BYTES)))
        raise FormatError(_WHERE, f"{rows[at].name!r} has a size of {sizes[at]} bytes")

    shown, landmark = _shown(names)
    padded = -(-sizes // ADDRESS_ALIGNMENT) * ADDRESS_ALIGNMENT
    if shown is not None:
        padded[~shown] = 0
    ends = np.cumsum(padded)
    address_space = int(ends[-1]) if len(ends) else 0
    addresses = np.where(sizes > 0, ends - padded, -1)

    payload = is_chunk.copy()
    payload[~is_chunk] = sizes > 0
    owner_row = np.cumsum(~is_chunk) - 1
    owner_row = np.maximum.accumulate(np.where(kinds == Kind.REG, owner_row, -1)) if len(kinds) else owner_row
    holders = _Holders(list(compress(entries, payload.tolist())), owner_row[payload], is_chunk[payload], shown)
    chunks = _chunk_map(holders, sizes, addresses, payload_end=payload_end, address_space=address_space, zstd=zstd)

    prefetch_bytes = 0
    if landmark is not None and sizes[landmark] > 0:
        prefetch_bytes = rows[landmark].offset
    digests = [entry.digest for entry in rows]
    if shown is not None:
        keep = shown.tolist()
        rows, names, digests = list(compress(rows, keep)), list(compress(names, keep)), list(compress(digests, keep))
        row_kinds, sizes, addresses = row_kinds[shown], sizes[shown], addresses[shown]
    table = _table(rows, names, kinds=row_kinds, sizes=sizes, addresses=addresses, address_space=address_space)
    return TocLayer(table, chunks, digests, prefetch_bytes)


def _kinds(entries: list[TocEntry]) -> npt.NDArray[np.uint8]:
    try:
        return np.fromiter((_KINDS[entry.type] for entry in entries), np.uint8, len(entries))
    except KeyError as error:
        raise FormatError(_WHERE, f"entry of unknown type {error.args[0]!r}") from None


def _column(entries: Sequence[TocEntry], field: str) -> npt.NDArray[np.int64]:
    try:
        return np.fromiter(map(attrgetter(field), entries), np.int64, len(entries))
    except OverflowError:
        raise FormatError(_WHERE, f"a {field} that does not fit in 64 bits") from None


def _shown(names: list[bytes]) -> tuple[npt.NDArray[np.bool_] | None, int | None]:
    """Returns a mask without the format's own entries (None where there are none), and the prefetch landmark's row."""
    hidden = HIDDEN_NAMES_BYTES.intersection(names)
    if not hidden:
        return None, None
    mask = np.fromiter((name not in hidden for name in names), np.bool_, len(names))
    landmark = PREFETCH_LANDMARK.encode()
    return mask, names.index(landmark) if landmark in hidden else None


HIDDEN_NAMES_BYTES = frozenset(name.encode() for name in HIDDEN_NAMES)


@dataclass(frozen=True, slots=True)
class _Holders:
    """Holds the entries that have payload (non-empty files and further chunks), each with its file's row in the
    table.
    """

    entries: list[TocEntry]
    owner: npt.NDArray[np.int64]
    further: npt.NDArray[np.bool_]
    shown_rows: npt.NDArray[np.bool_] | None


def _chunk_map(
    holders: _Holders,
    sizes: npt.NDArray[np.int64],
    addresses: npt.NDArray[np.int64],
    *,
    payload_end: int,
    address_space: int,
    zstd: bool,
) -> ChunkMap:
    entries, owner = holders.entries, holders.owner
    if len(owner) and int(owner.min()) < 0:
        raise FormatError(_WHERE, "a chunk stands before any regular file")
    file_offsets = _column(entries, "chunk_offset")
    file_sizes = sizes[owner]
    chunk_sizes = _column(entries, "chunk_size")
    # The reference leaves chunkSize out of a file's last chunk, or states it where the file is a multiple of it.
    chunk_sizes = np.where(chunk_sizes == 0, file_sizes - file_offsets, chunk_sizes)
    last = np.ones(len(owner), np.bool_)
    last[:-1] = owner[1:] != owner[:-1]
    expected_next = np.where(last, file_sizes, np.append(file_offsets[1:], 0))
    wrong = (
        (chunk_sizes <= 0)
        | (chunk_sizes > MAX_FILE_BYTES)
        | (file_offsets < 0)
        | (file_offsets > MAX_FILE_BYTES)
        | (file_offsets + chunk_sizes != expected_next)
        | (holders.further == (file_offsets == 0))
    )
    if wrong.any():
        entry = entries[int(np.argmax(wrong))]
        raise FormatError(
            _WHERE,
            f"the chunks of {entry.name!r} do not add up to the file: chunk at {entry.chunk_offset} of "
            f"{entry.chunk_size} bytes",
        )
    members, inner = _column(entries, "offset"), _column(entries, "inner_offset")
    starts = addresses[owner] + file_offsets
    digests = [entry.chunk_digest or ("" if entry.chunk_size else entry.digest) for entry in entries]
    others = None
    if holders.shown_rows is not None:
        keep = holders.shown_rows[owner]
        others = members[~keep]
        digests = list(compress(digests, keep.tolist()))
        members, inner, starts, chunk_sizes = members[keep], inner[keep], starts[keep], chunk_sizes[keep]
    return ChunkMap(
        starts=starts,
        sizes=chunk_sizes,
        members=members,
        inner_offsets=inner,
        digests=digests,
        blob_end=payload_end,
        address_space_bytes=address_space,
        other_members=others,
        zstd=zstd,
    )


def _table(
    rows: list[TocEntry],
    names: list[bytes],
    *,
    kinds: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
    addresses: npt.NDArray[np.int64],
    address_space: int,
) -> LayerTable:
    uids, gids = _column(rows, "uid"), _column(rows, "gid")
    for owners in (uids, gids):
        if len(owners) and not 0 <= int(owners.min()) <= int(owners.max()) <= MAX_OWNER:
            at = int(owners.argmax() if int(owners.min()) >= 0 else owners.argmin())
            check_owner(names[at], int(uids[at]), int(gids[at]))
    if any(kind != Kind.DIR for name, kind in zip(names, kinds.tolist(), strict=True) if not name):
        raise FormatError(_WHERE, "an entry other than a directory stands for the layer's root")
    times = [_parse_time(entry.modtime) for entry in rows]
    directory = int(Kind.DIR)  # members of an enumeration are looked up slowly
    kind_list = kinds.tolist()
    links: dict[int, bytes] = {}
    rdevs: dict[int, tuple[int, int]] = {}
    xattrs: dict[int, dict[bytes, bytes]] = {}
    for i, (entry, kind) in enumerate(zip(rows, kind_list, strict=True)):
        if entry.xattrs:
            xattrs[i] = {_utf8(key): value or b"" for key, value in entry.xattrs.items()}
        if kind <= directory:
            continue
        if kind == Kind.SYMLINK:
            links[i] = _utf8(entry.link_name)
        elif kind == Kind.HARDLINK:
            links[i] = clean_target(entry.link_name)
        elif kind in (Kind.CHAR, Kind.BLOCK):
            if not (0 <= entry.dev_major <= MAX_OWNER and 0 <= entry.dev_minor <= MAX_OWNER):
                raise FormatError(_WHERE, f"{entry.name!r} has device numbers out of range")
            rdevs[i] = (entry.dev_major, entry.dev_minor)
    return LayerTable(
        names=names,
        kinds=kinds,
        modes=(_column(rows, "mode") & 0o7777).astype(np.uint16),
        uids=uids.astype(np.uint32),
        gids=gids.astype(np.uint32),
        sizes=sizes,
        offsets=addresses,
        mtimes_s=np.array([seconds for seconds, _ in times], np.int64),
        mtimes_ns=np.array([nanoseconds for _, nanoseconds in times], np.uint32),
        links=links,
        rdevs=rdevs,
        xattrs=xattrs,
        address_space_bytes=address_space,
    )


def _utf8(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(_WHERE, "a name holds half of a surrogate pair") from error
    if b"\0" in encoded:
        raise FormatError(_WHERE, f"{text[:80]!r} holds a NUL byte")
    return encoded


_RFC3339 = re.compile(
    r"(-?\d{4,12})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_DAYS_TO_EPOCH = date(1970, 1, 1).toordinal()
_YEARS_PER_CYCLE, _DAYS_PER_CYCLE = 400, 146_097


@lru_cache(maxsize=1 << 16)
def _parse_time(text: str) -> tuple[int, int]:
    """Returns (seconds, nanoseconds) since the epoch of an RFC 3339 time; an absent one is 0. It takes any year, unlike
    ``datetime``.
    """
    if not text:
        return 0, 0
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise FormatError(_WHERE, f"{text[:60]!r} is not an RFC 3339 time")
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    cycles, year_in_cycle = divmod(year - 1, _YEARS_PER_CYCLE)
    try:
        days = date(year_in_cycle + 1, month, day).toordinal() + cycles * _DAYS_PER_CYCLE - _DAYS_TO_EPOCH
    except ValueError as error:
        raise FormatError(_WHERE, f"{text[:60]!r}: {error}") from error
    if hour > 23 or minute > 59 or second > 60:
        raise FormatError(_WHERE, f"{text[:60]!r} is no time of day")
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second
    if match[8]:
        shift = int(match[9]) * 3600 + int(match[10]) * 60
        seconds -= shift if match[8] == "+" else -shift
    return seconds, int((match[7] or "0").ljust(9, "0"))
