"""This module reads the quantities that options take: shares as percentages or fractions."""

from __future__ import annotations

from harness.errors import UsageError


def share(text: str, option: str) -> float:
    """Reads ``10%`` or ``0.1``, above 0 and at most 10. Raises UsageError."""
    number = text.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise UsageError(f"{option} {text}: expected a share as 5% or 0.05") from None
    if not 0 < value <= 10:
        raise UsageError(f"{option} {text}: expected a share above 0, as 5% or 0.05")
    return value
