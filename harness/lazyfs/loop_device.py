"""A loop device over the lazy file, whose backing can be changed while it is mounted.

EROFS keeps the file it was mounted from for as long as it is mounted. A read-only loop device in between does not:
once all bytes are local, it is turned from the FUSE file to the cache file (LOOP_CHANGE_FD), and FUSE is out of the
way. Source: loop(4); Linux, include/uapi/linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_CTL_GET_FREE = 0x4C82
_CONFIGURE, _CLR_FD, _CHANGE_FD, _SET_DIRECT_IO = 0x4C0A, 0x4C01, 0x4C06, 0x4C08
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO64 = struct.Struct("<QQQQQIIII64s64s32sQQ")
_BLOCK_BYTES = 512
_ATTEMPTS = 16
LAZY_READ_AHEAD_KIB = 128
"""While bytes come over the network; the kernel's 2.5 MB for loop devices would fetch what nobody reads."""


class LoopDevice:
    """A free device attached to ``path``, read-only. It frees itself after its last use, so it is held open here."""

    def __init__(self, path: str) -> None:
        """Raises OSError when there is no free device or none may be used."""
        self.path, self._fd = "", -1
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                device = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
                handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
                try:
                    self._configure(handle, path)
                except OSError as error:
                    os.close(handle)
                    if error.errno != errno.EBUSY:  # somebody else took it between the two calls
                        raise
                else:
                    self.path, self._fd = device, handle
                    set_read_ahead(device, LAZY_READ_AHEAD_KIB)
                    return
        finally:
            os.close(control)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    @staticmethod
    def _configure(handle: int, path: str) -> None:
        backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            name = os.fsencode(path)[:63]
            info = _INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, name, b"", b"", 0, 0)
            fcntl.ioctl(handle, _CONFIGURE, struct.pack("<II", backing, _BLOCK_BYTES) + info + bytes(64))
        finally:
            os.close(backing)

    def close(self) -> None:
        """Let go: free when nothing is mounted from it, else when that is unmounted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def change_backing(device: str, backing: int, read_ahead_kib: int) -> None:
    """Turn ``device`` to the open file ``backing``, which must have the same size and content. Raises OSError.

    Waits for reads under way. Pages are then cached once, by EROFS, if the file system below allows direct reads.
    """
    handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _CHANGE_FD, backing)
        try:
            fcntl.ioctl(handle, _SET_DIRECT_IO, 1)
        except OSError:
            pass
    finally:
        os.close(handle)
    set_read_ahead(device, read_ahead_kib)


def set_read_ahead(device: str, kib: int) -> None:
    """Set it where sysfs is writable."""
    if kib:
        try:
            with open(_queue(device), "w") as file:
                file.write(str(kib))
        except OSError:
            pass


def _queue(device: str) -> str:
    return f"/sys/block/{os.path.basename(device)}/queue/read_ahead_kb"
