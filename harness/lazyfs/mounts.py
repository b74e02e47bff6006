"""EROFS over the one file: file-backed where the kernel can (>= 6.12), else through a loop device (>= 6.4).

The system calls are passed in, so that refusals can be tested on a kernel that refuses nothing. Source: kernel
documentation, filesystems/erofs.rst; loop(4); mount(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MachineError
from harness.machine.syscalls import MNT_DETACH
from harness.machine.syscalls import mount as _mount
from harness.machine.syscalls import umount as _umount

if TYPE_CHECKING:
    from collections.abc import Callable

MS_RDONLY = 1
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_INFO64 = struct.Struct("<QQQQQIIII64s64s32sQQ")
_ADVICE = "use --mode soci, which needs nothing but FUSE"


@dataclass(frozen=True)
class Syscalls:
    """What mounting needs of the kernel."""

    mount: Callable[[str, str, str | None, int, str | None], None] = _mount
    umount: Callable[[str, int], None] = _umount
    filesystems: Callable[[], str] = lambda: _read("/proc/filesystems")
    attach_loop: Callable[[str], str] | None = None


def mount_erofs(source: str, target: str, syscalls: Syscalls | None = None) -> str:
    """Mount the image file ``source`` on ``target``; ``file`` or ``loop``, whichever way it went.

    HostUnfit when the kernel has no EROFS or is too old for both ways, MachineError when it refuses the image.
    """
    calls = syscalls or Syscalls()
    try:
        calls.mount(source, target, "erofs", MS_RDONLY, None)
        return "file"
    except OSError as error:
        number = error.errno
    if number == errno.ENODEV:
        raise HostUnfit(f"the kernel has no EROFS (CONFIG_EROFS_FS, or: modprobe erofs); {_ADVICE}")
    if number not in {errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP}:
        raise MachineError(f"mounting EROFS over the lazy file was refused ({os.strerror(number or 0)}); {_ADVICE}")
    # ENOTBLK: EROFS before 6.12 takes block devices only.
    try:
        device = (calls.attach_loop or attach_loop)(source)
    except OSError as error:
        raise HostUnfit(f"this kernel mounts EROFS from devices only, and no loop device is free "
                        f"({os.strerror(error.errno or 0)}); {_ADVICE}") from None  # fmt: skip
    try:
        calls.mount(device, target, "erofs", MS_RDONLY, None)
    except OSError as error:
        detach_loop(device)
        raise MachineError(f"the kernel refuses the EROFS image ({os.strerror(error.errno or 0)}): blocks of 512 bytes "
                           f"need Linux 6.4 or newer; {_ADVICE}") from None  # fmt: skip
    return "loop"


def unmount(target: str, syscalls: Syscalls | None = None) -> bool:
    """Detach whatever is mounted on ``target``, open files or not; False when nothing was."""
    calls = syscalls or Syscalls()
    try:
        calls.umount(target, MNT_DETACH)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return False
        if error.errno == errno.ENOTCONN:
            return True
        raise
    return True


def attach_loop(path: str) -> str:
    """A free loop device over ``path``, read-only, gone by itself after its last use; OSError when there is none."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(16):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
                    name = os.fsencode(path)[:63]
                    info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
                    fcntl.ioctl(handle, _LOOP_CONFIGURE, struct.pack("<II", backing, 512) + info + bytes(64))
                    return device
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                finally:
                    os.close(backing)
            finally:
                os.close(handle)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def detach_loop(device: str) -> None:
    """Free a loop device that nothing was mounted from."""
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(handle, _LOOP_CLR_FD)
    except OSError:
        pass
    finally:
        os.close(handle)


def set_read_ahead(mountpoint: str, kib: int) -> bool:
    """Read-ahead of the mount's backing device; whether sysfs let us. Touches no file of the mount."""
    device = mount_device(mountpoint)
    if device is None:
        return False
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w") as file:
            file.write(str(kib))
    except OSError:
        return False
    return True


def mount_device(mountpoint: str) -> str | None:
    """``major:minor`` of what is mounted there, from mountinfo (a stat would be a request to our own daemon)."""
    found = None
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if fields[4].encode().decode("unicode_escape") == mountpoint:
            found = fields[2]
    return found


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
