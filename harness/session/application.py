"""This module measures the CPU seconds that a workload itself needs from its start until it is ready, and keeps them.

A full pull (overlay2, preset ``tuned``) starts the workload on a machine without limits, so that every file is local
and in the page cache and nothing but the workload works. The measurement begins when crun has created the container,
and leaves out what ``crun start`` itself spends. The module takes the least of several trials, times ``SAFETY``: a
bound has to lie below every honest result, and a quiet moment later may be quicker than the best one seen.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from harness.session.store import write_atomically
from harness.session.traces import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.model.workload import Workload
    from harness.oci.cache import Cache

SAFETY = 0.7
TRIALS = 2
#: Taken off for ``crun start``: with a program that ends at once it used 1.5 to 5.6 ms in two trials here.
START_CORE_S = 0.01
APPLICATIONS_VERSION = 2


def place(cache: Cache, image_digest: str, workload: Workload, host: str) -> Path:
    """Returns where the figure of one workload on one image and host is kept; readiness is part of what it means."""
    what = hashlib.sha256(f"{workload.readiness.model_dump_json()}|{host}".encode()).hexdigest()[:16]
    return cache.root / "applications" / f"{key_of(image_digest, workload)}-{what}.v{APPLICATIONS_VERSION}.json"


def load(path: Path) -> float | None:
    """Returns the kept figure (the safety factor applied), None when there is none."""
    try:
        return float(json.loads(path.read_text("utf-8"))["application_core_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, measured_s: Sequence[float]) -> float:
    """Keeps the figure that some trials give, and returns it."""
    figure = SAFETY * max(0.0, min(measured_s) - START_CORE_S)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"application_core_s": figure, "measured_s": list(measured_s)}
    write_atomically(path, json.dumps(document, indent=1).encode())
    return figure
