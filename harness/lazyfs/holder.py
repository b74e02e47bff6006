"""This module is the process that outlives the daemon: ``python -m harness.lazyfs.holder`` with the daemon's arguments.

It starts the daemon and keeps what that hands it: the FUSE descriptor, the cache files, the ledger
(``harness.lazyfs.estate``). While a descriptor is held, the kernel keeps the mount and the requests that nobody has
answered. A daemon that dies is started again with all of it, and goes on. It does nothing else, has one thread and
imports next to nothing, so that there is little in it that could die (5 MB of its own).

It ends when the daemon ends as it was told to, with SIGTERM (the daemon first), and with the machine. A daemon that
dies before it handed over a FUSE descriptor ends it, too, and so does one that keeps dying: then the mount is dead.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

FUSE = "fuse"
"""Names the descriptor without which there is nothing to go on with."""
UP = "up"
"""Is what a daemon says, without a descriptor, when it answers the kernel."""
CRASHED_S, MOST_CRASHES = 5.0, 5
"""Daemons that die by themselves within this time of ``UP``, so often in a row, are a crash loop."""
KILLED_S, MOST_KILLS, KILLS_TAKE_S = 0.25, 10, 60.0
"""Daemons that are killed so early and so often, for at least so long, are a crash loop, too; somebody who kills now
and then, or a lack of memory that passes, is not one."""
_LONGEST_PAUSE_S = 1.0
_END_S = 3
"""A daemon that was told to end gets this long."""
_NAME_BYTES = 256
_TRIES, _TRY_S = 20, 0.01
"""A daemon whose first thread has ended usually ends within this."""
_LOOK_S = 0.5
"""Says how often it is looked whether the daemon's first thread has ended, and others have not."""
_EXIT_CODE = 49
"""Is the place of the exit code among the fields of /proc/PID/stat behind the name."""
_LESS_LIKELY = -900
"""Makes the holder one of the kernel's last choices when memory runs out."""


class Holder:
    """Keeps a daemon running with ``arguments``; the descriptors named in them stay open for the next one."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._held: dict[str, int] = {}
        self._restarts = 0
        self._ending = False
        self._child = -1
        """Is a descriptor of the daemon's process, by which signals cannot reach another one."""
        self._late: list[int] = []
        """Lists the daemons that have not quite ended."""
        self._oom = _read_oom()

    def run(self) -> int:
        """Keeps a daemon running; returns the status of the last one, as ``os.waitpid`` gives it."""
        status = self._run()
        if self._late and "--mountpoint" in self._arguments:
            # What has not quite ended keeps the session open, and readers would wait for ever.
            _abort(self._arguments[self._arguments.index("--mountpoint") + 1])
        return status

    def _run(self) -> int:
        _write_oom(_LESS_LIKELY)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGALRM, self._kill)
        short, since_s = 0, time.monotonic()
        while True:
            status, lived_s = self._one_life()
            if status == 0 or self._ending or FUSE not in self._held:
                return status
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if lived_s >= (KILLED_S if killed else CRASHED_S):
                short, since_s = 0, time.monotonic()
            else:
                short += 1
            most, take_s = (MOST_KILLS, KILLS_TAKE_S) if killed else (MOST_CRASHES, 0.0)
            if short >= most and time.monotonic() - since_s >= take_s:
                _say(f"the daemon {_how(status)}, {short} times in a row; no other one is started, and reads fail")
                return status
            self._restarts += 1
            _say(f"the daemon {_how(status)}; another one is started ({self._restarts})")
            if short > 2:
                time.sleep(min(_LONGEST_PAUSE_S, 0.05 * 2**short))

    def _one_life(self) -> tuple[int, float]:
        """Starts a daemon and waits for its end; returns its status, and how long it answered the kernel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._become_daemon(theirs)
        theirs.close()
        self._child = os.pidfd_open(pid)
        if self._ending:  # told so before the descriptor was there
            self._end(signal.SIGTERM, None)
        up_s = None
        while not _is_zombie(pid):
            if select.select([ours], [], [], _LOOK_S)[0]:
                name = self._receive(ours)
                if name == UP:
                    up_s = time.monotonic()
                elif name is None:
                    break
        status = self._reap(pid)
        child, self._child = self._child, -1
        os.close(child)
        signal.alarm(0)
        ours.close()
        return status, 0.0 if up_s is None else time.monotonic() - up_s

    def _reap(self, pid: int) -> int:
        """Returns the status of a daemon that has ended, or whose first thread has.

        A thread of a killed process may be in the kernel, storing a page that a reader waits for; the reader waits for
        the daemon, so the thread ends, and the process with it, only when the next daemon has answered. Hence it is not
        waited for here. It holds its descriptors meanwhile, and a pidfd does not tell of it: its first thread's state
        is looked at.
        """
        tries = 0
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
            tries += _is_zombie(pid)
            if tries > _TRIES:
                break
            time.sleep(_TRY_S)
        self._late = [late for late in self._late if not os.waitpid(late, os.WNOHANG)[0]] + [pid]
        return int(_stat(pid)[_EXIT_CODE])

    def _become_daemon(self, end: socket.socket) -> None:
        """Becomes the daemon; never returns."""
        try:
            _write_oom(self._oom)
            for descriptor in (end.fileno(), *self._held.values()):
                os.set_inheritable(descriptor, True)
            held = ",".join(f"{name}={descriptor}" for name, descriptor in self._held.items())
            estate = ["--holder-fd", str(end.fileno()), "--restarts", str(self._restarts), "--held", held]
            program = [sys.executable, "-m", "harness.lazyfs.daemon", *self._arguments, *estate]
            os.execv(program[0], program)
        finally:
            os._exit(127)

    def _receive(self, end: socket.socket) -> str | None:
        """Takes what the daemon hands over, and returns its name; None when the daemon is gone."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(end, _NAME_BYTES, 1)
        except ConnectionError:
            return None
        if not data:
            return None
        name = data.decode()
        for descriptor in descriptors:
            if name in self._held:
                os.close(self._held[name])
            self._held[name] = descriptor
        return name

    def _end(self, number: int, frame: object) -> None:
        self._ending = True
        if self._child >= 0:
            _send(self._child, signal.SIGTERM)
            signal.alarm(_END_S)

    def _kill(self, number: int, frame: object) -> None:
        if self._child >= 0:
            _send(self._child, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat behind the name."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _is_zombie(pid: int) -> bool:
    """Says whether the first thread of a child that was not reaped has ended."""
    return _stat(pid)[0] == "Z"


def _abort(mountpoint: str) -> None:
    """Have the kernel answer with an error whoever waits for a file system that nobody serves (umount2, MNT_FORCE)."""
    import ctypes

    ctypes.CDLL(None).umount2(os.fsencode(mountpoint), 1)


def _send(process: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        pass


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed (signal {os.WTERMSIG(status)})"
    return f"ended (exit {os.waitstatus_to_exitcode(status)})"


def _say(words: str) -> None:
    os.write(2, f"lazyfs: {words}\n".encode())


def _read_oom() -> int:
    try:
        with open("/proc/self/oom_score_adj") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _write_oom(value: int) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(value))
    except OSError:  # without the right to it, the kernel chooses as ever
        pass


def main() -> None:
    """Ends as the last daemon did."""
    status = Holder(sys.argv[1:]).run()
    if os.WIFSIGNALED(status) and (number := os.WTERMSIG(status)) != signal.SIGTERM:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main()
