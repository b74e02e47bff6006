"""This module says which known word somebody may have meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def near_miss(word: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` when a known word is close to this one, else nothing."""
    import difflib  # imported here: the agent and the daemon never need it and should stay light

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
