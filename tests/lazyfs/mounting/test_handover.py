"""When all bytes are local, the kernel reads them from the cache file, and the daemon is out of the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness.lazyfs.compare import compare, survey
from harness.lazyfs.data.disk_cache import SparseFile
from harness.lazyfs.mounting.loop_device import LoopDevice
from tests.lazyfs.support import File, blob_server, convert, noise, registry, serve, tar_of, text, unpack, write_image
from tests.oci.registry.fault_server import Answer, Request

pytestmark = pytest.mark.root

TAR = tar_of(
    File("d"), File("d/text", text(900_000)), File("d/noise", noise(300_000)), File("d/small", b"few"),
    File("empty", b""), File("link", target="d/text"), File("large", text(3_000_000, seed=7)),
)  # fmt: skip


def forget_pages() -> None:
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def test_after_the_background_fetch_fuse_is_out_of_the_way(tmp_path: Path) -> None:
    """Everything reads as unpacked, with no page cached and no request made; and then without the daemon."""
    unpacked = survey(str(unpack(TAR, tmp_path / "unpacked")))
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    options = {"background_after_s": 0.0, "inflate_share": 1.0}
    with serve(source, "erofs", tmp_path / "s", options=options) as served:
        with open(f"{served.root}/large", "rb") as file:
            begin = file.read(4096)
        served.ready()
        assert served.background(60).complete
        stats = served.usage()
        assert stats.handed_over
        assert {"read", "release"} <= set(stats.fuse)
        forget_pages()
        assert not list(compare(unpacked, survey(str(served.root))))
        assert served.usage().fuse.get("read") == stats.fuse["read"]
        served.kill()
        forget_pages()
        with open(f"{served.root}/large", "rb") as file:
            assert file.read(4096) == begin


def test_the_handover_follows_an_outage(tmp_path: Path) -> None:
    """The registry refuses everything for a while: absent bytes fail, the log says so once, then all is handed over."""
    unpacked = survey(str(unpack(TAR, tmp_path / "unpacked")))
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    away = threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        return Answer(503) if away.is_set() else None

    options = {
        "background_after_s": 0.0, "background_retry_s": 0.05, "inflate_share": 1.0, "attempts": 1,
        "retry_first_s": 0.01,
    }  # fmt: skip
    with blob_server(source, fault) as server:
        with serve(source, "erofs", tmp_path / "s", store=registry(server), options=options) as served:
            away.set()
            served.ready()
            with pytest.raises(OSError, match="Input/output error"):
                Path(f"{served.root}/large").read_bytes()
            assert not served.background(0.3).complete
            assert served.usage().read_errors
            away.clear()
            assert served.background(60).complete
            assert served.usage().handed_over
            served.kill()
            forget_pages()
            assert not list(compare(unpacked, survey(str(served.root))))


def test_a_cache_that_was_changed_is_fetched_again(tmp_path: Path) -> None:
    """What the disk changed of the stored bytes is noticed before it is handed over."""
    unpacked = survey(str(unpack(TAR, tmp_path / "unpacked")))
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    away = threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        return Answer(503) if away.is_set() and request.headers["range"].startswith("bytes=0-") is False else None

    options = {
        "background_after_s": 0.0, "background_retry_s": 0.05, "inflate_share": 1.0, "attempts": 1,
        "retry_first_s": 0.01, "prefetch": False, "merge_bytes": 64 << 10,
    }  # fmt: skip
    with blob_server(source, fault) as server:
        with serve(source, "erofs", tmp_path / "s", store=registry(server), options=options) as served:
            away.set()
            served.ready()
            assert not served.background(0.5).complete
            for path in Path(f"/proc/{served.daemon}/fd").iterdir():
                if ".packed" in os.readlink(path) and (size := path.stat().st_size):
                    path.write_bytes(bytes(size))
            away.clear()
            assert served.background(60).complete
            assert served.usage().handed_over
            forget_pages()
            assert not list(compare(unpacked, survey(str(served.root))))


def test_a_full_pull_is_handed_over_at_once(tmp_path: Path) -> None:
    """``eager`` has all bytes before it is mounted: nothing is ever read through FUSE, not by the mount itself."""
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    with serve(source, "erofs", tmp_path / "s", preset="eager") as served:
        assert served.usage().handed_over
        forget_pages()
        with open(f"{served.root}/large", "rb") as file:
            assert file.read() == text(3_000_000, seed=7)
        assert "read" not in served.usage().fuse


def test_names_and_attributes_never_reach_the_daemon(tmp_path: Path) -> None:
    """The metadata is a local file: walking the tree and reading every attribute needs no request."""
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    with serve(source, "erofs", tmp_path / "s", options={"background": False}) as served:
        forget_pages()
        paths = [entry.path for entry in os.scandir(served.root)] + [f"{served.root}/d/text"]
        assert {os.path.basename(path) for path in paths} >= {"d", "empty", "link", "large", "text"}
        assert os.stat(f"{served.root}/large").st_size == 3_000_000
        assert "read" not in served.usage().fuse


def test_without_a_loop_device_everything_goes_on_through_fuse(tmp_path: Path) -> None:
    """Switched off, EROFS is mounted from the file, and the background fetch hands nothing over."""
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    with serve(source, "erofs", tmp_path / "s", options={"handover": False, "background_after_s": 0.0}) as served:
        served.ready()
        assert served.background(60).complete
        assert not served.usage().handed_over
        with open(f"{served.root}/large", "rb") as file:
            assert file.read() == text(3_000_000, seed=7)


def test_loop_device_is_free_after_its_last_use(tmp_path: Path) -> None:
    """A device nobody mounted is given back when it is closed."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = LoopDevice(str(image))
    number = os.path.basename(device.path)
    assert os.path.exists(f"/sys/block/{number}/loop/backing_file")
    device.close()
    assert not os.path.exists(f"/sys/block/{number}/loop/backing_file")


def test_parts_of_a_file_are_files_of_their_own(tmp_path: Path) -> None:
    """A part counts from its own beginning; what it writes stands in the whole."""
    whole = SparseFile(str(tmp_path), "whole")
    part = whole.part(1000)
    assert part.write(24, b"here")
    assert whole.read(1024, 4) == part.read(24, 4) == b"here"
    part.close()
    assert whole.read(1024, 4) == b"here"
    whole.close()
