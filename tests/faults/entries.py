"""Tar entries byte by byte: what tarfile would clean away must stay as odd as real tools write it."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MTIME_S = 1_600_000_000


@dataclass(frozen=True)
class Entry:
    """One ustar entry, with a PAX header before it if ``pax`` holds records; ``uid`` may be a raw field of 8 bytes."""

    name: bytes
    data: bytes = b""
    flag: bytes = b"0"
    mode: int = 0o644
    link: bytes = b""
    uid: int | bytes = 0
    gid: int = 0
    mtime: int = MTIME_S
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, bytes] = field(default_factory=dict)

    def blocks(self) -> bytes:
        """The entry as it stands in a tar."""
        head = bytearray(512)
        uid = self.uid if isinstance(self.uid, bytes) else b"%07o\0" % self.uid
        mtime = b"%011o\0" % self.mtime if self.mtime >= 0 else struct.pack(">iq", -1, self.mtime)
        pax = dict(self.pax)
        if len(self.name) > 100:
            pax.setdefault("path", self.name)
        if len(self.link) > 100:
            pax.setdefault("linkpath", self.link)
        fields = {
            0: self.name[:100], 100: b"%07o\0" % self.mode, 108: uid, 116: b"%07o\0" % self.gid,
            124: b"%011o\0" % len(self.data), 136: mtime, 148: b" " * 8, 156: self.flag, 157: self.link[:100],
            257: b"ustar\x0000", 329: b"%07o\0" % self.device[0], 337: b"%07o\0" % self.device[1],
        }  # fmt: skip
        for at, value in fields.items():
            head[at : at + len(value)] = value
        head[148:156] = b"%06o\0 " % sum(head)
        extended = Entry(b"pax", b"".join(map(_record, pax, pax.values())), b"x").blocks() if pax else b""
        return extended + bytes(head) + self.data + bytes(-len(self.data) % 512)


def _record(key: str, value: bytes) -> bytes:
    record, size = b" %s=%s\n" % (key.encode(), value), 0
    while size != len(b"%d" % size + record):
        size = len(b"%d" % size + record)
    return b"%d" % size + record


def file(name: bytes, data: bytes = b"", **more: object) -> Entry:
    return Entry(name, data, **more)  # type: ignore[arg-type]


def folder(name: bytes, mode: int = 0o755, **more: object) -> Entry:
    return Entry(name, flag=b"5", mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **more: object) -> Entry:
    return Entry(name, flag=b"2", mode=0o777, link=target, **more)  # type: ignore[arg-type]


def hard(name: bytes, target: bytes) -> Entry:
    return Entry(name, flag=b"1", link=target)


def device(name: bytes, major: int, minor: int) -> Entry:
    return Entry(name, flag=b"3", device=(major, minor))


def tar_of(*entries: Entry) -> bytes:
    """A whole archive."""
    return b"".join(entry.blocks() for entry in entries) + bytes(1024)


def gzipped(tar: bytes) -> bytes:
    return gzip.compress(tar, 6, mtime=0)


def member(data: bytes) -> bytes:
    """One gzip member without name or time."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\0\3" + body + struct.pack("<II", zlib.crc32(data), len(data))
