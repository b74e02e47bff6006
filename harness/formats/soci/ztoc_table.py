"""This module reads a zTOC's file table as a LayerTable, decoded column by column with numpy.

A machine with a quarter of a CPU parses this at start, so no Python loop touches a number: positions of fields come
from the few distinct vtables, strings from one slice each, and only rare things (links, devices, extended attributes,
odd names and times) are handled one by one.
"""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import FormatError
from harness.formats.table import Kind, LayerTable
from harness.formats.tar.names import clean_name, clean_target
from harness.formats.tar.odd_names import any_odd

if TYPE_CHECKING:
    import numpy.typing as npt

    from harness.formats.soci.ztoc import Ztoc

MAX_NAME_BYTES = 1 << 16
MAX_TEXT_BYTES = 1 << 28
"""Names (or link targets, or times) have at most so many bytes in all; references may share a string."""
MAX_RECORDS = 1 << 22
_WHERE = "zTOC file table"
_KINDS = {
    b"reg": Kind.REG,
    b"dir": Kind.DIR,
    b"symlink": Kind.SYMLINK,
    b"hardlink": Kind.HARDLINK,
    b"char": Kind.CHAR,
    b"block": Kind.BLOCK,
    b"fifo": Kind.FIFO,
}
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.spar"
_TIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))\Z")

if TYPE_CHECKING:
    Ints = npt.NDArray[np.int64]


class _Columns:
    """Reads numbers at arbitrary places of the buffer, many at a time; every access is checked."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        # Slices of bytes and of a map are bytes; those of a memoryview would have to be copied once more.
        whole = buffer.obj
        usable = isinstance(whole, bytes | mmap.mmap) and len(whole) == len(buffer)
        self.text: bytes | mmap.mmap = whole if usable else bytes(buffer)  # type: ignore[assignment]

    def at(self, code: str, positions: Ints) -> Ints:
        width = np.dtype(code).itemsize
        if len(positions) == 0:
            return np.empty(0, np.int64)
        if int(positions.min()) < 0 or int(positions.max()) > self.size - width:
            raise FormatError(_WHERE, "a reference leaves the buffer")
        view: npt.NDArray[np.int64] = np.ndarray((self.size - width + 1,), code, self.buffer, 0, (1,))
        return view[positions].astype(np.int64)

    def follow(self, positions: Ints) -> Ints:
        """Returns the targets of the references at ``positions``."""
        return positions + self.at("<u4", positions)


class _Tables:
    """Holds one kind of table at many positions: where each field of each table stands (0 = not stored)."""

    def __init__(self, columns: _Columns, positions: Ints) -> None:
        self._columns = columns
        self._positions = positions
        vtables = positions - columns.at("<i4", positions)
        self._distinct, self._which = np.unique(vtables, return_inverse=True)
        self._sizes = columns.at("<u2", self._distinct)

    def field(self, slot: int) -> Ints:
        inside = self._sizes >= 6 + 2 * slot
        offsets = np.zeros(len(self._distinct), np.int64)
        offsets[inside] = self._columns.at("<u2", self._distinct[inside] + 4 + 2 * slot)
        relative = offsets[self._which]
        return np.where(relative > 0, self._positions + relative, 0)

    def number(self, slot: int, code: str) -> Ints:
        places = self.field(slot)
        stored = places > 0
        if stored.all():
            return self._columns.at(code, places)
        values = np.zeros(len(places), np.int64)
        values[stored] = self._columns.at(code, places[stored])
        return values

    def string(self, slot: int) -> tuple[Ints, Ints]:
        """Returns (start, size) of a string field's bytes; an absent one is empty."""
        return self.vector(slot, 1)

    def vector(self, slot: int, width: int) -> tuple[Ints, Ints]:
        places = self.field(slot)
        stored = np.flatnonzero(places)
        targets = self._columns.follow(places[stored])
        counts = self._columns.at("<u4", targets)
        if len(counts) and int((targets + 4 + counts * width).max()) > self._columns.size:
            raise FormatError(_WHERE, "a string or vector leaves the buffer")
        starts, sizes = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
        starts[stored], sizes[stored] = targets + 4, counts
        return starts, sizes


