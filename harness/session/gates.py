"""This module makes the course of a trial wait for others: a storm's machines start together, and end together."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from harness.errors import MachineError


class Gate(Protocol):
    """Lets a course pass at four moments; each may wait, and may raise."""

    def boot(self) -> None:
        """Is called when the machine is about to be made and its daemons to be brought up."""
        ...

    def booted(self) -> None:
        """Is called when the daemons are up: limits are put in force next."""
        ...

    def limited(self) -> None:
        """Is called when limits are in force: T0 is next."""
        ...

    def ready(self) -> None:
        """Is called when the container is ready: what comes after readiness is next."""
        ...


class OpenGate:
    """Never waits: it serves a trial that runs alone."""

    def boot(self) -> None: ...

    def booted(self) -> None: ...

    def limited(self) -> None: ...

    def ready(self) -> None: ...


#: The host is looked at when all have booted, at T0, and when the last is ready.
_LOOKS = 3


def _busy_core_s() -> float:
    """Returns the core-seconds that this host's processors have been busy since it booted."""
    import psutil

    t = psutil.cpu_times()
    return float(t.user + t.nice + t.system + t.irq + t.softirq)


class StormGate:
    """Holds the machines of one storm together: they are made one after the other and told to deploy at the same
    moment.

    A machine that fails before T0 breaks the storm, since the storm would be a smaller one without it. After T0 each
    goes on by itself until it is ready or has failed; then it waits for the last before it goes on.
    """

    def __init__(self, machines: int) -> None:
        self.boot = threading.Lock()
        """Is held while a machine is made: that forks, and threads would fork beside each other's locks."""
        self.together = threading.Barrier(machines, self._arrived)
        self._waited_for = machines
        self._changed = threading.Condition()
        self._busy: list[tuple[float, float]] = []

    def _arrived(self) -> None:
        self._busy.append((time.monotonic(), _busy_core_s()))

    @property
    def host_use(self) -> tuple[float, float] | None:
        """Returns the seconds from T0 until the last machine was ready, and the core-seconds that this host's
        processors were busy in them, with whatever; None where the storm did not come so far.
        """
        if len(self._busy) < _LOOKS:
            return None
        (t0, before), (end, after) = self._busy[1], self._busy[2]
        return end - t0, after - before

    def pass_one(self) -> None:
        """Notes that one machine more is ready or has failed."""
        with self._changed:
            self._waited_for -= 1
            if self._waited_for == 0 and len(self._busy) == _LOOKS - 1:
                self._arrived()
            self._changed.notify_all()

    def await_all(self) -> None:
        """Waits until all machines are ready or have failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waited_for <= 0)

    def give_up(self) -> None:
        """Ends the storm: nobody waits for another machine any more."""
        self.together.abort()
        with self._changed:
            self._waited_for = 0
            self._changed.notify_all()


class MemberGate:
    """Ties one machine of a storm to the others; ``close`` is called at its end, whatever that was."""

    def __init__(self, storm: StormGate) -> None:
        self._storm = storm
        self._boots = False
        self._before_t0 = True
        self._counted = False

    def boot(self) -> None:
        self._storm.boot.acquire()
        self._boots = True

    def booted(self) -> None:
        self._unlock()
        self._wait()

    def limited(self) -> None:
        self._wait()
        self._before_t0 = False

    def ready(self) -> None:
        self._count()
        self._storm.await_all()

    def close(self) -> None:
        """Notes that the machine is gone: it lets go what the machine holds, and nobody waits for it."""
        self._unlock()
        if self._before_t0:
            self._storm.together.abort()
        self._count()

    def _wait(self) -> None:
        try:
            self._storm.together.wait()
        except threading.BrokenBarrierError:
            raise MachineError("another machine of the storm failed before T0, so this one was not started") from None

    def _unlock(self) -> None:
        if self._boots:
            self._boots = False
            self._storm.boot.release()

    def _count(self) -> None:
        if not self._counted:
            self._counted = True
            self._storm.pass_one()
