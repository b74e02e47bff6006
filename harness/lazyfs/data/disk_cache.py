"""This module caches a layer on the machine's disk in two sparse files, of inflated bytes and of stored bytes.

Where nothing was written a sparse file reads as zeros, so callers never read what they have not recorded as written;
the files hold no state of their own. Whatever the disk refuses is no error of the file system served: after the first
error nothing is written any more, and the data path goes on from memory and the registry.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from harness.lazyfs.data.unit_file import UnitFile

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from harness.lazyfs.data.units import Units

log = logging.getLogger(__name__)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DIRECT_ALIGN = 4096
"""Aligns what bypasses the page cache (place in the file, size, address in memory); every file system takes this."""


class DiskHealth:
    """Knows whether the disk still takes bytes; all its files share it, so that one error ends the cache, said once."""

    def __init__(self) -> None:
        self.failure: OSError | None = None

    @property
    def full(self) -> bool:
        """Says whether the disk takes nothing because it is full."""
        return self.failure is not None and self.failure.errno in FULL

    def fail(self, error: OSError) -> None:
        """Notes an error of the disk: nothing is written from now on."""
        if self.failure is None:
            self.failure = error
            log.warning(
                "the disk takes no more of the cache (%s): what memory does not hold is fetched again and again",
                error.strerror,
            )


class SparseFile:
    """Reads and writes at places of a file that is unlinked at once: it goes away with the process."""

    def __init__(
        self,
        directory: str,
        name: str,
        health: DiskHealth | None = None,
        pwrite: Callable[[int, bytes | memoryview, int], int] = os.pwrite,
    ) -> None:
        """Makes the file. Raises OSError when the disk does not even take a file."""
        path = os.path.join(directory, name)
        with contextlib.suppress(FileNotFoundError):  # of a daemon that was killed between the next two lines
            os.unlink(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self.health = health or DiskHealth()
        self._pwrite = pwrite
        self.base = 0
        """Says where its byte 0 is in the file that it is a part of."""

    @classmethod
    def of_descriptor(cls, descriptor: int, health: DiskHealth) -> SparseFile:
        """Returns the open file of an earlier daemon."""
        file = cls.__new__(cls)
        file._fd, file.health, file._pwrite, file.base = descriptor, health, os.pwrite, 0
        return file

    def part(self, base: int) -> SparseFile:
        """Returns the file from ``base`` on, as a file of its own."""
        part = copy.copy(self)
        part._fd, part.base = os.dup(self._fd), self.base + base
        return part

    def uncached(self) -> SparseFile:
        """Returns the file for writes that bypass the page cache, aligned by DIRECT_ALIGN, where it allows them.

        It is for bytes written once and read in part or late: caching them would cost CPU and push out what is in use.
        """
        twin = copy.copy(self)
        try:
            twin._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            twin._fd = os.dup(self._fd)
        return twin

    @property
    def descriptor(self) -> int:
        return self._fd

    def clear(self) -> None:
        """Give its blocks back; every byte reads as absent from now on."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            self.health.fail(error)

    def sync(self) -> bool:
        """Makes the disk hold what was written; returns False when it does not. Blocks."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.health.fail(error)
        return self.health.failure is None

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Writes all of ``data``; returns False when the disk is full or failing, and writes nothing any more then."""
        if self.health.failure is not None:
            return False
        view, offset = memoryview(data), offset + self.base
        while view:
            try:
                written = self._pwrite(self._fd, view, offset)
            except OSError as error:
                if error.errno == errno.EINVAL and self._stop_bypassing():
                    continue
                self.health.fail(error)
                return False
            view = view[written:]
            offset += written
        return True

    def _stop_bypassing(self) -> bool:
        """Writes through the page cache from now on; returns False when that was so already.

        A write that bypasses the cache is refused where the device wants a larger alignment than ours, or after a
        write that ended inside a block.
        """
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)

    def read(self, offset: int, size: int) -> bytes | None:
        """Returns exactly ``size`` bytes; None when the disk cannot give them back."""
        offset += self.base
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    return None
                data += more
        except OSError:
            return None
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class CacheFiles:
    """Makes the cache's files, and hears what is written to them. These end with the process."""

    def open(self, directory: str, name: str, health: DiskHealth) -> SparseFile:
        """Returns a file of this name; raises OSError when the disk does not take one."""
        return SparseFile(directory, name, health)

    def written(self, name: str) -> dict[int, array[int]]:
        """Returns the units that the file has when it is opened, with their checksums."""
        return {}

    def note_unit(self, name: str, unit: int, sums: array[int]) -> None:
        """Notes that the unit is in the file now; called from any thread."""


class DiskCache:
    """Caches a layer in ``inflated``, addressed like its address space, and ``packed``, like its blob.

    Both are None without a disk.
    """

    def __init__(
        self, directory: str | None, layer: int, units: Units, inflated: SparseFile | None = None, *,
        health: DiskHealth | None = None, files: CacheFiles | None = None,
    ) -> None:  # fmt: skip
        """``inflated`` is given where it is a part of another file; ``files`` makes those that are not."""
        self.inflated: UnitFile | None = None
        self.packed: UnitFile | None = None
        if directory is None:
            return
        health, made = health or DiskHealth(), files or CacheFiles()
        starts, ends = units.starts, units.ends

        def unit_file(name: str, file: SparseFile | None, extent: Callable[[int], tuple[int, int]]) -> UnitFile:
            opened = file or made.open(directory, name, health)
            return UnitFile(opened, extent, made.written(name), partial(made.note_unit, name))

        try:
            self.inflated = unit_file(
                f"layer-{layer}.inflated", inflated, lambda unit: (starts[unit], ends[unit] - starts[unit])
            )
            self.packed = unit_file(f"layer-{layer}.packed", None, units.extent)
        except OSError as error:
            health.fail(error)

    @property
    def failure(self) -> OSError | None:
        """Says why the disk takes nothing any more, if it does not."""
        return self.packed.file.health.failure if self.packed is not None else None

    @property
    def full(self) -> bool:
        """Says whether the disk takes nothing any more because it is full."""
        return self.packed is not None and self.packed.file.health.full

    def close(self) -> None:
        if self.inflated is not None:
            self.inflated.file.close()
        if self.packed is not None:
            self.packed.file.close()
