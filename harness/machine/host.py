"""What this host is and what it can do: facts once per session, for every result to carry."""

from __future__ import annotations

import os

from harness.errors import NotRoot


def require_root(what: str) -> None:
    """``NotRoot`` unless this process may make namespaces, mounts and control groups."""
    if os.geteuid() != 0:
        raise NotRoot(f"{what} needs root; run this with sudo")
