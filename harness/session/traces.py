"""This module keeps what a start reads, in the order of its reads; a trial of its own records it, by image and
workload.

The reads are a prefetch list (``prefetch = "trace"``): exact parts of files, since whole ones would bring more than the
start asks for, and a start at the limit of its CPU pays for that. The files that they name are no longer cold when
run-time workloads begin.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.lazyfs.messages import FileRange
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.lazyfs.messages import Touch
    from harness.model.workload import Runtime, Workload
    from harness.oci.cache import Cache

TRACES_VERSION = 3


def key_of(image_digest: str, workload: Workload) -> str:
    """Names one workload on one image in a file's name; what readiness means is no part of it."""
    # What a scenario does not use keeps the names of what was recorded before it could be said.
    left_out = {"readiness"} if workload.reads else {"readiness", "reads"}
    what = hashlib.sha256(workload.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]
    return f"{image_digest.partition(':')[2]}-{what}"


def place(cache: Cache, image_digest: str, workload: Workload) -> Path:
    """Returns where the list of one workload on one image is kept."""
    return cache.root / "traces" / f"{key_of(image_digest, workload)}.v{TRACES_VERSION}.json"


def place_of_use(cache: Cache, image_digest: str, workload: Workload, runtime: Runtime) -> Path:
    """Returns where the trace of one workload and of the commands that run after it is kept."""
    after = hashlib.sha256(runtime.model_dump_json(include={"workloads"}).encode()).hexdigest()[:16]
    return cache.root / "traces" / f"{key_of(image_digest, workload)}-{after}.use.v{TRACES_VERSION}.json"


def load(path: Path) -> Recorded | None:
    """Returns the kept trace, None when there is none (or it is not one)."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        reads = tuple(FileRange(str(p), int(offset), int(size)) for p, offset, size in kept["reads"])
        return Recorded(tuple(str(p) for p in kept["paths"]), reads)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, recorded: Recorded) -> Recorded:
    """Keeps a trace, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reads = [[read.path, read.offset, read.size] for read in recorded.reads]
    write_atomically(path, json.dumps({"paths": recorded.paths, "reads": reads}, indent=0).encode())
    return recorded


@dataclass(frozen=True, slots=True)
class Recorded:
    """Holds what a start read: ``paths`` in first-touch order, each once, and ``reads`` in the order in which they
    came.
    """

    paths: tuple[str, ...]
    reads: tuple[FileRange, ...] = ()


def recorded(touches: Sequence[Touch], until_s: float = float("inf")) -> Recorded:
    """Makes a trace from touches; reads that began later than ``until_s`` after T0 are left out."""
    reads = [
        (at_s, FileRange(touch.path, offset, size))
        for touch in touches
        for offset, size, at_s in touch.reads
        if at_s <= until_s
    ]
    reads.sort(key=lambda read: read[0])
    paths = dict.fromkeys(touch.path for touch in touches if touch.t_s <= until_s)
    return Recorded(tuple(paths), tuple(read for _, read in reads))
