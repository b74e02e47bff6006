"""Namespaces of other processes: which user namespace owns one, and unmounting in a mount namespace that is not ours.

Whoever shapes a mount namespace decides what a path in it means, so nothing is executed, imported or looked up in one:
a child process makes two system calls there and ends. Source: setns(2), umount2(2), ioctl_ns(2), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os

CLONE_NEWNS = 0x0002_0000
_NS_GET_USERNS = 0xB701
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


def owned_by_our_user_namespace(namespace: int) -> bool:
    """Whether an open namespace (``/proc/PID/ns/…``) was made with rights in this process's own user namespace.

    One that belongs to another user namespace was made by somebody who need not be root here: it is his to shape.
    """
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    except OSError:  # EPERM: its owner is outside of our own user namespace
        return False
    try:
        ours, theirs = os.stat("/proc/self/ns/user"), os.fstat(owner)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    finally:
        os.close(owner)


def unmount_inside(namespace: int, target: bytes) -> bool:
    """Detach what is mounted on ``target`` in an open mount namespace; whether that was done.

    Between entering and ending, the child runs nothing but these calls of a library that is already loaded.
    """
    number, detach = ctypes.c_int(namespace), ctypes.c_int(_MNT_DETACH | _UMOUNT_NOFOLLOW)
    kind, path = ctypes.c_int(CLONE_NEWNS), ctypes.c_char_p(target)
    setns, umount2, leave = _libc.setns, _libc.umount2, os._exit
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if setns(number, kind) == 0 and umount2(path, detach) == 0:
                code = 0
        finally:
            leave(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
