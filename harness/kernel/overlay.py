"""This module mounts and unmounts OverlayFS from Python, without a shell and without a limit on the number of layers.

Source: kernel Documentation/filesystems/overlayfs.rst; mount(2). Option strings may not exceed one page.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

MNT_DETACH = 2
_OPTION_BYTES = os.sysconf("SC_PAGE_SIZE") - 1
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, options: str, flags: int = 0) -> None:
    """Mounts by mount(2); raises OSError with the kernel's errno."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(target: str) -> None:
    """Detaches what is mounted on ``target``; does nothing when nothing is."""
    if _libc.umount2(target.encode(), MNT_DETACH):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), target)


def mount_overlay(scratch: str, lowerdirs: Sequence[str], target: str, flags: int = 0) -> None:
    """Stacks ``lowerdirs`` (topmost first) with a fresh writable upper below ``scratch`` and mounts it on ``target``.

    ``flags`` are mount(2)'s: with MS_NODEV no device node of a layer can be opened. It changes the working directory to
    ``scratch`` and names layers by short symlinks relative to it, as Docker does, so that hundreds fit into the one
    page that mount(2) takes. HostUnfit without OverlayFS, MachineError when refused.
    """
    for name in ("upper", "work", "l"):
        shutil.rmtree(os.path.join(scratch, name), ignore_errors=True)
        os.mkdir(os.path.join(scratch, name), 0o755)
    os.makedirs(target, exist_ok=True)
    if not lowerdirs:
        empty = os.path.join(scratch, "empty")
        os.makedirs(empty, exist_ok=True)
        lowerdirs = (empty,)
    os.chdir(scratch)
    for number, directory in enumerate(lowerdirs):
        os.symlink(directory, f"l/{number:x}")
    lower = ":".join(f"l/{number:x}" for number in range(len(lowerdirs)))
    # The upper directory is the root's face: it takes the mode and owner of the topmost layer's root.
    status = os.stat(lowerdirs[0])
    os.chown("upper", status.st_uid, status.st_gid)
    os.chmod("upper", status.st_mode & 0o7777)
    os.utime("upper", ns=(status.st_atime_ns, status.st_mtime_ns))
    options = f"lowerdir={lower},upperdir=upper,workdir=work"
    if len(options) > _OPTION_BYTES:
        raise MachineError(f"{len(lowerdirs)} layers are more than OverlayFS can stack here")
    try:
        mount("overlay", target, "overlay", options, flags)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise HostUnfit("the kernel has no OverlayFS; load it with: modprobe overlay") from None
        raise MachineError(f"OverlayFS over {len(lowerdirs)} layers was refused: {error.strerror}") from None
