"""This program tries mounts in a mount namespace of its own and prints what worked; nothing of it outlives the process.

Run as a plain script: ``mount_probe.py EMPTY-DIRECTORY [EROFS-IMAGE]``. It prints the names of what works, of:
namespaces, overlay, erofs-file (a mount of an EROFS image straight from its file, without a loop device), fuse-resend
(a FUSE mount whose waiting requests another process can ask for again).
"""

from __future__ import annotations

import os
import select
import struct
import sys

_GREETING_S = 5000


def _resends(target: str) -> bool:
    """Says whether the kernel offers FUSE_HAS_RESEND (bit 39 of INIT's flags, in the second word, which INIT_EXT says
    is there). Source: Linux, include/uapi/linux/fuse.h. Raises OSError where there is no FUSE.
    """
    from harness.kernel.syscalls import mount

    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount("coldbench", target, "fuse", 1, f"fd={fuse},rootmode=40000,user_id=0,group_id=0")
        poll = select.poll()
        poll.register(fuse, select.POLLIN)
        if not poll.poll(_GREETING_S):
            return False
        flags, further = struct.unpack_from("<II", os.read(fuse, 1 << 16), 40 + 12)
        return bool(flags & 1 << 30 and further & 1 << 7)
    finally:
        os.close(fuse)


def main() -> None:
    # A plain script started with -S: the package is found beside this file, not through site-packages.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from harness.kernel.syscalls import (
        CLONE_NEWNET,
        CLONE_NEWNS,
        MS_PRIVATE,
        MS_REC,
        mount,
        unshare,
    )

    top = sys.argv[1]
    unshare(CLONE_NEWNS | CLONE_NEWNET)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    os.write(1, b"namespaces\n")
    mount("coldbench", top, "tmpfs", 0)
    for name in ("lower", "upper", "work", "merged", "erofs", "fuse"):
        os.mkdir(f"{top}/{name}")
    try:
        mount("overlay", f"{top}/merged", "overlay", 0, f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work")
        os.write(1, b"overlay\n")
    except OSError as error:
        sys.stderr.write(f"overlay: {error}\n")
    try:
        if _resends(f"{top}/fuse"):
            os.write(1, b"fuse-resend\n")
    except OSError as error:
        sys.stderr.write(f"fuse-resend: {error}\n")
    if len(sys.argv) > 2:
        try:
            mount(sys.argv[2], f"{top}/erofs", "erofs", 1)
            os.write(1, b"erofs-file\n")
        except OSError as error:
            sys.stderr.write(f"erofs-file: {error}\n")


if __name__ == "__main__":
    main()
