"""The daemon may die: another one takes over, reads wait a moment, and nobody sees an error or a wrong byte."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.lazyfs.control import serving
from harness.lazyfs.mounting.mounts import mount_device
from tests.lazyfs.killing import read_while_killed
from tests.lazyfs.mounting.test_handover import forget_pages
from tests.lazyfs.support import (
    MODES,
    QUIET,
    File,
    blob_server,
    convert,
    noise,
    registry,
    serve,
    tar_of,
    text,
    write_image,
)
from tests.oci.registry.fault_server import Answer, Request

if TYPE_CHECKING:
    from harness.oci.store import ImageSource
    from tests.lazyfs.support import Served

pytestmark = pytest.mark.root

FILES = {f"d{n % 7}/f{n}": text(9_000 + n * 997, n) for n in range(120)} | {"noise": noise(700_000)}
LAYER = tar_of(*(File(f"d{n}") for n in range(7)), *(File(name, data) for name, data in FILES.items()))
FETCHED = {"background_after_s": 0.0, "background_interval_s": 0.0, "attempts": 1}


def image_for(mode: str, place: Path) -> ImageSource:
    return convert(write_image(place / "image", [LAYER]), place / mode, mode)


def inside(served: Served, mode: str) -> Path:
    return served.root if mode == "erofs" else served.root / "0"


def kill(served: Served) -> None:
    os.kill(served.daemon, signal.SIGKILL)


@pytest.mark.parametrize("mode", MODES)
def test_reads_go_on_after_the_daemon_was_killed(mode: str, tmp_path: Path) -> None:
    """Names, touched and untouched files read as before; an open file stays open; the counters go on and say so."""
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options=QUIET) as served:
        root = inside(served, mode)
        names = sorted(os.listdir(root / "d1"))
        assert (root / "d1/f1").read_bytes() == FILES["d1/f1"]
        held = os.open(root / "d2/f2", os.O_RDONLY)
        before = served.usage()
        kill(served)
        forget_pages()
        assert sorted(os.listdir(root / "d1")) == names
        assert os.read(held, 1 << 20) == FILES["d2/f2"]
        os.close(held)
        with pytest.raises(FileNotFoundError):
            (root / "d1/nothing").read_bytes()
        served.ready()
        between = served.usage()
        kill(served)
        assert {name: (root / name).read_bytes() for name in FILES} == FILES
        after = served.usage()
        assert (before.restarts, between.restarts, after.restarts) == (0, 1, 2)
        assert 0 < before.bytes_fetched < between.bytes_fetched < after.bytes_fetched
        assert before.fuse["read"].count < between.fuse["read"].count < after.fuse["read"].count
        assert between.bytes_fetched_before_ready == after.bytes_fetched_before_ready
        assert after.read_errors == 0
    assert served.process.returncode == 0
    assert mount_device(served.mountpoint) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_read_that_waits_is_answered_by_the_next_daemon(mode: str, tmp_path: Path) -> None:
    """The daemon dies while the registry lets a reader wait: the kernel sends the request to the next one."""
    source = image_for(mode, tmp_path)
    holding, asked, let_go = threading.Event(), threading.Event(), threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        if holding.is_set() and request.headers.get("range"):
            asked.set()
            let_go.wait(60)
        return None

    with blob_server(source, fault) as server, ThreadPoolExecutor(1) as pool:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=QUIET) as served:
            root = inside(served, mode)
            holding.set()
            try:
                read = pool.submit((root / "noise").read_bytes)
                assert asked.wait(30)
                kill(served)
            finally:
                holding.clear()
                let_go.set()
            assert read.result(60) == FILES["noise"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_local_survives_without_the_registry(mode: str, tmp_path: Path) -> None:
    """Killed when everything is local and the registry is away for good, the mount gives every byte."""
    source = image_for(mode, tmp_path)
    away = threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        return Answer(503) if away.is_set() else None

    options = FETCHED | ({"handover": False} if mode == "erofs" else {})
    with blob_server(source, fault) as server:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=options) as served:
            root = inside(served, mode)
            assert (root / "d1/f1").read_bytes() == FILES["d1/f1"]
            served.ready()
            assert served.background(60).complete
            away.set()
            for _ in range(2):
                kill(served)
                forget_pages()
                assert {name: (root / name).read_bytes() for name in FILES} == FILES
            assert served.usage().restarts == 2
            assert served.usage().background_finished


def test_the_handover_follows_a_death(tmp_path: Path) -> None:
    """Killed on the way, the next daemon inflates what is left, turns the kernel to the file, and is not needed."""
    source = image_for("erofs", tmp_path)
    with serve(source, "erofs", tmp_path / "s", options={**FETCHED, "inflate_share": 0.2}) as served:
        served.ready()
        while not served.usage().spans_fetched:
            time.sleep(0.01)
        kill(served)
        assert served.background(60).complete
        while not served.usage().handed_over:
            time.sleep(0.05)
        kill(served)
        assert served.usage().handed_over
        assert served.background(60).complete
        served.kill()
        forget_pages()
        assert {name: (served.root / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("mode", MODES)
def test_killed_again_and_again_nothing_is_lost(mode: str, tmp_path: Path) -> None:
    """Ten times while tar reads everything and Python imports from the mount; ``nox -s soak`` does it a hundred
    times."""
    read_while_killed(mode, 10, tmp_path)


def test_a_daemon_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    """A crash loop ends in words and an I/O error, not in a reader that hangs."""
    source = image_for("soci", tmp_path)
    with serve(source, "soci", tmp_path / "s", options=QUIET) as served:
        root = inside(served, "soci")
        last = 0
        while served.process.poll() is None:
            (pid,) = serving(served.process.pid) or (last,)
            if pid not in {last, served.process.pid}:
                last = pid
                os.kill(pid, signal.SIGSEGV)
            time.sleep(0.01)
        assert served.process.returncode == -signal.SIGSEGV
        with pytest.raises(OSError, match=r"not connected|aborted"):
            (root / "noise").read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_the_holder_is_small_and_does_not_matter_while_nothing_dies(mode: str, tmp_path: Path) -> None:
    """One thread and little memory; killed itself, it takes nothing along."""
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options=QUIET) as served:
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert fields["Threads"] == "1"
        assert int(fields["VmRSS"].split()[0]) < 20_000
        daemon = served.daemon
        served.process.kill()
        served.process.wait()
        assert (inside(served, mode) / "noise").read_bytes() == FILES["noise"]
        assert Path(f"/proc/{daemon}").exists()
