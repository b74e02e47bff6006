"""This process holds a machine's namespaces open, and takes the machine away if the harness dies.

Run as a plain script (it imports nothing but the standard library and ``harness.kernel``). It makes the namespaces,
mounts the scratch disk, reports ``ready`` on stdout, and waits on stdin. End of file there means that the harness is
gone: whatever is left in the control groups is killed and the groups are removed. Namespaces, interfaces, mounts and
the loop device go with this process.

Arguments: scratch device (``-`` for none), its mount point, mount options, then the control group's directories.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def _hold(device: str, target: str, options: str) -> None:
    # A plain script started with -S: the package is found beside this file, not through site-packages.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from harness.kernel.syscalls import (
        CLONE_NEWNET,
        CLONE_NEWNS,
        MS_NODEV,
        MS_REC,
        MS_SLAVE,
        mount,
        unshare,
    )

    unshare(CLONE_NEWNS | CLONE_NEWNET)
    # Slave, not private: what the host unmounts also goes away here, so that a machine keeps no file system busy.
    mount("none", "/", None, MS_REC | MS_SLAVE)
    if device != "-":
        mount(device, target, "ext4", MS_NODEV, options)


def _pids(groups: list[str]) -> list[int]:
    pids: list[int] = []
    for top in groups:
        for directory, _subdirs, _files in os.walk(top):
            try:
                with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                    pids += [int(line) for line in file]
            except OSError:
                continue
    return pids


def _reap(groups: list[str]) -> None:
    """Kills what is in the groups, then removes them; it waits only so long, because nobody watches any more."""
    deadline = time.monotonic() + 20.0
    for top in groups:
        for name, value in (("cpu.cfs_quota_us", "-1"), ("cpu.max", "max"), ("pids.max", "0"), ("cgroup.kill", "1")):
            try:
                with open(os.path.join(top, name), "w", encoding="ascii") as file:
                    file.write(value)
            except OSError:
                continue
    while (pids := _pids(groups)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    for _attempt in range(100):
        busy = False
        for top in groups:
            for directory, _subdirs, _files in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    continue
                except OSError:
                    busy = True
        if not busy:
            return
        time.sleep(0.02)


def main() -> None:
    device, target, options, *groups = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ending is the harness's to decide
        signal.signal(number, signal.SIG_IGN)
    try:
        _hold(device, target, options)
    except OSError as error:
        os.write(1, f"error {error.strerror}\n".encode())
        return
    os.write(1, b"ready\n")
    while os.read(0, 1) not in (b"", b"q"):
        pass
    _reap(groups)


if __name__ == "__main__":
    main()
