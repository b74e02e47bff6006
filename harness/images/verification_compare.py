"""This module compares a lazy layer with the tar it stands for: the same names, the same metadata, the same bytes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import DigestMismatch, FormatError
from harness.formats.table import Kind
from harness.formats.tar.names import clean_name, clean_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.formats.gzip.layer_stream import SpooledTar
    from harness.formats.table import ByteSource, LayerTable
    from harness.formats.tar.scanner import TarEntry

PIECE_BYTES = 1 << 20
_GLOBAL_HEADER = ord("g")


@dataclass(frozen=True, slots=True)
class LazyLayer:
    """Holds a lazy form, opened.

    ``hidden`` names are in the tar but not in the table; ``file_digests`` (if any) promise each row's content;
    ``whole_seconds`` where the form cannot hold fractions of a modification time.
    """

    table: LayerTable
    source: ByteSource
    hidden: frozenset[bytes] = frozenset()
    file_digests: Sequence[str] | None = None
    whole_seconds: bool = False


def differences(tar: SpooledTar, lazy: LazyLayer) -> Iterator[str]:
    """Says in one line each how the lazy form differs from the tar; where a name repeats, its last entry counts.

    Raises DigestMismatch or FormatError when the form cannot be read.
    """
    expected: dict[bytes, TarEntry] = {}
    for entry in tar.entries:
        if entry.flag != _GLOBAL_HEADER and (name := clean_name(entry.name)) not in lazy.hidden:
            expected[name] = entry
    rows = {name: row for row, name in enumerate(lazy.table.names)}
    for name in expected.keys() - rows.keys():
        yield f"{_show(name)} is in the tar and not in the lazy form"
    for name in rows.keys() - expected.keys():
        yield f"{_show(name)} is in the lazy form and not in the tar"
    common = [(row, name, expected[name]) for name, row in rows.items() if name in expected]
    common.sort(key=lambda item: int(lazy.table.offsets[item[0]]))  # read front to back, each chunk once
    for row, name, entry in common:
        problem = _metadata(lazy, row, entry)
        if problem:
            yield f"{_show(name)}: {problem}"
        elif entry.kind == Kind.REG:
            problem = _content(tar, lazy, row, entry)
            if problem:
                yield f"{_show(name)}: {problem}"


def _metadata(lazy: LazyLayer, row: int, entry: TarEntry) -> str:
    """Says what differs between a row and the tar's entry ("" for nothing)."""
    table, kind = lazy.table, entry.kind
    device = kind in (Kind.CHAR, Kind.BLOCK)
    link = None
    if kind == Kind.SYMLINK:
        link = entry.linkname
    elif kind == Kind.HARDLINK:
        link = clean_target(entry.linkname)
    facts: tuple[tuple[str, object, object], ...] = (
        ("type", kind.name, Kind(int(table.kinds[row])).name),
        ("mode", oct(entry.mode & 0o7777), oct(table.modes[row])),
        ("uid", entry.uid, int(table.uids[row])),
        ("gid", entry.gid, int(table.gids[row])),
        ("size", entry.size if kind == Kind.REG else 0, int(table.sizes[row])),
        ("link target", link, table.links.get(row)),
        ("device", (entry.devmajor, entry.devminor) if device else None, table.rdevs.get(row)),
        ("extended attributes", entry.xattrs, table.xattrs.get(row, {})),
    )
    for what, in_tar, in_form in facts:
        if in_tar != in_form:
            return f"{what} is {in_tar} in the tar, {in_form} in the lazy form"
    in_tar_ns = entry.mtime_s * 10**9 + entry.mtime_ns
    in_form_ns = int(table.mtimes_s[row]) * 10**9 + int(table.mtimes_ns[row])
    if in_tar_ns != in_form_ns and not (lazy.whole_seconds and abs(in_tar_ns - in_form_ns) < 10**9):
        return f"modification time is {in_tar_ns} ns in the tar, {in_form_ns} ns in the lazy form"
    return ""


def _content(tar: SpooledTar, lazy: LazyLayer, row: int, entry: TarEntry) -> str:
    start = int(lazy.table.offsets[row])
    promised = lazy.file_digests[row] if lazy.file_digests is not None else ""
    digest = hashlib.sha256() if promised else None
    for at in range(0, entry.size, PIECE_BYTES):
        size = min(PIECE_BYTES, entry.size - at)
        try:
            data = lazy.source.read(start + at, size)
        except (DigestMismatch, FormatError) as error:
            return f"bytes {at} to {at + size}: {error}"
        truth = _tar_bytes(tar, entry, at, size)
        if data != truth:
            first = next((i for i, (a, b) in enumerate(zip(data, truth, strict=False)) if a != b), len(data))
            return f"byte {at + first} differs from the tar's"
        if digest is not None:
            digest.update(data)
    if digest is not None and f"sha256:{digest.hexdigest()}" != promised:
        return f"its digest is sha256:{digest.hexdigest()}, and the lazy form promises {promised}"
    return ""


def _tar_bytes(tar: SpooledTar, entry: TarEntry, at: int, size: int) -> bytes:
    """Returns the bytes of a file as unpacking gives them, holes of sparse files as zeros."""
    if entry.sparse is None:
        return os.pread(tar.descriptor, size, entry.payload_offset + at)
    out = bytearray(size)
    stored = entry.payload_offset
    for offset, length in entry.sparse:
        low, high = max(offset, at), min(offset + length, at + size)
        if low < high:
            out[low - at : high - at] = os.pread(tar.descriptor, high - low, stored + low - offset)
        stored += length
    return bytes(out)


def _show(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace") or "/")
