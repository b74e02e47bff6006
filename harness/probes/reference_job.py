"""This module runs the reference job: fixed work (names looked up, small files read) that no image and no mode changes.

Its files are on a tmpfs that is mounted nowhere, made before a container is entered and reached through a descriptor.
Its time beside a workload says how fast the host was at that moment. It imports little but the standard library, since
it lives in small machines.
"""

from __future__ import annotations

import ctypes
import os

PAGE = 4096
REFERENCE_FILES = 256
#: Numbers of the new mount API, the same on all architectures (kernel 5.2, include/uapi/asm-generic/unistd.h).
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSCONFIG_CMD_CREATE = 1, 1, 6


def make_reference() -> int:
    """Makes a directory of small files on a tmpfs that is mounted nowhere: it goes when this process does.

    Raises OSError where the kernel has no such mounts (before 5.2).
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result = int(libc.syscall(number, *arguments))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"tmpfs: {os.strerror(code)}")
        return result

    context = call(SYS_FSOPEN, b"tmpfs", FSOPEN_CLOEXEC)
    try:
        call(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        directory = call(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
    for number in range(REFERENCE_FILES):
        handle = os.open(f"{number:03d}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=directory)
        os.write(handle, bytes(PAGE))
        os.close(handle)
    return directory


_directory = -1


def prepare() -> None:
    """Makes the directory; where the kernel cannot, the job fails with a bad descriptor and its figures are left
    out.
    """
    global _directory
    try:
        _directory = make_reference()
    except OSError:
        _directory = -1


def reference_job(_request: object) -> tuple[int, int]:
    """Looks up and reads every file of the reference directory."""
    buffer = bytearray(PAGE)
    for number in range(REFERENCE_FILES):
        name = f"{number:03d}"
        os.lstat(name, dir_fd=_directory)
        handle = os.open(name, os.O_RDONLY, dir_fd=_directory)
        try:
            os.readv(handle, [buffer])
        finally:
            os.close(handle)
    return REFERENCE_FILES, REFERENCE_FILES * PAGE