def _slices(columns: _Columns, starts: Ints, sizes: Ints) -> list[bytes]:
    if int(sizes.sum()) > MAX_TEXT_BYTES:
        raise FormatError(_WHERE, f"names more than {MAX_TEXT_BYTES} bytes of text")
    data = columns.text
    return [data[start:end] for start, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]


def _names(columns: _Columns, starts: Ints, sizes: Ints) -> list[bytes]:
    """Returns cleaned names; UnsafePath for one that is absolute or would leave the root."""
    if len(sizes) and int(sizes.max()) > MAX_NAME_BYTES:
        raise FormatError(_WHERE, f"a name is longer than {MAX_NAME_BYTES} bytes")
    raw_starts, raw_sizes = starts, sizes
    starts, sizes = starts.copy(), sizes.copy()
    two = np.flatnonzero(sizes >= 2)
    dotted = two[columns.at("<u2", starts[two]) == 0x2F2E]  # "./"
    starts[dotted] += 2
    sizes[dotted] -= 2
    some = np.flatnonzero(sizes > 0)
    ending = some[columns.at("u1", starts[some] + sizes[some] - 1) == 0x2F]
    sizes[ending] -= 1
    names = _slices(columns, starts, sizes)
    joined = b"\0" + b"\0".join(names) + b"\0"
    if joined.count(b"\0") != len(names) + 1 or any_odd(joined):
        return [clean_name(name, _WHERE) for name in _slices(columns, raw_starts, raw_sizes)]
    return names


def _kinds(columns: _Columns, starts: Ints, sizes: Ints) -> npt.NDArray[np.uint8]:
    # A string ends in a NUL, so its first four bytes and its size tell the seven apart; the rare ones are compared.
    first = columns.at("<u4", starts)
    kinds = np.zeros(len(starts), np.uint8)
    for text, kind in _KINDS.items():
        key = int.from_bytes(text[:4].ljust(4, b"\0"), "little")
        found = (first == key) & (sizes == len(text))
        if len(text) > 4:
            for index in np.flatnonzero(found).tolist():
                if bytes(columns.buffer[starts[index] : starts[index] + len(text)]) != text:
                    raise FormatError(_WHERE, f"entry {index} has an unknown type")
        kinds[found] = kind
    if not kinds.all():
        raise FormatError(_WHERE, f"entry {int(np.argmin(kinds))} has an unknown type")
    return kinds


def _days(year: int, month: int, day: int) -> int:
    """Returns the days since 1970-01-01 of a proleptic Gregorian date (Hinnant, "chrono-compatible date
    algorithms").
    """
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def parse_time(text: bytes) -> tuple[int, int]:
    """Returns seconds since the epoch and nanoseconds of an RFC 3339 time; an empty one is the epoch."""
    if not text:
        return 0, 0
    match = _TIME.match(text)
    if match is None:
        raise FormatError(_WHERE, f"{text[:60]!r} is not an RFC 3339 time")
    year, month, day, hour, minute, second = (int(match[index]) for index in range(1, 7))
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour <= 24 and minute < 60 and second <= 60):
        raise FormatError(_WHERE, f"{text[:60]!r} is not an RFC 3339 time")
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    if match[8]:
        zone = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += zone if match[8] == b"-" else -zone
    return seconds, int(match[7].ljust(9, b"0")) if match[7] else 0


def _times(columns: _Columns, starts: Ints, sizes: Ints) -> tuple[Ints, npt.NDArray[np.uint32]]:
    texts = _slices(columns, starts, np.minimum(sizes, 64))
    known = {text: number for number, text in enumerate(set(texts))}  # few, as most entries share their time
    both = np.array([parse_time(text) for text in known], np.int64).reshape(-1, 2)
    which = np.fromiter(map(known.__getitem__, texts), np.intp, len(texts))
    return both[:, 0][which], both[:, 1].astype(np.uint32)[which]


