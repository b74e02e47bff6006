"""Threads that work for the event loop."""

from __future__ import annotations

import threading

import pytest
import trio

from harness.lazyfs.data.workers import Workers


def test_results_and_errors_come_back() -> None:
    """What the function returns or raises is what the task gets, from another thread."""

    async def main() -> None:
        workers = Workers(2, "test")
        here = threading.get_ident()
        assert await workers.run(threading.get_ident) != here
        assert await workers.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(divmod, 1, 0)

    trio.run(main)


def test_no_more_threads_than_allowed_work_at_a_time() -> None:
    """The rest waits its turn, and everything is done."""
    working, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        threading.Event().wait(0.01)
        with lock:
            working -= 1
        return number

    async def main() -> None:
        workers, done = Workers(3, "test"), set[int]()

        async def one(number: int) -> None:
            done.add(await workers.run(work, number))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
        assert done == set(range(12))

    trio.run(main)
    assert most == 3


def test_a_cancelled_task_does_not_wait() -> None:
    """Its thread goes on; what comes of it reaches nobody, and the thread works for others afterwards."""
    held = threading.Event()

    async def main() -> None:
        workers = Workers(1, "test")
        with trio.move_on_after(0.05) as scope:
            await workers.run(held.wait)
        assert scope.cancelled_caught
        held.set()
        assert await workers.run(divmod, 9, 4) == (2, 1)

    trio.run(main)


def test_a_loop_that_has_ended_is_not_waited_for() -> None:
    """A thread that is at work then finds nobody to tell, and ends."""
    held, threads = threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        held.wait()

    async def main() -> None:
        workers = Workers(1, "test")
        with trio.move_on_after(0.05):
            await workers.run(work)

    trio.run(main)
    held.set()
    threads[0].join(20)
    assert not threads[0].is_alive()
