"""This module keeps a session on disk: ``session.json``, ``observations.jsonl`` and ``preparations.jsonl``.

Lines are only ever added.

Trials in which something fails on purpose have a file of their own, ``faults.jsonl``: nothing that reads observations
can take one of them for a start.

A line is fsynced before the next trial starts. A crash can therefore leave at most one torn line, the last; it is moved
aside when the session is resumed, and its trial runs again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import DiskFull, UsageError
from harness.model.faults import FaultObservation
from harness.model.observation import SCHEMA_VERSION, Observation
from harness.model.session import Preparation, SessionHeader
from harness.session.migrations import MIGRATIONS
from harness.session.plausibility import implausible

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = "session.json"
OBSERVATIONS = "observations.jsonl"
PREPARATIONS = "preparations.jsonl"
FAULTS = "faults.jsonl"

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


def _decode(model: type[M], text: str | bytes, where: str) -> M:
    """Returns one stored object, brought to today's version; keys added by a newer program of the same version are
    ignored.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}); the file was changed or cut") from None
    if not isinstance(data, dict) or type(version := data.get("schema_version")) is not int:
        raise UsageError(f"{where}: no schema_version; this is not a file of coldbench")
    if version > SCHEMA_VERSION:
        by = data.get("coldbench_version", "")
        raise UsageError(
            f"{where}: written in schema {version}{f' by coldbench {by}' if by else ''}; this coldbench reads up to "
            f"{SCHEMA_VERSION}: upgrade it"
        )
    if version < 1:
        raise UsageError(f"{where}: written in schema {version}, which no coldbench ever wrote; the file was changed")
    try:
        for step in range(version, SCHEMA_VERSION):
            data = MIGRATIONS[step](data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{where}: not of schema {version} as it says ({error!r}); the file was changed") from None
    data["schema_version"] = SCHEMA_VERSION
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        unknown = [e["loc"] for e in error.errors(include_url=False) if e["type"] == "extra_forbidden"]
        if not unknown:
            raise UsageError(f"{where}: {_first(error)}") from None
    for loc in unknown:
        _drop(data, loc)
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error)}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"


def _drop(data: Any, loc: tuple[str | int, ...]) -> None:
    """Removes the key a validation error is about; names of union members on the way are passed over."""
    for part in loc[:-1]:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            data = data[part]
    if isinstance(data, dict):
        data.pop(loc[-1], None)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Returns complete lines with their numbers; a torn last line (no newline, or not JSON) is left out, and said."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: _torn_at(content)]
    lines = whole.splitlines()
    if len(whole) < len(content):
        log.warning("%s:%d: the last line is cut off; it is left out", path, len(lines) + 1)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def _torn_at(content: bytes) -> int:
    """Returns where the torn last line begins, or the content's length."""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        return end
    start = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
    try:
        json.loads(content[start:end] or b"0")
    except ValueError:
        return start
    return len(content)


def is_torn(path: str | Path) -> bool:
    """Says whether the last line of a session's observations was cut; reading leaves it out."""
    file = Path(path) / OBSERVATIONS
    if not file.exists():
        return False
    content = file.read_bytes()
    return _torn_at(content) < len(content)


def _read(model: type[M], path: Path) -> list[M]:
    return [_decode(model, line, f"{path}:{number}") for number, line in _lines(path)]


def load(path: str | Path) -> tuple[SessionHeader, list[Observation]]:
    """Returns header and observations of a session, in the order they were recorded.

    A trial that was run again counts once, and the later record wins: a failed one that was retried, or one of a
    campaign's blocks that was run again whole on another host (its observations name their host).

    Raises:
        UsageError: no session there, written by a newer coldbench, or something in it that no trial can have recorded.
    """
    directory = Path(path)
    header_file = directory / HEADER
    if not header_file.is_file():
        raise UsageError(f"{directory}: no {HEADER}; expected a session's directory, as `coldbench run` prints it")
    header = _decode(SessionHeader, header_file.read_bytes(), str(header_file))
    latest: dict[int, Observation] = {}
    lines: dict[int, int] = {}
    file = directory / OBSERVATIONS
    for number, line in _lines(file):
        observation = _decode(Observation, line, f"{file}:{number}")
        wrong = implausible(observation)
        if wrong is not None:
            raise UsageError(f"{file}:{number}: {wrong}")
        before = latest.get(observation.trial)
        if before is not None and before.status != "failed" and not observation.host:
            first = lines[observation.trial]
            raise UsageError(f"{file}:{number}: trial {observation.trial} is there twice, on line {first} before")
        latest[observation.trial], lines[observation.trial] = observation, number
    return header, list(latest.values())


