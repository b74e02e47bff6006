"""This module gets a process of ours into a container, with no more rights than what runs there has.

The order matters: whatever has to be loaded is loaded before, for once inside every path means what the image says.
Then namespaces are joined, the mount namespace last; then rights are given up, for good, before the first program of
the image is executed. The process itself stays in its own pid namespace: only what it starts is in the container's.

Sources: setns(2), pid_namespaces(7), capabilities(7), seccomp(2); CVE-2019-14271, where a helper that loaded a library
after it had entered a container ran the image's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

from harness.kernel import privileges
from harness.kernel.namespaces import CLONE_NEWNS, KINDS
from harness.kernel.syscalls import mount, set_parent_death_signal, setns, unshare

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_PROC_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """Says what to enter, and what to keep. ``namespaces`` are open descriptors by kind."""

    namespaces: dict[str, int]
    alive: bool
    """Says whether the container's first process lives: its pid namespace takes new ones only as long as it does."""
    capabilities: tuple[int, ...]
    no_new_privileges: bool
    system_calls: str
    """Holds the seccomp program in hexadecimal digits; empty for none."""
    masked_paths: tuple[str, ...]
    read_only_paths: tuple[str, ...]

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Entry:
        fields = json.loads(text)
        for name in ("capabilities", "masked_paths", "read_only_paths"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def enter(entry: Entry) -> None:
    """Enters the container. Raises OSError, and the process must end then: it may be inside with all rights."""
    last = privileges.last_capability()
    program = bytes.fromhex(entry.system_calls)
    refuse_imports()
    for kind, flag in KINDS.items():
        if kind != "pid" or entry.alive:
            setns(entry.namespaces[kind], flag)
    for descriptor in entry.namespaces.values():
        os.close(descriptor)
    os.chdir("/")
    if not entry.alive:
        _start_pid_namespace(entry, last, program)
    _give_up(entry, last, program)


def refuse_imports() -> None:
    """Refuses to look for any module from now on: inside, it would be the image's."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def _give_up(entry: Entry, last: int, program: bytes) -> None:
    os.setgroups([])
    privileges.keep_capabilities(entry.capabilities, last)
    privileges.hide_from_others()
    if entry.no_new_privileges:
        privileges.refuse_new_privileges()
    if program:
        privileges.filter_system_calls(program)


def _start_pid_namespace(entry: Entry, last: int, program: bytes) -> None:
    """Makes a pid namespace in the place of the one that ended, its first process a child of ours, and a /proc that
    shows it.

    The mounts are a copy of the container's, which only we and what we start can see.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    unshare(KINDS["pid"])
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(told)
        _first_process(entry, last, program, tell)
    os.close(tell)
    said = os.read(told, 1)
    os.close(told)
    if said != b"+":
        raise OSError("the container's /proc could not be mounted anew")


def _first_process(entry: Entry, last: int, program: bytes, tell: int) -> None:
    """Reaps what its children leave, until our process dies."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.path.isdir("/proc"):
            mount("proc", "/proc", "proc", _PROC_FLAGS)
            _hide([path for path in entry.masked_paths if path.startswith("/proc/")])
            _protect([path for path in entry.read_only_paths if path.startswith("/proc/")])
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _give_up(entry, last, program)
        os.write(tell, b"+")
        os.close(tell)
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _hide(paths: list[str]) -> None:
    """Puts an empty directory, or the empty device, over each path that is there."""
    for path in paths:
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs", _MS_RDONLY | _PROC_FLAGS, "size=0k")
        elif os.path.exists(path):
            mount("/dev/null", path, None, _MS_BIND)


def _protect(paths: list[str]) -> None:
    for path in paths:
        if os.path.exists(path):
            mount(path, path, None, _MS_BIND | _MS_REC)
            mount("none", path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _PROC_FLAGS)
