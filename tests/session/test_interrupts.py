"""Signals during a run."""

from __future__ import annotations

import os
import signal

import pytest

from harness.errors import Interrupted
from harness.session.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_work(number: signal.Signals) -> None:
    """Inside ``allowed`` a signal raises at once, and names itself."""
    with Interrupts() as interrupts, pytest.raises(Interrupted, match=number.name), interrupts.allowed():
        os.kill(os.getpid(), number)


def test_signal_waits_for_tear_down() -> None:
    """Outside ``allowed`` any number of signals is only noted; the next ``allowed`` refuses to begin."""
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested
        with pytest.raises(Interrupted), interrupts.allowed():
            raise AssertionError("not reached")


def test_second_signal_on_the_way_out_is_noted_only() -> None:
    """The first signal opens the way out; a second one does not stop what releases things."""
    released = False

    def work() -> None:
        nonlocal released
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            released = True

    with Interrupts() as interrupts, pytest.raises(Interrupted), interrupts.allowed():
        work()
    assert released


def test_handlers_are_restored() -> None:
    """What handled the signals before handles them again."""
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_forked_child_dies_without_unwinding() -> None:
    """A child that inherited the handler ends by the signal and runs none of its parent's ``finally``."""
    reader, writer = os.pipe()
    with Interrupts() as interrupts, interrupts.allowed():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                os.write(writer, b"unwound")
                os._exit(1)
        _pid, status = os.waitpid(child, 0)
    os.close(writer)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert os.read(reader, 10) == b""
    os.close(reader)