def load_preparations(path: str | Path) -> list[Preparation]:
    """Returns what was made out of band for a session, and its cost."""
    return _read(Preparation, Path(path) / PREPARATIONS)


def load_faults(path: str | Path) -> list[FaultObservation]:
    """Returns the fault trials of a session in the order they were recorded; of one that was run again the last
    counts.
    """
    return list({o.trial: o for o in _read(FaultObservation, Path(path) / FAULTS)}.values())


class Store:
    """Writes one session, from one process at a time: the directory is locked while it is open."""

    def __init__(self, directory: Path, header: SessionHeader, observations: list[Observation], lock: int) -> None:
        self.directory = directory
        self.header = header
        self.observations = observations
        self.faults: list[FaultObservation] = []
        self._lock = lock
        self._files: dict[str, int] = {}

    @classmethod
    def create(cls, directory: Path, header: SessionHeader) -> Store:
        """Starts a session in a directory that holds none.

        Raises:
            UsageError: there is a session already, or the directory cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(directory)
        except OSError as error:
            raise UsageError(f"{directory}: cannot write there ({error.strerror}); name another with --out") from None
        if (directory / HEADER).exists():
            os.close(lock)
            raise UsageError(f"{directory}: holds a session already; continue it with --resume, or name another --out")
        write_atomically(directory / HEADER, header.model_dump_json(indent=1).encode() + b"\n")
        return cls(directory, header, [], lock)

    @classmethod
    def resume(cls, directory: Path, retry_failed: bool = False) -> Store:
        """Continues a session where it stopped; torn last lines are moved to ``*.torn`` first.

        With ``retry_failed`` trials that failed count as not run; their records stay, and a later one goes before.

        Raises:
            UsageError: no session there, in use by another process, or written by a newer coldbench.
        """
        if not (directory / HEADER).is_file():
            raise UsageError(f"{directory}: no {HEADER} to resume; leave --resume out to start a session there")
        lock = _lock(directory)
        try:
            for name in (OBSERVATIONS, PREPARATIONS, FAULTS):
                _set_torn_aside(directory / name)
            header, observations = load(directory)
            faults = load_faults(directory)
            if retry_failed:
                observations = [o for o in observations if o.status != "failed"]
                faults = [o for o in faults if o.status != "failed"]
        except BaseException:
            os.close(lock)
            raise
        store = cls(directory, header, observations, lock)
        store.faults = faults
        return store

    @property
    def finished(self) -> frozenset[int]:
        """Returns the ids of the trials recorded so far, failed ones too: a failure is a result."""
        return frozenset(o.trial for o in self.observations) | frozenset(o.trial for o in self.faults)

    def append(self, observation: Observation) -> None:
        """Adds one observation; it is on disk when this returns."""
        self._append(OBSERVATIONS, observation)
        self.observations.append(observation)

    def append_fault(self, observation: FaultObservation) -> None:
        """Adds what one fault trial recorded; it is on disk when this returns."""
        self._append(FAULTS, observation)
        self.faults.append(observation)

    def append_preparation(self, preparation: Preparation) -> None:
        """Adds what was made out of band; it is on disk when this returns."""
        self._append(PREPARATIONS, preparation)

    def _append(self, name: str, item: BaseModel) -> None:
        if name not in self._files:
            path = self.directory / name
            self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            _sync_directory(self.directory)
        line = item.model_dump_json().encode() + b"\n"
        descriptor = self._files[name]
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
                raise
            raise DiskFull(
                f"{self.directory}: an observation could not be written ({error.strerror}); what was recorded before "
                f"is kept: free some space, then go on with: coldbench run --resume --out {self.directory}"
            ) from None

    def close(self) -> None:
        """Releases the directory."""
        for descriptor in [*self._files.values(), self._lock]:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(directory: Path) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"{directory}: another coldbench is running this session") from None
    return descriptor


def _set_torn_aside(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    end = _torn_at(content)
    if end == len(content):
        return
    with open(path.with_name(path.name + ".torn"), "ab") as aside:
        aside.write(content[end:] + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    with open(path, "r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file so that a crash leaves the old or the new content, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
