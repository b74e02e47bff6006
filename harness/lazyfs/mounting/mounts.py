"""This module mounts EROFS over one file, directly where the kernel can (>= 6.12), or through a loop device (>= 6.4).

The system calls are passed in, so that refusals can be tested on a kernel that refuses nothing. Source: kernel
documentation, filesystems/erofs.rst; loop(4); mount(2).
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MachineError
from harness.kernel.syscalls import MNT_DETACH, MS_NODEV, MS_NOSUID
from harness.kernel.syscalls import mount as _mount
from harness.kernel.syscalls import umount as _umount
from harness.lazyfs.mounting.loop_device import LoopDevice, write_read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.lazyfs.messages import MetadataFile

CONTAINED = 1 | MS_NOSUID | MS_NODEV
"""Holds the flags of every mount of an image: read-only, no set-user-ID programs, no device nodes."""
_ADVICE = "use --mode soci, which needs nothing but FUSE"


@dataclass(frozen=True)
class Syscalls:
    """Holds what mounting needs of the kernel."""

    mount: Callable[[str, str, str | None, int, str | None], None] = _mount
    umount: Callable[[str, int], None] = _umount
    filesystems: Callable[[], str] = lambda: _read("/proc/filesystems")
    attach_loop: Callable[..., LoopDevice] = LoopDevice
    """Takes (path, offset), and ``read_ahead_kib`` and ``exact`` where they are not the usual ones."""


@dataclass(frozen=True)
class Mounted:
    """Says how an image was mounted: ``way`` is ``file``, ``loop``, or ``loops`` if metadata has a device of its own.

    ``devices`` are the loop devices over the image file, ``mounted`` the one mounted. ``refused`` says of each way that
    was tried before why it failed.
    """

    way: str
    devices: tuple[str, ...] = ()
    mounted: str = ""
    refused: tuple[str, ...] = ()


def mount_erofs(
    source: str,
    target: str,
    *,
    loop: bool = False,
    parts: MetadataFile | None = None,
    exact_kib: int = 0,
    syscalls: Syscalls | None = None,
) -> Mounted:
    """Mounts the image file ``source`` on ``target``, from the file itself or through loop devices.

    ``loop`` prefers loop devices, where there are any, with the metadata on a device of its own where ``parts`` says
    how. ``exact_kib`` is the read-ahead of the devices, to which the lazy file's own adds nothing. Raises HostUnfit
    when the kernel has no EROFS or is too old for both ways, MachineError when it refuses the image.
    """
    calls = syscalls or Syscalls()
    refused: list[str] = []
    if loop:
        for cut in (parts, None) if parts is not None else (None,):
            try:
                return replace(_mount_loop(source, target, calls, cut, exact_kib), refused=tuple(refused))
            except (OSError, MachineError) as error:
                # No device to be had, or a kernel that knows no second one: on to the next way.
                refused.append(f"{'loop' if cut is None else 'loops'}: {error}")
    try:
        calls.mount(source, target, "erofs", CONTAINED, None)
        return Mounted("file", refused=tuple(refused))
    except OSError as error:
        number = error.errno
    if number == errno.ENODEV:
        raise HostUnfit(f"the kernel has no EROFS (CONFIG_EROFS_FS, or: modprobe erofs); {_ADVICE}")
    if number not in {errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP}:
        raise MachineError(f"mounting EROFS over the lazy file was refused ({os.strerror(number or 0)}); {_ADVICE}")
    # ENOTBLK: EROFS before 6.12 takes block devices only.
    try:
        return replace(_mount_loop(source, target, calls, None, exact_kib), refused=tuple(refused))
    except OSError as error:
        raise HostUnfit(f"this kernel mounts EROFS from devices only, and no loop device is free "
                        f"({os.strerror(error.errno or 0)}); {_ADVICE}") from None  # fmt: skip


def _mount_loop(source: str, target: str, calls: Syscalls, parts: MetadataFile | None, exact_kib: int) -> Mounted:
    """Mounts through loop devices.

    Raises OSError when there is none to be had, MachineError when the kernel refuses what is on it.
    """
    with ExitStack() as devices:  # a mounted device stays; it frees itself when that ends
        starts = parts.starts if parts is not None else (0,)
        ahead = {"read_ahead_kib": exact_kib} if exact_kib else {}
        exact = {**ahead, "exact": True} if exact_kib else {}
        layers = [devices.enter_context(closing(calls.attach_loop(source, start, **exact))) for start in starts]
        first = (
            layers[0] if parts is None else devices.enter_context(closing(calls.attach_loop(parts.path, 0, **ahead)))
        )
        try:
            option = None if parts is None else ",".join(f"device={device.path}" for device in layers)
            calls.mount(first.path, target, "erofs", CONTAINED, option)
        except OSError as error:
            raise MachineError(f"the kernel refuses the EROFS image ({os.strerror(error.errno or 0)}): blocks of 512 "
                               f"bytes need Linux 6.4 or newer; {_ADVICE}") from None  # fmt: skip
        return Mounted("loop" if parts is None else "loops", tuple(device.path for device in layers), first.path)


def unmount(target: str, syscalls: Syscalls | None = None) -> bool:
    """Detaches whatever is mounted on ``target``, open files or not; returns False when nothing was."""
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


def set_read_ahead(mountpoint: str, kib: int) -> bool:
    """Sets the read-ahead of the mount's backing device; returns whether sysfs let us. Touches no file of the mount."""
    device = mount_device(mountpoint)
    if device is None:
        return False
    return write_read_ahead(f"/sys/class/bdi/{device}/read_ahead_kb", kib)


def mount_device(mountpoint: str) -> str | None:
    """Returns ``major:minor`` of what is mounted there, from mountinfo (a stat would be a request to our daemon)."""
    found = None
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if fields[4].encode().decode("unicode_escape") == mountpoint:
            found = fields[2]
    return found


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
