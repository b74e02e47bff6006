"""This module runs one call in a thread of its own, without what ``concurrent.futures`` would bring into a small
machine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Aside(Generic[T]):
    """Runs ``call`` beside the caller; what it raises comes out of ``result``, or is dropped with it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:
            self._error = error

    def has_ended(self, within_s: float) -> bool:
        """Says whether the call has ended, and waits for that up to ``within_s``."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Waits for the call and gives what it gave."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]
