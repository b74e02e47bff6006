"""Readiness of real containers: each condition met, missed, and made impossible."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines import make_engine
from harness.errors import DiskFull, MachineError, NotReady, OutOfMemory, WorkloadExited
from harness.model.engine import EmbeddedChoice
from harness.model.timeline import Recorder
from harness.model.workload import ExitReadiness, HttpReadiness, LineReadiness, TcpReadiness
from harness.probes.output import TAIL_BYTES, OutputReader
from harness.probes.readiness import ReadinessProbe
from tests.engines.support import Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.machine.machine import Machine
    from harness.model.workload import Readiness
    from tests.engines.support import TestRegistry


@contextmanager
def probing(
    where: Machine, images: TestRegistry, readiness: Readiness, *args: str, alive: Callable[[], bool] = lambda: True
) -> Iterator[ReadinessProbe]:
    """A container that runs the test program with ``args``, and a probe on it."""
    engine = make_engine(EmbeddedChoice())
    request = images.request("base", *args)
    try:
        engine.start(where, request)
        probes: list[ReadinessProbe] = []
        engine.deploy(
            where,
            request,
            Recorder(time.monotonic_ns()),
            Watching(lambda made: probes.append(ReadinessProbe(readiness, made, where, alive))),
        )
        (probe,) = probes
        try:
            yield probe
        finally:
            probe.close()
            probe.close()
    finally:
        engine.tear_down()


PORT = 8080
CONDITIONS: list[tuple[Readiness, tuple[str, ...]]] = [
    (ExitReadiness(kind="exit"), ("exit", "0")),
    (ExitReadiness(kind="exit", code=3), ("exit", "3")),
    (LineReadiness(kind="stdout", pattern="^ready [0-9]+$"), ("say", "ready 7")),
    (LineReadiness(kind="stderr", pattern="up$"), ("warn", "server is up")),
    (LineReadiness(kind="stderr", pattern="leaving"), ("exit", "1")),
    (TcpReadiness(kind="tcp", port=PORT), ("listen", str(PORT))),
    (HttpReadiness(kind="http", port=PORT), ("http", str(PORT))),
    (HttpReadiness(kind="http", port=PORT, path="/health", status=204), ("http", str(PORT), "204 No Content")),
]


@pytest.mark.root
@pytest.mark.parametrize(("readiness", "args"), CONDITIONS, ids=[f"{r.kind}-{a[0]}-{a[-1]}" for r, a in CONDITIONS])
def test_ready(machine: Machine, registry: TestRegistry, readiness: Readiness, args: tuple[str, ...]) -> None:
    """Each condition is seen, never before it was met, also when the container ends right after it."""
    before = time.monotonic_ns()
    with probing(machine, registry, readiness, *args) as probe:
        at_ns = probe.wait()
        assert before < at_ns <= time.monotonic_ns()
        if readiness.kind in ("tcp", "http", "exit"):  # the program says when it listened, or ended
            said = re.search(r"^at (\d+)$", probe.output_tail(), re.MULTILINE)
            assert said is None or int(said[1]) <= at_ns


IMPOSSIBLE: list[tuple[Readiness, tuple[str, ...], str]] = [
    (ExitReadiness(kind="exit"), ("exit", "3"), "exit code 3 instead of 0; its last words: leaving with 3"),
    (LineReadiness(kind="stdout", pattern="never"), ("exit", "2"), "exit code 2 before it was ready"),
    (TcpReadiness(kind="tcp", port=PORT), ("exit", "0"), "exit code 0 before it was ready"),
]


@pytest.mark.root
@pytest.mark.parametrize(("readiness", "args", "words"), IMPOSSIBLE, ids=[r.kind for r, _, _ in IMPOSSIBLE])
def test_ended_too_early(
    machine: Machine,
    registry: TestRegistry,
    readiness: Readiness,
    args: tuple[str, ...],
    words: str,
) -> None:
    """A container that ends before it is ready fails at once, with its code and last words."""
    with probing(machine, registry, readiness, *args) as probe:
        with pytest.raises(WorkloadExited, match=re.escape(words)):
            probe.wait()
        assert "leaving with" in probe.output_tail()


LATE: list[tuple[Readiness, tuple[str, ...], str]] = [
    (ExitReadiness(kind="exit", timeout_s=0.3), ("wait",), "its process to end"),
    (LineReadiness(kind="stdout", pattern="x", timeout_s=0.3), ("say", "no"), " | no"),
    (TcpReadiness(kind="tcp", port=PORT, timeout_s=0.3), ("wait",), "port 8080"),
    (HttpReadiness(kind="http", port=PORT, timeout_s=1), ("http", str(PORT), "503 Later"), "last answer: status 503"),
    (HttpReadiness(kind="http", port=PORT, timeout_s=1), ("listen", str(PORT)), "last answer: a connection"),
]


@pytest.mark.root
@pytest.mark.parametrize(("readiness", "args", "words"), LATE, ids=[f"{r.kind}-{a[0]}" for r, a, _ in LATE])
def test_not_ready_in_time(
    machine: Machine,
    registry: TestRegistry,
    readiness: Readiness,
    args: tuple[str, ...],
    words: str,
) -> None:
    """What was waited for, and what was seen instead, is said after the timeout."""
    with probing(machine, registry, readiness, *args) as probe, pytest.raises(NotReady, match=re.escape(words)):
        probe.wait()


@pytest.mark.root
def test_what_listens_inside_is_said(machine: Machine, registry: TestRegistry) -> None:
    """A server on another port than the one that was waited for is the usual mistake: the message names its port."""
    wrong = TcpReadiness(kind="tcp", port=PORT + 1, timeout_s=1)
    with probing(machine, registry, wrong, "listen", str(PORT)) as probe, pytest.raises(NotReady) as caught:
        probe.wait()
    assert re.search(rf"; inside listen: \S*:{PORT}\b", str(caught.value))


@pytest.mark.root
def test_out_of_memory(small_machine: Callable[..., Machine], registry: TestRegistry) -> None:
    """A workload that the kernel killed for memory is told as that."""
    where = small_machine("cpu=1,memory=64M")
    with probing(where, registry, TcpReadiness(kind="tcp", port=PORT), "eat") as probe, pytest.raises(OutOfMemory):
        probe.wait()


@pytest.mark.root
def test_full_disk(small_machine: Callable[..., Machine], registry: TestRegistry) -> None:
    """A workload that filled the machine's disk is told as that."""
    where = small_machine("unlimited", scratch_bytes=64 << 20)
    with probing(where, registry, TcpReadiness(kind="tcp", port=PORT), "fill") as probe, pytest.raises(DiskFull):
        probe.wait()


