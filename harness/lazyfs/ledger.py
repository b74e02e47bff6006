"""This module writes down what a daemon has done, where its death does not reach: the next one reads it and goes on.

A ledger is a file in memory (memfd) that the holder keeps open. Records are appended by single writes and carry a
checksum; a record that the daemon was killed in the middle of is cut off, and what it stood for is done again. The
credentials for a registry are in it, so it never touches a disk.
"""

from __future__ import annotations

import os
import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = struct.Struct("<IIB")
"""Holds the size of the payload, the checksum of kind and payload, and the kind."""


class Kind(IntEnum):
    """Names what a record says."""

    PLACE = 1
    """Says where the session is mounted, and whether the directory was made for it."""
    MOUNTED = 2
    """Holds a mount request and its answer, two lines of the channel."""
    DEVICES = 3
    """Holds the loop devices that the daemon was told of: a line of the channel."""
    READY = 4
    """Says that the container is ready, and what had been fetched by then."""
    TURNED = 5
    """Says that the kernel reads the local file."""
    UNIT = 6
    """Says that a unit is in a cache file, with its checksums."""
    ANSWER = 7
    """Says that a range of an index blob is in the file ``indexes``."""


class Ledger:
    """Keeps records in the order in which they were made. ``note`` may be called from any thread."""

    def __init__(self, descriptor: int | None = None) -> None:
        """``descriptor`` is an earlier daemon's ledger, read and gone on with. Raises OSError when memory is out."""
        self.descriptor = os.memfd_create("coldbench-ledger") if descriptor is None else descriptor

    def note(self, kind: Kind, payload: bytes) -> None:
        """Append a record; it is there when this returns, whatever becomes of the process."""
        # One write: several threads' records do not mix. Appending goes by the place, which the open file keeps.
        os.write(self.descriptor, _HEAD.pack(len(payload), _sum(kind, payload), kind) + payload)

    def records(self) -> Iterator[tuple[Kind, bytes]]:
        """Yields all whole records, and cuts off what follows the last. Read them all before any ``note``."""
        size = os.fstat(self.descriptor).st_size
        data = os.pread(self.descriptor, size, 0)
        position = 0
        while position + _HEAD.size <= len(data):
            length, checksum, kind = _HEAD.unpack_from(data, position)
            payload = data[position + _HEAD.size : position + _HEAD.size + length]
            if len(payload) != length or _sum(kind, payload) != checksum:
                break
            yield Kind(kind), payload
            position += _HEAD.size + length
        os.ftruncate(self.descriptor, position)
        os.lseek(self.descriptor, position, os.SEEK_SET)


def _sum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, kind)
