"""This module holds namespaces of other processes, says who owns one, and unmounts in a mount namespace that is not
ours.

Whoever shapes a mount namespace decides what a path in it means, so nothing is executed, imported or looked up in one:
a child process makes two system calls there and ends. Source: setns(2), umount2(2), ioctl_ns(2), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CLONE_NEWNS = 0x0002_0000
KINDS = {
    "cgroup": 0x0200_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "net": 0x4000_0000,
    "pid": 0x2000_0000,
    "mnt": CLONE_NEWNS,
}
"""These are names below /proc/PID/ns and flags, in the order in which they are entered: paths change their meaning
last.
"""

_NS_GET_USERNS = 0xB701
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


class Namespaces:
    """Holds a process's namespaces open: they stay when it ends, but for a pid namespace, which dies with its first
    process.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Takes over open descriptors, one of each of ``KINDS`` in its order. Raises ValueError for any other
        number.
        """
        self.descriptors = dict(zip(KINDS, descriptors, strict=True))

    @classmethod
    def of(cls, pid: int) -> Namespaces:
        """Opens the namespaces of a process. Raises OSError when there is no such process any more, or only its exit
        status.
        """
        opened: list[int] = []
        try:
            for kind in KINDS:
                opened.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return cls(opened)

    def close(self) -> None:
        """Lets go of them; idempotent."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


def owned_by_our_user_namespace(namespace: int) -> bool:
    """Says whether an open namespace (``/proc/PID/ns/…``) was made with rights in this process's own user namespace.

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
    """Detaches what is mounted on ``target`` in an open mount namespace, and says whether that was done.

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
