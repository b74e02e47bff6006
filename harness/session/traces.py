"""A trace holds what a start reads, in first-touch order; a trial of its own records it, by image and workload.

Its paths are a prefetch list (``prefetch = "trace"``), and what they name is not cold when run-time workloads begin.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from harness.session.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.lazyfs.messages import Touch
    from harness.model.workload import Workload
    from harness.oci.cache import Cache

TRACES_VERSION = 2


def key_of(image_digest: str, workload: Workload) -> str:
    """Names one workload on one image in a file's name; what readiness means is no part of it."""
    # What a scenario does not use keeps the names of what was recorded before it could be said.
    left_out = {"readiness"} if workload.reads else {"readiness", "reads"}
    what = hashlib.sha256(workload.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]
    return f"{image_digest.partition(':')[2]}-{what}"


def place(cache: Cache, image_digest: str, workload: Workload) -> Path:
    """Returns where the list of one workload on one image is kept."""
    return cache.root / "traces" / f"{key_of(image_digest, workload)}.v{TRACES_VERSION}.json"


def load(path: Path) -> tuple[str, ...] | None:
    """Returns the kept list, None when there is none (or it is not one)."""
    try:
        paths = json.loads(path.read_text("utf-8"))["paths"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(str(p) for p in paths)


def save(path: Path, paths: tuple[str, ...]) -> None:
    """Keeps a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"paths": paths}, indent=0).encode())


def paths_of(touches: Iterable[Touch]) -> tuple[str, ...]:
    """Returns the paths in first-touch order, each once."""
    return tuple(dict.fromkeys(touch.path for touch in touches))
