"""Faults: never a wrong byte, a clear error where there can be none, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError, MachineError, RegistryError
from harness.lazyfs.mounting.mounts import mount_device
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
from tests.oci.registry.fault_server import Answer, Request, serve_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.oci.store import ImageSource

pytestmark = pytest.mark.root

BIG, NOISE = text(900_000), noise(500_000)
LAYER = tar_of(
    File("big", BIG), File("dir"), File("dir/noise", NOISE), File("dir/small", b"small"), File("z", text(9000))
)
IMPATIENT = {**QUIET, "attempts": 2, "retry_first_s": 0.01}


def image_for(mode: str, place: Path) -> ImageSource:
    return convert(write_image(place / "image", [LAYER]), place / mode, mode)


def inside(root: Path, mode: str) -> Path:
    return root if mode == "erofs" else root / "0"


def layer_digest(source: ImageSource) -> str:
    return source.resolve().layers[0].digest


def on_layer(source: ImageSource, answer: Callable[[Request, bytes], Answer | None]) -> Callable[..., Answer | None]:
    """The fault, for requests of the layer's payload only; its index is served as it is."""
    digest = layer_digest(source)
    tail = source.resolve().layers[0].size - (64 << 10)  # where an eStargz layer's table stands

    def fault(request: Request, data: bytes) -> Answer | None:
        wanted = request.range
        if not request.path.endswith(digest) or (wanted is not None and wanted[0] >= tail):
            return None
        return answer(request, data)

    return fault


def flip(request: Request, data: bytes) -> Answer:
    """A proper answer with a bit flipped in its middle."""
    answer = serve_range(request, data)
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 0x10
    return Answer(answer.status, bytes(body), answer.headers)


def close(descriptor: int) -> None:
    """close(2) of a file of a dead file system reports that, too."""
    with suppress(OSError):
        os.close(descriptor)


