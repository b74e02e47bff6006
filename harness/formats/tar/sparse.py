"""This module reads sparse maps of tar entries: old GNU blocks, PAX 0.0 and 0.1 records, PAX 1.0 text in front of the
payload.

Source: GNU tar manual, "Storing Sparse Files"; Go archive/tar (same order of checks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.errors import FormatError
from harness.formats.tar.fields import decimal, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.formats.tar.scanner import TarEntry

MAX_FRAGMENTS = 1 << 17
MAX_MAP_BYTES = 1 << 20


class MapReader(Protocol):
    """Collects a map from the blocks after a header; ``inside_payload`` when those count as payload."""

    inside_payload: bool
    fragments: list[tuple[int, int]]

    def take(self, block: bytes) -> bool:
        """Takes the next block (b"" the first time); true once the map is complete."""
        ...


def _where(offset: int) -> str:
    return f"sparse map of the tar header at offset {offset}"


def is_sparse(pax: Mapping[bytes, bytes]) -> bool:
    """Says whether the records describe a sparse file of a known version."""
    major, minor = pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b"")
    if major or minor:
        return (major, minor) in {(b"0", b"0"), (b"0", b"1"), (b"1", b"0")}
    return bool(pax.get(b"GNU.sparse.map"))


def checked(fragments: list[tuple[int, int]], size: int, stored_bytes: int, offset: int) -> list[tuple[int, int]]:
    """Returns the fragments, after making sure that they are in order, inside the file and as long
    as what is stored.
    """
    end = total = 0
    for start, length in fragments:
        if start < end or length < 0 or start + length > size:
            raise FormatError(_where(offset), "fragments overlap or leave the file")
        end = start + length
        total += length
    if total > stored_bytes:
        raise FormatError(_where(offset), f"names {total} bytes of {stored_bytes} stored")
    return fragments


class OldGnuMap:
    """Reads four fragments in the header, 21 more in each extension block."""

    inside_payload = False

    def __init__(self, entry: TarEntry, header: bytes, offset: int) -> None:
        self._offset = offset
        self.fragments: list[tuple[int, int]] = []
        entry.size = number(header[483:495], offset)
        if entry.size < 0:
            raise FormatError(_where(offset), "negative size")
        self._collect(header, 386, 4)
        self._more = header[482] != 0
        self._blocks = 0

    def _collect(self, block: bytes, start: int, count: int) -> None:
        for at in range(start, start + 24 * count, 24):
            if block[at] == 0:
                break
            pair = number(block[at : at + 12], self._offset), number(block[at + 12 : at + 24], self._offset)
            self.fragments.append(pair)
        if len(self.fragments) > MAX_FRAGMENTS:
            raise FormatError(_where(self._offset), f"more than {MAX_FRAGMENTS} fragments")

    def take(self, block: bytes) -> bool:
        if block:
            self._collect(block, 0, 21)
            self._more = block[504] != 0
            self._blocks += 1
            if self._blocks > MAX_FRAGMENTS:
                raise FormatError(_where(self._offset), "endless extension blocks")
        return not self._more


class _Known:
    """Gives a map that the PAX records already held in full (0.0 and 0.1)."""

    inside_payload = True

    def __init__(self, fragments: list[tuple[int, int]]) -> None:
        self.fragments = fragments

    def take(self, block: bytes) -> bool:
        return not block


class _TextMap:
    """Reads the map of PAX 1.0: decimal lines (count, then offset and length of each) in whole blocks at the payload's
    start.
    """

    inside_payload = True

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._text = bytearray()
        self._lines = 0
        self.fragments: list[tuple[int, int]] = []

    def take(self, block: bytes) -> bool:
        self._text += block
        self._lines += block.count(b"\n")
        if not self._lines:
            if len(self._text) > 512:
                raise FormatError(_where(self._offset), "no number in the first block")
            return False
        count = decimal(bytes(self._text[: self._text.index(b"\n")]), self._offset)
        if not 0 <= count <= MAX_FRAGMENTS or len(self._text) > MAX_MAP_BYTES:
            raise FormatError(_where(self._offset), f"{count} fragments (at most {MAX_FRAGMENTS})")
        if self._lines < 1 + 2 * count:
            return False
        numbers = [decimal(line, self._offset) for line in bytes(self._text).split(b"\n")[1 : 1 + 2 * count]]
        self.fragments = list(zip(numbers[::2], numbers[1::2], strict=True))
        return True


def pax_map(entry: TarEntry, offset: int) -> MapReader:
    """Makes a reader for the map that ``entry``'s records announce; sets the entry's real name and size."""
    pax = entry.pax
    entry.name = pax.get(b"GNU.sparse.name") or entry.name
    size = pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize")
    if size:
        entry.size = decimal(size, offset)
        if entry.size < 0:
            raise FormatError(_where(offset), "negative size")
    if pax.get(b"GNU.sparse.major") == b"1":
        return _TextMap(offset)
    text = pax.get(b"GNU.sparse.map", b"")
    numbers = [decimal(part, offset) for part in text.split(b",")] if text else []
    if pax.get(b"GNU.sparse.numblocks", b"%d" % (len(numbers) // 2)) != b"%d" % (len(numbers) // 2) or len(numbers) % 2:
        raise FormatError(_where(offset), "the number of fragments is not the promised one")
    if len(numbers) > 2 * MAX_FRAGMENTS:
        raise FormatError(_where(offset), f"more than {MAX_FRAGMENTS} fragments")
    return _Known(list(zip(numbers[::2], numbers[1::2], strict=True)))
