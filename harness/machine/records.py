"""State records: what a live run holds, written where a later run finds it if this one is killed.

Every artefact carries the name ``coldbench-ID`` (interfaces, whose names are short: ``cbID`` and a letter), ID being
eight hexadecimal digits. A record ``/run/coldbench/ID.json`` says which process owns that ID; a process is its pid
*and* its start time, because pids come round again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "coldbench-"
INTERFACE_PREFIX = "cb"

RUN_DIR = Path(os.environ.get("COLDBENCH_RUN_DIR", "/run/coldbench"))
"""On a tmpfs on most systems, so that a reboot, which ends every run, takes the records with it."""

ENVIRONMENT_MARK = "COLDBENCH_MACHINE"
"""Variable set in every process spawned in a machine; finds those that left their control group."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same pid."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now, None if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except OSError:
            return None
        return cls(pid, int(stat.rpartition(")")[2].split()[19]))

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self


@dataclass
class Record:
    """What one machine or network holds. ``save`` after each change, ``remove`` when all of it is gone."""

    id: str
    kind: str
    owner: ProcessId
    label: str = ""
    addresses: list[str] = field(default_factory=list)
    processes: list[ProcessId] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @classmethod
    def new(cls, kind: str, label: str = "") -> Record:
        """A record with an ID of its own, owned by this process; not written yet."""
        owner = ProcessId.of(os.getpid())
        if owner is None:
            raise MachineError("cannot read /proc/self/stat; is /proc mounted?")
        return cls(id=secrets.token_hex(4), kind=kind, owner=owner, label=label)

    @property
    def name(self) -> str:
        """The name artefacts carry."""
        return PREFIX + self.id

    @property
    def path(self) -> Path:
        return RUN_DIR / f"{self.id}.json"

    @property
    def directory(self) -> Path:
        """A directory of its own beside the record (mount points)."""
        return RUN_DIR / self.id

    def interface(self, letter: str) -> str:
        """Name of an interface (at most 15 characters)."""
        return f"{INTERFACE_PREFIX}{self.id}{letter}"

    def add_process(self, pid: int) -> None:
        """Note a helper process that must not outlive this record."""
        process = ProcessId.of(pid)
        if process is not None:
            self.processes.append(process)
            self.save()

    def save(self) -> None:
        """Write the record so that a reader sees the old or the new state, never half of one."""
        RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"format": 1, **asdict(self)}), "utf-8")
        temporary.rename(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """A stored record; None if it is not one (cut, or of a later format)."""
        try:
            data: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if data.pop("format") != 1:
                return None
            data["owner"] = ProcessId(**data["owner"])
            data["processes"] = [ProcessId(**p) for p in data["processes"]]
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def stored() -> list[Record]:
    """All records of this host, of live and of dead runs."""
    if not RUN_DIR.is_dir():
        return []
    return [r for path in sorted(RUN_DIR.glob("*.json")) if (r := Record.load(path)) is not None]


@contextlib.contextmanager
def host_lock() -> Iterator[None]:
    """Serialises what must not happen twice at once on this host: taking addresses, cleaning up."""
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(RUN_DIR / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
