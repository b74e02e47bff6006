"""What the kernel asks, and what it does not ask again; what crosses the wire, and when."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from harness.lazyfs.messages import FileRange
from harness.model.modes import lazy_policy
from harness.oci.descriptor import OCI_LAYER_ZSTD
from tests.lazyfs.support import MODES, QUIET, File, blob_server, convert, registry, serve, tar_of, text, write_image
from tests.oci.registry.fault_server import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from harness.oci.store import ImageSource
    from tests.lazyfs.support import Served
    from tests.oci.registry.fault_server import Request

pytestmark = pytest.mark.root

FILES = {f"d{n % 5}/file{n}": text(1000 + 997 * n, n) for n in range(60)} | {"large": text(1_500_000, 99)}
LAYER = tar_of(*(File(f"d{n}") for n in range(5)), *(File(name, data) for name, data in FILES.items()))


def image_for(mode: str, place: Path, **options: Any) -> ImageSource:
    return convert(write_image(place / "image", [LAYER]), place / mode, mode, **options)


def inside(served: Served) -> str:
    return str(served.root / "0") if served.layers else str(served.root)


def touch_all(root: str) -> None:
    """Stat, list and read everything, and ask for attributes that are not there."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            os.stat(path)
            assert not os.path.exists(path + ".missing")
            with open(path, "rb") as file:
                data = file.read()
            assert data == FILES[os.path.relpath(path, root)]
            try:
                assert os.listxattr(path) == []
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise


def fuse(served: Served) -> dict[str, int]:
    return {name: value.count for name, value in served.usage().fuse.items()}


def second_touch(served: Served) -> set[str]:
    """The kinds of requests that touching everything again causes; the best of four passes, since anybody on the host
    may drop the kernel's caches in between."""
    kinds: set[str] = set()
    for _ in range(4):
        before = fuse(served)
        touch_all(inside(served))
        after = fuse(served)
        kinds = {name for name in after if after[name] != before.get(name, 0)}
        if not kinds & {"lookup", "getattr", "read"}:
            break
    return kinds


@pytest.mark.parametrize("mode", ["soci", "estargz"])
def test_second_touch_of_a_tree_costs_nothing(mode: str, tmp_path: Path) -> None:
    """Entries, attributes, failed lookups, listings and pages stay in the kernel; opening asks nobody."""
    with serve(image_for(mode, tmp_path), mode, tmp_path / "s", options=QUIET) as served:
        touch_all(inside(served))
        first = fuse(served)
        assert second_touch(served) == set()
        assert first["lookup"] > 0
        assert first["read"] > 0


def test_xattr_calls_end_after_the_first(tmp_path: Path) -> None:
    """Where no file has any, one answer stops the kernel from asking for all files."""
    with serve(image_for("soci", tmp_path), "soci", tmp_path / "s", options=QUIET) as served:
        touch_all(inside(served))
        assert served.count("listxattr") <= 1
        with pytest.raises(OSError, match="not supported"):
            os.getxattr(f"{inside(served)}/large", "user.any")
        with pytest.raises(OSError, match="not supported"):
            os.getxattr(f"{inside(served)}/d0/file0", "user.any")
        assert served.count("getxattr") <= 1


def test_second_touch_of_a_blob_costs_nothing(tmp_path: Path) -> None:
    """Reads are the only requests but for the opening of each loop device, and the second pass makes none."""
    devices = lazy_policy("erofs", "tuned").devices
    with serve(image_for("erofs", tmp_path), "erofs", tmp_path / "s", options=QUIET) as served:
        touch_all(inside(served))
        first = fuse(served)
        assert second_touch(served) == set()
        assert first["read"] > 10
        assert sum(count for name, count in first.items() if name != "read") <= 4 + 2 * devices


def test_reference_timeouts_make_the_kernel_ask_again(tmp_path: Path) -> None:
    """The preset that imitates the reference daemon promises nothing for longer than its second."""
    with serve(image_for("soci", tmp_path), "soci", tmp_path / "s", preset="reference", options={"background": False,
               "entry_timeout_s": 0.0, "attr_timeout_s": 0.0, "negative_timeout_s": 0.0}) as served:  # fmt: skip
        path = f"{inside(served)}/d0/file0"
        os.stat(path)
        before = served.count("lookup")
        os.stat(path)
        assert served.count("lookup") > before


