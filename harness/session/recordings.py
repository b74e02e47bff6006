"""This module keeps the recording of a start by image and workload, as traces are kept; a trial of its own makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.erofs.recording import Recording
from harness.session.store import write_atomically
from harness.session.traces import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from harness.lazyfs.messages import ReadRange
    from harness.model.workload import Workload
    from harness.oci.cache import Cache

RECORDINGS_VERSION = 1


def place(cache: Cache, image_digest: str, workload: Workload) -> Path:
    """Returns where the recording of one workload on one image is kept."""
    return cache.root / "recordings" / f"{key_of(image_digest, workload)}.v{RECORDINGS_VERSION}.json"


def load(path: Path) -> Recording | None:
    """Returns the kept recording, None when there is none (or it is not one)."""
    try:
        return Recording.decode(path.read_bytes())
    except (OSError, FormatError):
        return None


def save(path: Path, recording: Recording) -> Recording:
    """Keeps a recording, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, recording.encode())
    return recording


def recording_of(ranges: Iterable[ReadRange], layers: Sequence[str], until_s: float) -> Recording:
    """Returns what the kernel asked for in the first ``until_s`` seconds, by the digests of the image's layers."""
    return Recording(tuple((layers[r.layer], r.begin, r.end) for r in ranges if r.t_s <= until_s))
