"""This module does several things at once, of which the first error counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from harness.errors import ColdbenchError

if TYPE_CHECKING:
    from collections.abc import Callable


async def gather(tasks: list[Callable[[], Any]]) -> None:
    """Run all; the first ColdbenchError cancels the others and is raised alone."""
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
    except BaseExceptionGroup as group:
        own = group.subgroup(ColdbenchError)
        while own is not None and isinstance(own, BaseExceptionGroup):
            first = own.exceptions[0]
            if not isinstance(first, BaseExceptionGroup):
                raise first from None
            own = first
        raise
