"""Tries mounts in a mount namespace of its own and prints what worked; nothing of it outlives the process.

Run as a plain script: ``mount_probe.py EMPTY-DIRECTORY [EROFS-IMAGE]``. Prints the names of what works, of: namespaces,
overlay, erofs-file (a mount of an EROFS image straight from its file, without a loop device).
"""

from __future__ import annotations

import os
import sys


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
    for name in ("lower", "upper", "work", "merged", "erofs"):
        os.mkdir(f"{top}/{name}")
    try:
        mount("overlay", f"{top}/merged", "overlay", 0, f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work")
        os.write(1, b"overlay\n")
    except OSError as error:
        sys.stderr.write(f"overlay: {error}\n")
    if len(sys.argv) > 2:
        try:
            mount(sys.argv[2], f"{top}/erofs", "erofs", 1)
            os.write(1, b"erofs-file\n")
        except OSError as error:
            sys.stderr.write(f"erofs-file: {error}\n")


if __name__ == "__main__":
    main()