@pytest.mark.parametrize("mode", MODES)
def test_reads_fetch_only_what_they_need(mode: str, tmp_path: Path) -> None:
    """One small file of a big layer brings a small part of it over the wire."""
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options={**QUIET, "block_bytes": 0}) as served:
        with open(f"{inside(served)}/d0/file0", "rb") as file:
            file.read()
        stats = served.usage()
        assert 0 < stats.bytes_fetched < source.resolve().layers[0].size / 2
        assert stats.spans_fetched < stats.spans_total


@pytest.mark.parametrize("mode", MODES)
def test_trace_names_files_in_first_touch_order(mode: str, tmp_path: Path) -> None:
    """Paths as the container sees them, in the order of their first read, with the extent that was read."""
    order = ["d3/file58", "large", "d1/file1", "d2/file57"]
    with serve(image_for(mode, tmp_path), mode, tmp_path / "s", options=QUIET, trace=True) as served:
        for name in order:
            with open(f"{inside(served)}/{name}", "rb") as file:
                assert file.read() == FILES[name]
        touches = served.touches()
        paths = [touch.path for touch in touches]
        named = [path.strip("/") for path in paths if path.strip("/") in order]
        # A blob's reads are of blocks, which neighbours share: there the order is that of the blocks.
        assert (sorted(named) if mode == "erofs" else named) == (sorted(order) if mode == "erofs" else order)
        by_path = {touch.path: touch for touch in touches}
        assert by_path["/large"].offset == 0
        assert by_path["/large"].size == len(FILES["large"])
        assert all(touch.t_s >= 0 and touch.layer == 0 for touch in touches)
        # What was read in one go is one read, and the reads make up the touch.
        for touch in touches:
            assert touch.offset == min(offset for offset, _, _ in touch.reads)
            assert touch.offset + touch.size == max(offset + size for offset, size, _ in touch.reads)
        if mode != "erofs":
            assert [(offset, size) for offset, size, _ in by_path["/large"].reads] == [(0, len(FILES["large"]))]


@pytest.mark.parametrize("mode", MODES)
def test_prefetch_list_saves_the_requests_of_the_reads(mode: str, tmp_path: Path) -> None:
    """What the list names is there before it is read, in few requests; unknown names do no harm."""
    names = ["/large", "/d1/file1", "/d4/file59", "/nowhere", "/d0"]
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options={"background": False}, prefetch=names) as served:
        wait_until_quiet(served)
        before = served.usage()
        for name in names[:3]:
            with open(f"{inside(served)}{name}", "rb") as file:
                assert file.read() == FILES[name.strip("/")]
        after = served.usage()
        # The kernel reads ahead past a file's end in a blob, so there a neighbour may still be fetched.
        assert after.requests - before.requests <= (2 if mode == "erofs" else 0)
        assert before.requests < before.spans_fetched or before.spans_fetched <= 3


@pytest.mark.parametrize("mode", MODES)
def test_recorded_reads_bring_no_more_than_they_name(mode: str, tmp_path: Path) -> None:
    """A part of a file brings the units under that part, and a read of it asks for nothing any more."""
    reads = (FileRange("/large", 700_416, 8192), FileRange("/large", 9_000_000, 10), FileRange("/nowhere", 0, 10))
    source = image_for(mode, tmp_path)
    with serve(source, mode, tmp_path / "s", options={"background": False}, reads=reads) as served:
        wait_until_quiet(served)
        before = served.usage()
        assert 1 <= before.spans_fetched <= 2
        file = os.open(f"{inside(served)}/large", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file, 8192, 700_416) == FILES["large"][700_416:708_608]
        finally:
            os.close(file)
        after = served.usage()
        assert after.requests - before.requests <= (1 if mode == "erofs" else 0), "a blob's pages read ahead of it"


def wait_until_quiet(served: Served) -> None:
    """Until the daemon has reported the end of its prefetch."""
    for _ in range(400):
        if any(span.name == "prefetch" for span in served.background(0.02).spans):
            return
    pytest.fail("the prefetch did not end")