def read_again(path: Path) -> bytes:
    """The file's bytes once the registry has been probed again; until then its reads fail at once."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return path.read_bytes()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def expect_error(path: Path, *codes: int) -> None:
    with pytest.raises(OSError, match="|".join(os.strerror(code) for code in codes)):
        path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_corrupt_bytes_are_never_served(mode: str, tmp_path: Path) -> None:
    """A flipped bit makes the read fail with EIO and is counted; once the bytes are right, so is the read."""
    source = image_for(mode, tmp_path)
    broken = threading.Event()
    broken.set()
    fault = on_layer(source, lambda request, data: flip(request, data) if broken.is_set() else None)
    with blob_server(source, fault) as server:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=QUIET) as served:
            root = inside(served.root, mode)
            expect_error(root / "dir/noise", errno.EIO)
            assert served.usage().digest_mismatches > 0
            broken.clear()
            assert (root / "dir/noise").read_bytes() == NOISE


def test_a_corrupt_window_is_asked_for_again(tmp_path: Path) -> None:
    """Mode erofs: a window that is not what its digest says fails the read that needs it, and no later one."""
    source = image_for("erofs", tmp_path)
    broken = threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        return flip(request, data) if broken.is_set() and not request.path.endswith(layer_digest(source)) else None

    with blob_server(source, fault) as server:
        with serve(source, "erofs", tmp_path / "s", store=registry(server), options=QUIET) as served:
            broken.set()
            expect_error(served.root / "dir/noise", errno.EIO)
            broken.clear()
            assert (served.root / "dir/noise").read_bytes() == NOISE


@pytest.mark.parametrize("mode", MODES)
def test_corrupt_index_is_refused(mode: str, tmp_path: Path) -> None:
    """A TOC, zTOC or EROFS head that is not what its digest says is not mounted."""
    source = image_for(mode, tmp_path)
    payload = layer_digest(source)
    tail = source.resolve().layers[0].size - (64 << 10)

    def fault(request: Request, data: bytes) -> Answer | None:
        wanted = request.range
        if request.path.endswith(payload) and (wanted is None or wanted[0] < tail or mode != "estargz"):
            return None
        answer = serve_range(request, data)
        body = bytearray(answer.body)
        # The last bytes of an eStargz blob are its footer (51 bytes); the table of contents stands right before it.
        body[-100 if mode == "estargz" else len(body) // 2] ^= 1
        return Answer(answer.status, bytes(body), answer.headers)

    with blob_server(source, fault) as server, pytest.raises(ContentError):
        with serve(source, mode, tmp_path / "s", store=registry(server), options=QUIET):
            pass


@pytest.mark.parametrize("mode", MODES)
def test_registry_gone_in_the_middle(mode: str, tmp_path: Path) -> None:
    """What was read stays readable; what was not fails with EIO, and works again when the registry is back."""
    source = image_for(mode, tmp_path)
    gone = threading.Event()
    fault = on_layer(source, lambda request, data: Answer(503) if gone.is_set() else None)
    with blob_server(source, fault) as server:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=IMPATIENT) as served:
            root = inside(served.root, mode)
            assert (root / "z").read_bytes() == text(9000)
            gone.set()
            expect_error(root / "big", errno.EIO)
            assert (root / "z").read_bytes() == text(9000)
            gone.clear()
            assert read_again(root / "big") == BIG
            assert served.usage().retries > 0


@pytest.mark.parametrize("mode", MODES)
def test_registry_that_ignores_ranges_is_refused(mode: str, tmp_path: Path) -> None:
    """Whole blobs in place of ranges are not taken for the ranges."""
    source = image_for(mode, tmp_path)
    fault = on_layer(source, lambda _, data: Answer(200, data))
    with blob_server(source, fault) as server:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=QUIET) as served:
            expect_error(inside(served.root, mode) / "dir/noise", errno.EIO)


def test_slow_registry_delays_only_those_who_wait_for_it(tmp_path: Path) -> None:
    """While one read waits for the registry, metadata and local bytes are served."""
    source = image_for("soci", tmp_path)
    waiting, let_go = threading.Event(), threading.Event()
    slow = threading.Event()

    def answer(request: Request, data: bytes) -> Answer | None:
        if slow.is_set():
            waiting.set()
            let_go.wait(30)
        return None

    with blob_server(source, on_layer(source, answer)) as server, ThreadPoolExecutor(1) as pool:
        with serve(source, "soci", tmp_path / "s", store=registry(server), options=QUIET) as served:
            root = inside(served.root, "soci")
            assert (root / "z").read_bytes() == text(9000)
            slow.set()
            slow_read = pool.submit((root / "dir/noise").read_bytes)
            assert waiting.wait(20)
            assert (root / "dir").is_dir()
            assert sorted(os.listdir(root)) == ["big", "dir", "z"]
            assert (root / "z").read_bytes() == text(9000)
            assert not slow_read.done()
            let_go.set()
            assert slow_read.result(20) == NOISE


@pytest.mark.parametrize("mode", MODES)
def test_full_disk_cache_does_not_hurt(mode: str, tmp_path: Path) -> None:
    """With no room on disk and hardly any memory every byte is still right; the background fetch ends early."""
    source = image_for(mode, tmp_path)
    from harness.kernel.overlay import mount, unmount

    disk = tmp_path / "tiny"
    disk.mkdir()
    mount("tmpfs", str(disk), "tmpfs", "size=64k")
    try:
        options = {"memory_bytes": 1 << 20, "background_after_s": 0.0}
        with serve(source, mode, tmp_path / "s", options=options, scratch=str(disk)) as served:
            root = inside(served.root, mode)
            served.ready()
            assert served.background(20).complete is False
            for _ in range(2):
                with open("/proc/sys/vm/drop_caches", "w") as file:
                    file.write("1")
                assert (root / "big").read_bytes() == BIG
                assert (root / "dir/noise").read_bytes() == NOISE
    finally:
        unmount(str(disk))


@pytest.mark.parametrize("mode", MODES)
def test_killed_daemon_never_gives_zeros(mode: str, tmp_path: Path) -> None:
    """Where no other daemon takes over: after SIGKILL unread bytes fail (ENOTCONN, EIO, ECONNABORTED), pages already
    read stay right, all unmounts."""
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options={**QUIET, "restart": False}) as served:
        root = inside(served.root, mode)
        held = os.open(root / "z", os.O_RDONLY)
        assert os.read(held, 20_000) == text(9000)
        os.kill(served.daemon, signal.SIGKILL)
        assert served.process.wait() == -signal.SIGKILL, "its holder ends as it did"
        expect_error(root / "dir/noise", errno.ENOTCONN, errno.EIO, errno.ECONNABORTED)
        with suppress(OSError):
            assert os.pread(held, 20_000, 0) == text(9000)
        close(held)
        with pytest.raises(MachineError, match="gone"):
            served.usage()
    assert mount_device(served.mountpoint) is None
    assert mount_device(str(tmp_path / "s" / "erofs")) is None


@pytest.mark.parametrize("mode", ["soci", "estargz"])
def test_a_reader_that_waits_for_the_registry_can_be_killed(mode: str, tmp_path: Path) -> None:
    """SIGKILL ends a process whose read the registry does not answer, and others go on."""
    source = image_for(mode, tmp_path)
    held, asked, going = threading.Event(), threading.Event(), threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        if held.is_set() and request.path.endswith(layer_digest(source)):
            asked.set()
            going.wait(60)
        return None

    with blob_server(source, fault) as server:
        with serve(source, mode, tmp_path / "s", store=registry(server), options=QUIET) as served:
            root = inside(served.root, mode)
            assert (root / "z").read_bytes() == text(9000)
            held.set()
            try:
                reader = subprocess.Popen(["cat", str(root / "dir/noise")], stdout=subprocess.DEVNULL)
                assert asked.wait(30)
                reader.kill()
                assert reader.wait(20) == -9
                assert (root / "z").read_bytes() == text(9000)
            finally:
                going.set()
            assert (root / "dir/noise").read_bytes() == NOISE


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_directory_that_takes_no_file_does_not_hurt(mode: str, tmp_path: Path) -> None:
    """On a read-only disk there is just no cache; every byte is right."""
    source = image_for(mode, tmp_path)
    from harness.kernel.overlay import mount, unmount

    disk = tmp_path / "readonly"
    disk.mkdir()
    mount("tmpfs", str(disk), "tmpfs", "size=64k", 1)
    try:
        with serve(source, mode, tmp_path / "s", options=QUIET, scratch=str(disk)) as served:
            root = inside(served.root, mode)
            assert (root / "big").read_bytes() == BIG
            assert (root / "dir/noise").read_bytes() == NOISE
    finally:
        unmount(str(disk))


@pytest.mark.parametrize("mode", MODES)
def test_open_files_do_not_hold_the_mount(mode: str, tmp_path: Path) -> None:
    """A process that keeps a file open and sits in a directory does not keep anything mounted or running."""
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options=QUIET) as served:
        root = inside(served.root, mode)
        held = os.open(root / "big", os.O_RDONLY)
        directory = os.open(root / "dir", os.O_RDONLY)
        os.read(held, 10)
    try:
        assert served.process.returncode == 0
        assert mount_device(served.mountpoint) is None
    finally:
        close(held)
        close(directory)


@pytest.mark.parametrize("mode", MODES)
def test_hundreds_of_parallel_readers(mode: str, tmp_path: Path) -> None:
    """300 threads read different files at once, all at first touch, with little memory; every byte is right."""
    files = {f"d{n % 7}/f{n}": text(20_000 + n * 37, n) for n in range(300)}
    tar = tar_of(*(File(f"d{n}") for n in range(7)), *(File(name, data) for name, data in files.items()))
    source = convert(write_image(tmp_path / "image", [tar]), tmp_path / mode, mode)
    with serve(source, mode, tmp_path / "s", options={"memory_bytes": 1 << 20}) as served:
        root = inside(served.root, mode)

        def read(name: str) -> str:
            return hashlib.sha256((root / name).read_bytes()).hexdigest()

        with ThreadPoolExecutor(300) as pool:
            found = dict(zip(files, pool.map(read, files), strict=True))
        assert found == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        stats = served.usage()
        assert stats.digest_mismatches == 0


def test_one_flight_per_unit(tmp_path: Path) -> None:
    """Many readers of one span cause one request for it."""
    source = image_for("soci", tmp_path)
    with blob_server(source, lambda *_: None) as server:
        with serve(source, "soci", tmp_path / "s", store=registry(server), options=QUIET) as served:
            root = inside(served.root, "soci")
            digest = layer_digest(source)
            with ThreadPoolExecutor(40) as pool:
                assert set(pool.map(lambda _: (root / "dir/small").read_bytes(), range(40))) == {b"small"}
            ranges = [request.headers["range"] for request in server.requests if request.path.endswith(digest)]
            assert len(ranges) == len(set(ranges)) <= 2


def test_mount_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A registry without the index: the error says so, the daemon ends, nothing stays mounted."""
    source = image_for("soci", tmp_path)
    with blob_server(source, lambda *_: Answer(404)) as server, pytest.raises((RegistryError, ContentError)):
        with serve(source, "soci", tmp_path / "s", store=registry(server)):
            pass
    assert mount_device(str(tmp_path / "s" / "fuse")) is None


def test_daemon_told_to_end_during_a_fetch_ends(tmp_path: Path) -> None:
    """A registry that never answers does not keep the daemon alive; the waiting read fails."""
    source = image_for("soci", tmp_path)
    let_go, asked = threading.Event(), threading.Event()

    def answer(request: Request, data: bytes) -> Answer | None:
        asked.set()
        let_go.wait(30)
        return None

    with blob_server(source, on_layer(source, answer)) as server, ThreadPoolExecutor(1) as pool:
        with serve(source, "soci", tmp_path / "s", store=registry(server), options=QUIET) as served:
            read = pool.submit(expect_error, inside(served.root, "soci") / "dir/noise", errno.ENOTCONN, errno.EIO,
                               errno.ECONNABORTED, errno.ENOTCONN)  # fmt: skip
            assert asked.wait(20)
            started = time.monotonic()
        let_go.set()
        read.result(20)
        assert time.monotonic() - started < 15
