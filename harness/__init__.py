"""coldbench: how fast a container starts on a small machine, and what the trick that made it fast costs afterwards."""

from __future__ import annotations

__version__ = "0.1.0"