def test_landmark_prefetch_fetches_the_prioritised_files(tmp_path: Path) -> None:
    """The beginning of an eStargz blob up to its landmark comes without anybody asking, and nothing else does."""
    source = image_for("estargz", tmp_path, prioritized=("d3/file3", "d2/file52"))
    with serve(source, "estargz", tmp_path / "s", options={"background": False}) as served:
        wait_until_quiet(served)
        before = served.usage()
        assert before.spans_fetched == 2
        for name in ("d3/file3", "d2/file52"):
            with open(f"{inside(served)}/{name}", "rb") as file:
                assert file.read() == FILES[name]
        assert served.usage().requests == before.requests


def test_soci_prefetch_artefact_is_followed(tmp_path: Path) -> None:
    """The spans it names come without anybody asking."""
    source = image_for("soci", tmp_path, prefetch_files=("d3/file3", "d2/file52"))
    with serve(source, "soci", tmp_path / "s", options={"background": False}) as served:
        wait_until_quiet(served)
        before = served.usage()
        assert 0 < before.spans_fetched <= 4
        for name in ("d3/file3", "d2/file52"):
            with open(f"{inside(served)}/{name}", "rb") as file:
                assert file.read() == FILES[name]
        assert served.usage().requests == before.requests


@pytest.mark.parametrize("mode", MODES)
def test_background_fetch_makes_the_registry_dispensable(mode: str, tmp_path: Path) -> None:
    """It begins at readiness, not before, and at its end every byte is local."""
    source = image_for(mode, tmp_path)
    gone: list[bool] = []

    def fault(request: Request, data: bytes) -> Answer | None:
        return Answer(500) if gone else None

    with blob_server(source, fault) as server:
        options = {"background_after_s": 0.0, "background_interval_s": 0.0, "attempts": 1, "memory_bytes": 1 << 20}
        with serve(source, mode, tmp_path / "s", store=registry(server), options=options) as served:
            assert served.background(0.1).complete is False
            frozen = served.usage()
            served.ready()
            answer = served.background(30)
            assert answer.complete is True
            assert answer.spans[0].name == "background"
            stats = served.usage()
            assert stats.bytes_fetched_before_ready == frozen.bytes_fetched < stats.bytes_fetched
            assert stats.spans_fetched == stats.spans_total
            gone.append(True)
            touch_all(inside(served))


def test_eager_has_everything_before_the_mount(tmp_path: Path) -> None:
    """The full pull that unpacks nothing: after the mount the layer is never asked for again."""
    source = image_for("erofs", tmp_path)
    gone: list[bool] = []
    with blob_server(source, lambda *_: Answer(500) if gone else None) as server:
        store = registry(server)
        with serve(source, "erofs", tmp_path / "s", store=store, preset="eager") as served:
            gone.append(True)
            stats = served.usage()
            assert stats.spans_fetched == stats.spans_total
            touch_all(inside(served))
            assert served.usage().requests == stats.requests


def test_layer_without_a_way_in_is_fetched_whole(tmp_path: Path) -> None:
    """A zstd layer under EROFS: one request for all of it before the mount, counted as not lazy."""
    blob = zstandard.ZstdCompressor(level=3).compress(LAYER)
    image = write_image(tmp_path / "image", [LAYER], [blob], media_type=OCI_LAYER_ZSTD)
    source = convert(image, tmp_path / "erofs", "erofs")
    with serve(source, "erofs", tmp_path / "s", options=QUIET) as served:
        stats = served.usage()
        assert (stats.layers_lazy, stats.layers_unpacked) == (0, 1)
        assert stats.bytes_fetched == len(blob)
        touch_all(inside(served))


def test_files_can_be_mapped_and_executed(tmp_path: Path) -> None:
    """mmap and execve work on the mount, setuid bits and all."""
    import mmap
    import subprocess

    with open("/bin/true", "rb") as file:
        program = file.read()
    tar = tar_of(File("true", program, mode=0o4755), File("data", FILES["large"]))
    for mode in MODES:
        source = convert(write_image(tmp_path / f"i-{mode}", [tar]), tmp_path / mode, mode)
        with serve(source, mode, tmp_path / f"s-{mode}", options=QUIET) as served:
            assert subprocess.run([f"{inside(served)}/true"], check=False).returncode == 0
            with open(f"{inside(served)}/data", "rb") as file:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
                    assert hashlib.sha256(area).digest() == hashlib.sha256(FILES["large"]).digest()
