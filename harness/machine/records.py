"""This module keeps state records of what a live run holds, where a later run finds them if this one is killed.

Every artefact carries the name ``coldbench-ID`` (interfaces, whose names are short: ``cbID`` and a letter), ID being
eight hexadecimal digits. A record ``/run/coldbench/ID.json`` says which process owns that ID; a process is its pid
*and* its start time, because pids come round again.

A record is written before the first thing it stands for is made, and removed after the last has gone. It is the only
title: a thing whose name looks like ours and that no record vouches for belongs to somebody else. Only records that
root wrote count, in a directory that nobody else writes to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "coldbench-"
INTERFACE_PREFIX = "cb"

RUN_DIR = Path(os.environ.get("COLDBENCH_RUN_DIR", "/run/coldbench"))
"""Records lie on a tmpfs on most systems, so that a reboot, which ends every run, takes them with it."""

_MOUNTS = "mounts"
"""It names the directory of symlinks to mount points."""

FORMAT = 1
"""The format is kept as long as it can be: a version that does not know a record's form takes a live run for a dead
one.
"""

ENVIRONMENT_MARK = "COLDBENCH_MACHINE"
"""This variable is set in every process spawned in a machine; it finds those that left their control group."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Names a process that cannot be mistaken for a later one of the same pid."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Returns the process that has this pid now, None if there is none, or only its exit status (a zombie)."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self


@dataclass
class Record:
    """Holds what one machine or network holds. ``save`` after each change, ``remove`` when all of it is gone."""

    id: str
    kind: str
    owner: ProcessId
    label: str = ""
    addresses: list[str] = field(default_factory=list)
    processes: list[ProcessId] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Lists files and directories outside of ``directory``."""

    @classmethod
    def new(cls, kind: str, label: str = "") -> Record:
        """Makes a record with an ID of its own, owned by this process; it is not written yet."""
        owner = ProcessId.of(os.getpid())
        if owner is None:
            raise MachineError("cannot read /proc/self/stat; is /proc mounted?")
        return cls(id=secrets.token_hex(4), kind=kind, owner=owner, label=label)

    @property
    def name(self) -> str:
        """Returns the name artefacts carry."""
        return PREFIX + self.id

    @property
    def path(self) -> Path:
        return RUN_DIR / f"{self.id}.json"

    @property
    def directory(self) -> Path:
        """Returns a directory of its own beside the record (mount points)."""
        return RUN_DIR / self.id

    def interface(self, letter: str) -> str:
        """Returns the name of an interface (at most 15 characters)."""
        return f"{INTERFACE_PREFIX}{self.id}{letter}"

    def add_process(self, pid: int) -> None:
        """Notes a helper process that must not outlive this record."""
        process = ProcessId.of(pid)
        if process is not None:
            self.processes.append(process)
            self.save()

    def add_mount(self, target: str) -> None:
        """Notes a mount point outside of ``directory``, before anything is mounted there."""
        noted = self.directory / _MOUNTS
        noted.mkdir(mode=0o755, parents=True, exist_ok=True)
        (noted / str(len(self.mounts()))).symlink_to(os.path.abspath(target))

    def mounts(self) -> list[str]:
        """Returns mount points outside of ``directory``, in the order in which they were noted."""
        try:
            names = sorted(os.listdir(self.directory / _MOUNTS), key=int)
            return [os.readlink(self.directory / _MOUNTS / name) for name in names]
        except (OSError, ValueError):
            return []

    def save(self) -> None:
        """Writes the record so that a reader sees the old or the new state, never half of one."""
        make_run_directory()
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        # One writer at a time, so an older one of this name is a killed writer's whose pid came round again.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file)
        temporary.rename(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """Loads a stored record; None if it is not one (cut, or of another format), or if somebody else could have
        written it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, encoding="utf-8") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                    return None
                data: dict[str, Any] = json.load(file)
            if data.pop("format") != FORMAT or data["id"] != path.name.partition(".")[0]:
                return None
            data["owner"] = ProcessId(**data["owner"])
            data["processes"] = [ProcessId(**p) for p in data["processes"]]
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _is_ours(status: os.stat_result) -> bool:
    """Says whether only root, or this very user where that is not root, can have changed a file."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def make_run_directory() -> None:
    """Makes ``RUN_DIR`` if it is not there; MachineError when it is open to other users."""
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not is_trusted(RUN_DIR):
        raise MachineError(
            f"{RUN_DIR} belongs to another user or can be written by others; remove it, or set COLDBENCH_RUN_DIR"
        )


def is_trusted(directory: Path) -> bool:
    """Says whether nobody but root can put records into a directory."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and _is_ours(status)


def stored() -> list[Record]:
    """Returns all records of this host, of live and of dead runs."""
    if not is_trusted(RUN_DIR):
        return []
    return [r for path in sorted(RUN_DIR.glob("*.json")) if (r := Record.load(path)) is not None]


@contextlib.contextmanager
def recorded_directory(kind: str, parent: Path = Path("/var/tmp")) -> Iterator[Path]:
    """Makes a directory for the caller alone; it goes at the end, or after a kill by ``coldbench clean`` (if root made
    it).
    """
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{kind}-", dir=parent) as made:
            yield Path(made)
        return
    record = Record.new(kind)
    path = parent / record.name
    record.files.append(str(path))
    record.save()
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        remove_directory(path)
        record.remove()


def remove_directory(path: Path) -> None:
    """Removes a directory of ours with all in it, however deep; what cannot be removed stays, and nothing is raised.

    An image may hold a tree of any depth: ``shutil.rmtree`` calls itself for each level and gives up at a thousand.
    """
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], capture_output=True, check=False)


@contextlib.contextmanager
def host_lock() -> Iterator[None]:
    """Serialises what must not happen twice at once on this host: taking addresses, cleaning up."""
    make_run_directory()
    with open(os.open(RUN_DIR / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