@pytest.mark.root
def test_dead_daemon(machine: Machine, registry: TestRegistry) -> None:
    """A container whose file system's daemon is gone is not waited for."""
    readiness = TcpReadiness(kind="tcp", port=PORT)
    with probing(machine, registry, readiness, "wait", alive=lambda: False) as probe:
        with pytest.raises(MachineError, match="daemon"):
            probe.wait()


@pytest.mark.root
def test_watching_is_not_charged(machine: Machine, registry: TestRegistry) -> None:
    """Knocking on a closed port for a while costs the machine no CPU time to speak of."""
    with probing(machine, registry, TcpReadiness(kind="tcp", port=PORT, timeout_s=1), "wait") as probe:
        before = machine.counters().cpu_total_s
        with pytest.raises(NotReady):
            probe.wait()
        assert machine.counters().cpu_total_s - before < 0.02


def _read(*pieces: bytes, **options: Any) -> tuple[OutputReader, list[int]]:
    """What a reader makes of ``pieces`` written to stdout one after the other."""
    seen: list[int] = []
    (out, into), (err, nothing) = os.pipe(), os.pipe()
    os.set_blocking(out, False)
    os.set_blocking(err, False)
    reader = OutputReader(out, err, matched=seen.append, **options)
    for piece in pieces:
        os.write(into, piece)
    os.close(into)
    os.close(nothing)
    assert reader.await_end(10)
    reader.close()
    os.close(out)
    os.close(err)
    return reader, seen


def test_a_line_in_pieces() -> None:
    """A line counts as a whole however it arrives, the last one also without its newline, and only once."""
    assert len(_read(b"serv", b"ing on 80\r\nserving on 80\n", stream="stdout", pattern="^serving on 80$")[1]) == 1
    assert len(_read(b"a\nlast", stream="stdout", pattern="^last$")[1]) == 1
    assert _read(b"serving\n", stream="stderr", pattern="serving")[1] == []


def test_the_tail_is_bounded() -> None:
    """The last 4 KiB are kept, whatever is written."""
    reader, _ = _read(*[b"x" * 10_000] * 20, b"end")
    assert len(reader.tail()) == TAIL_BYTES
    assert reader.tail().endswith("xend")


def test_last_words_are_those_of_stderr() -> None:
    """Whichever stream was read last, an error's line is quoted; stdout's where stderr is silent."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    reader = OutputReader(out, err)
    os.write(err_end, b"why it failed\n\n")
    os.close(err_end)
    os.write(out_end, b"all is well\n")
    os.close(out_end)
    assert reader.await_end(10)
    reader.close()
    os.close(out)
    os.close(err)
    assert reader.last_words() == "why it failed"
    assert _read(b"first\nlast\n")[0].last_words() == "first | last"
    assert _read(b"a\n\nb\nError: no module\n}\nv18.20.4\n\n")[0].last_words() == "Error: no module | } | v18.20.4"


def test_a_line_without_end_is_searched() -> None:
    """A stream without newlines is searched piecewise instead of kept."""
    assert len(_read(*[b"y" * 30_000] * 10, b"NEEDLE", stream="stdout", pattern="NEEDLE")[1]) == 1
