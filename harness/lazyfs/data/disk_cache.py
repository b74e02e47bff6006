"""The machine's disk as a cache of one layer: two sparse files, inflated bytes and stored (compressed) bytes.

Where nothing was written a sparse file reads as zeros, so callers must never read what they have not recorded as
written; the files hold no state of their own. A full disk is not an error of the file system served: writes then
report False for good, and the data path goes on from memory and the registry.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
DIRECT_ALIGN = 4096
"""Place in the file, size and address in memory of what bypasses the page cache; every file system takes this."""


class SparseFile:
    """Positional reads and writes of a file that is unlinked at once: it goes away with the process."""

    def __init__(self, directory: str, name: str, pwrite: Callable[[int, bytes | memoryview, int], int] = os.pwrite):
        path = os.path.join(directory, name)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self._pwrite = pwrite
        self._base = 0
        self.full = False

    def part(self, base: int) -> SparseFile:
        """The file from ``base`` on, as a file of its own."""
        part = copy.copy(self)
        part._fd, part._base = os.dup(self._fd), self._base + base
        return part

    def uncached(self) -> SparseFile:
        """The same file for writes that bypass the page cache, aligned by DIRECT_ALIGN; itself where it has no such.

        For bytes written once and read in part or late: caching them would cost CPU and push out what is in use.
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
        os.ftruncate(self._fd, 0)

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write all of ``data``; False when the disk is full or failing, after which nothing is written any more."""
        if self.full:
            return False
        view, offset = memoryview(data), offset + self._base
        while view:
            try:
                written = self._pwrite(self._fd, view, offset)
            except OSError as error:
                if error.errno == errno.EINVAL and self._stop_bypassing():
                    continue
                if error.errno not in FULL:
                    raise
                self.full = True
                return False
            view = view[written:]
            offset += written
        return True

    def _stop_bypassing(self) -> bool:
        """Write through the page cache from now on; False when that was so already.

        A write that bypasses the cache is refused where the device wants a larger alignment than ours, or after a
        write that ended inside a block.
        """
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)

    def write_pieces(self, offset: int, pieces: list[bytes]) -> bool:
        """Write pieces one after the other; False as for ``write``."""
        for piece in pieces:
            if not self.write(offset, piece):
                return False
            offset += len(piece)
        return True

    def read(self, offset: int, size: int) -> bytes | None:
        """Exactly ``size`` bytes, None when the disk cannot give them back."""
        offset += self._base
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


class DiskCache:
    """``inflated`` is addressed as the layer's address space, ``packed`` as its blob; both None without a disk."""

    def __init__(self, directory: str | None, layer: int, inflated: SparseFile | None = None) -> None:
        """``inflated``: where that is a part of another file."""
        self.inflated = inflated or (SparseFile(directory, f"layer-{layer}.inflated") if directory else None)
        self.packed = SparseFile(directory, f"layer-{layer}.packed") if directory else None

    def files(self) -> list[SparseFile]:
        """The files there are."""
        return [file for file in (self.inflated, self.packed) if file is not None]

    def close(self) -> None:
        for file in self.files():
            file.close()
