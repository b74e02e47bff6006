"""This module attaches a file to a free loop device. Source: loop(4); Linux, include/uapi/linux/loop.h."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time

CTL_GET_FREE = 0x4C82
CONFIGURE = 0x4C0A
CLR_FD = 0x4C01
GET_STATUS64 = 0x4C05
CHANGE_FD = 0x4C06
SET_DIRECT_IO = 0x4C08
READ_ONLY, AUTOCLEAR, DIRECT_IO = 1, 4, 16
_BUSY_WAIT_S = 10.0


class _LoopInfo64(ctypes.Structure):
    """Holds struct loop_info64 of linux/loop.h."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_ubyte * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    """Holds struct loop_config of linux/loop.h."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


def attach(file: int, name: bytes, flags: int, block_bytes: int = 0, offset: int = 0) -> tuple[int, str]:
    """Attaches ``file`` to a free loop device and returns its open descriptor and its path. Others take devices at the
    same time.

    ``block_bytes`` 0: the file's own. The device begins at ``offset`` of the file. DIRECT_IO is left out where the
    file's file system has none. Raises OSError.
    """
    config = _LoopConfig(fd=file, block_size=block_bytes)
    config.info.lo_file_name = name
    config.info.lo_offset = offset
    deadline = time.monotonic() + _BUSY_WAIT_S
    with open("/dev/loop-control", "rb") as control:
        while True:
            number = fcntl.ioctl(control, CTL_GET_FREE)
            device = f"/dev/loop{number}"
            if not os.path.exists(device):  # no udev: make the node ourselves
                os.mknod(device, 0o660 | 0o060000, os.makedev(7, number))
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            config.info.lo_flags = flags
            try:
                fcntl.ioctl(descriptor, CONFIGURE, config)
                return descriptor, device
            except OSError as error:
                os.close(descriptor)
                if error.errno == errno.EINVAL and flags & DIRECT_IO:
                    flags &= ~DIRECT_IO
                elif error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise


def name_of(device: str) -> str:
    """Returns the name that ``attach`` gave a device; empty when it is free, gone, or has none."""
    info = _LoopInfo64()
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, GET_STATUS64, info)
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    return bytes(info.lo_file_name).decode("utf-8", "replace")
