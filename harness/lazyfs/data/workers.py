"""This module runs functions in threads for the event loop.

It does what ``trio.to_thread.run_sync`` does, without what the data path has no use for: context variables, thread
names, a limiter that is a checkpoint. A miss passes through here once or twice, and that was a tenth of what it costs.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    Late = Callable[[outcome.Outcome[Any]], None]

T = TypeVar("T")


class _Job:
    __slots__ = ("arguments", "function", "late", "task")

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], task: trio.lowlevel.Task, late: Late | None
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.task: trio.lowlevel.Task | None = task
        self.late = late

    def abandon(self, _: object) -> trio.lowlevel.Abort:
        """Forgets the task, which was cancelled: it does not hear of what the thread gives."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def finish(self, result: outcome.Outcome[Any]) -> None:
        """Hands over what the thread gave, back on the event loop."""
        if self.task is not None:
            trio.lowlevel.reschedule(self.task, outcome.Value(result))
        elif self.late is not None:
            self.late(result)


class Workers:
    """Runs functions in at most ``most`` threads, started when needed; what else is asked for waits its turn."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._token = trio.lowlevel.current_trio_token()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls ``function`` in a thread, and returns or raises what it does.

        After a cancel it goes on, and nobody hears of it.
        """
        return (await self.attempt(function, *arguments)).unwrap()

    async def attempt(
        self, function: Callable[..., T], *arguments: Any, late: Late | None = None
    ) -> outcome.Outcome[T]:
        """Calls ``function`` in a thread, and returns what it returned or raised, as a value.

        After a cancel the thread goes on, and ``late`` is called on the event loop with what it gave.
        """
        job = _Job(function, arguments, trio.lowlevel.current_task(), late)
        self._unfinished += 1
        if self._unfinished > self._threads and self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._queue.put(job)
        result: outcome.Outcome[T] = await trio.lowlevel.wait_task_rescheduled(job.abandon)
        return result

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            result: outcome.Outcome[Any] = outcome.capture(job.function, *job.arguments)
            try:
                self._token.run_sync_soon(self._finish, job, result)
            except trio.RunFinishedError:
                return
            del job, result

    def _finish(self, job: _Job, result: outcome.Outcome[Any]) -> None:
        self._unfinished -= 1
        job.finish(result)