def _xattrs(columns: _Columns, starts: Ints, counts: Ints) -> dict[int, dict[bytes, bytes]]:
    total = int(counts.sum())
    if not total:
        return {}
    if total > MAX_RECORDS:
        raise FormatError(_WHERE, f"{total} PAX records")
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    records = _Tables(columns, columns.follow(np.repeat(starts, counts) + 4 * order))
    keys, key_sizes = records.string(0)
    values, value_sizes = records.string(1)
    long = np.flatnonzero(key_sizes >= 8)
    heads = columns.at("<i8", keys[long])
    if np.any(heads == int.from_bytes(_SPARSE, "little")):
        raise FormatError(_WHERE, "holds a sparse file, whose bytes a zTOC cannot locate")
    chosen = long[heads == int.from_bytes(_XATTR[:8], "little")]
    found: dict[int, dict[bytes, bytes]] = {}
    for owner, key, value in zip(
        owners[chosen].tolist(),
        _slices(columns, keys[chosen], key_sizes[chosen]),
        _slices(columns, values[chosen], value_sizes[chosen]),
        strict=True,
    ):
        if key.startswith(_XATTR) and len(key) > len(_XATTR):
            found.setdefault(owner, {})[key[len(_XATTR) :]] = value
    return found


def table_of(ztoc: Ztoc) -> LayerTable:
    """Returns the file table; FormatError when it breaks the schema or names bytes outside the archive."""
    columns = _Columns(ztoc.buffer)
    first, count = ztoc.metadata
    tables = _Tables(columns, columns.follow(first + 4 * np.arange(count, dtype=np.int64)))
    names = _names(columns, *tables.string(0))
    kinds = _kinds(columns, *tables.string(1))
    regular = kinds == Kind.REG
    sizes = np.where(regular, tables.number(3, "<i8"), 0)
    offsets = np.where(regular & (sizes > 0), tables.number(2, "<i8"), -1)
    payload = offsets[sizes > 0]
    limit = ztoc.archive_bytes
    if np.any(sizes < 0) or np.any(payload < 0) or np.any(payload > limit - sizes[sizes > 0]):
        raise FormatError(_WHERE, "a file lies outside the archive")
    links: dict[int, bytes] = {}
    linked = np.flatnonzero((kinds == Kind.SYMLINK) | (kinds == Kind.HARDLINK))
    link_starts, link_sizes = tables.string(4)
    if len(linked) and int(link_sizes[linked].max()) > MAX_NAME_BYTES:
        raise FormatError(_WHERE, f"a link target is longer than {MAX_NAME_BYTES} bytes")
    targets = _slices(columns, link_starts[linked], link_sizes[linked])
    hard = (kinds[linked] == Kind.HARDLINK).tolist()
    for index, target, is_hard in zip(linked.tolist(), targets, hard, strict=True):
        links[index] = clean_target(target, _WHERE) if is_hard else target
    devices = np.flatnonzero((kinds == Kind.CHAR) | (kinds == Kind.BLOCK))
    rdevs: dict[int, tuple[int, int]] = {}
    if len(devices):
        majors, minors = tables.number(11, "<i8"), tables.number(12, "<i8")
        for index in devices.tolist():
            rdevs[index] = int(majors[index]) & 0xFFFFFFFF, int(minors[index]) & 0xFFFFFFFF
    seconds, nanoseconds = _times(columns, *tables.string(10))
    return LayerTable(
        names=names,
        kinds=kinds,
        modes=(tables.number(5, "<i8") & 0o7777).astype(np.uint16),
        uids=tables.number(6, "<u4").astype(np.uint32),
        gids=tables.number(7, "<u4").astype(np.uint32),
        sizes=sizes,
        offsets=offsets,
        mtimes_s=seconds,
        mtimes_ns=nanoseconds,
        links=links,
        rdevs=rdevs,
        xattrs=_xattrs(columns, *tables.vector(13, 4)),
        address_space_bytes=limit,
    )
