"""coldbench measures how fast a container starts on a small machine, and what the trick that made it fast costs
afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.report.sessions import Sessions, load

__version__ = "0.1.0"

__all__ = ["Sessions", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports ``load`` and ``Sessions`` when they are first asked for: the processes in a machine need no pandas."""
    if name in {"load", "Sessions"}:
        from harness.report import sessions

        return getattr(sessions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
