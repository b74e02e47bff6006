"""Starts with a start pack: read from it where it is right, as fast as one without where it is not, never wrong."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import zstandard

from harness.formats.erofs import image as erofs_image
from harness.formats.erofs import index as form
from harness.formats.erofs.pack import PAGE_BYTES, frame_digest
from harness.formats.erofs.pack_build import read_image
from harness.formats.erofs.packing import open_layers
from harness.lazyfs.compare import differences
from harness.lazyfs.counters import PackCounters
from harness.lazyfs.data import pack_stream
from harness.lazyfs.data.pack import StartPack
from tests.formats.erofs.packs import loaded_pack, put_pack, whole_image
from tests.lazyfs.mounting.test_handover import forget_pages
from tests.lazyfs.support import (
    QUIET,
    File,
    blob_server,
    convert,
    noise,
    overlay,
    registry,
    serve,
    tar_of,
    text,
    unpack,
    write_image,
)
from tests.oci.registry.fault_server import Answer, Request, serve_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.errors import ColdbenchError
    from harness.formats.erofs.pack import Frame
    from harness.oci.layout import LayoutStore
    from harness.oci.store import ImageSource
    from tests.lazyfs.support import Served

NOISE, MORE = noise(1_500_000), noise(2_300_000, "more")
LOWER = tar_of(File("d"), File("d/noise", NOISE), File("d/text", text(300_000)), File("few", b"few"))
UPPER = tar_of(File("more", MORE), File("d"), File("d/.wh.text", b""), File("empty", b""))
IMPATIENT = {**QUIET, "attempts": 1, "retry_first_s": 0.01}


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """An image of two layers, whose index has a pack of all of it, in frames of 1 MiB."""
    found = convert(write_image(tmp_path / "plain", [LOWER, UPPER]), tmp_path / "image", "erofs")
    layout: LayoutStore = found.store  # type: ignore[assignment]
    options = erofs_image.Options(span_bytes=64 << 10, recordings=(whole_image(found),))
    erofs_image.index_image(found, layout, options, copy=False)
    return found


def read_all(served: Served) -> None:
    """Everything reads as it should."""
    assert (served.root / "d/noise").read_bytes() == NOISE
    assert (served.root / "more").read_bytes() == MORE
    assert (served.root / "few").read_bytes() == b"few"


def refusing_layers(source: ImageSource, request: Request) -> Answer | None:
    layers = {layer.digest for layer in source.resolve().layers}
    return Answer(404) if request.path.rpartition("/")[2] in layers else None


def on_pack(source: ImageSource, answer: Callable[[Request, bytes], Answer | None]) -> Callable[..., Answer | None]:
    digest = loaded_pack(source)[0].descriptor.digest
    return lambda request, data: answer(request, data) if request.path.endswith(digest) else None


@pytest.mark.root
def test_a_start_needs_nothing_but_its_pack(source: ImageSource, tmp_path: Path) -> None:
    """With no layer at the registry everything reads right, and again when the kernel has let go of it."""
    made, _, _ = loaded_pack(source)
    layers = [unpack(UPPER, tmp_path / "upper"), unpack(LOWER, tmp_path / "lower")]
    with (
        blob_server(source, lambda request, data: refusing_layers(source, request)) as server,
        overlay(layers, tmp_path / "expected" / "root") as unpacked,
    ):
        with serve(
            source, "erofs", tmp_path / "s", preset="packed", store=registry(server), options=IMPATIENT
        ) as served:
            assert not list(differences(str(unpacked), str(served.root)))
            forget_pages()
            read_all(served)
            pack = served.usage().pack
            assert pack is not None
            assert pack.frames == pack.frames_total == len(made.pack.frames) >= 4
            assert (pack.failures, pack.passed_over, pack.differs) == (0, 0, "")
            assert pack.bytes_pushed > 0
            assert served.usage().spans_fetched == 0


@pytest.mark.root
def test_the_pack_is_held_against_the_layers(source: ImageSource, tmp_path: Path) -> None:
    """After the background fetch the mount is handed over, reads as unpacked, and the pack proved to be right."""
    options = {"background_after_s": 0.0, "inflate_share": 1.0}
    with serve(source, "erofs", tmp_path / "s", preset="packed", options=options) as served:
        read_all(served)
        served.ready()
        assert served.background(60).complete
        usage = served.usage()
        assert usage.handed_over
        assert usage.pack is not None
        assert usage.pack.differs == ""
        forget_pages()
        read_all(served)


@pytest.mark.root
def test_a_pack_that_is_not_the_layers_is_found_out(
    source: ImageSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Signed right but of other bytes: the trial is counted as a digest mismatch, which says where."""

    def other_bytes(frames: list[Frame], blobs: list[bytes]) -> None:
        blobs[1] = zstandard.ZstdCompressor().compress(bytes(frames[1].raw_bytes))
        frames[1] = replace(frames[1], packed_bytes=len(blobs[1]), digest=frame_digest(blobs[1]))

    put_pack(source, other_bytes)
    options = {"background_after_s": 0.0, "inflate_share": 1.0}
    with serve(source, "erofs", tmp_path / "s", preset="packed", options=options) as served:
        served.ready()
        assert served.background(60).complete
        usage = served.usage()
        assert usage.digest_mismatches == 1
        assert usage.pack is not None
        assert "of the image file" in usage.pack.differs
        read_all(served)  # from the local file, which holds the layers' own
    assert capfd.readouterr().err.count("does not match the layers") == 1


def flip_in(part: float) -> Callable[[Request, bytes], Answer | None]:
    def fault(request: Request, data: bytes) -> Answer:
        body = bytearray(serve_range(request, data).body)
        body[int(len(body) * part)] ^= 1
        return Answer(200, bytes(body))

    return fault


ON_THE_WAY: dict[str, tuple[Callable[[Request, bytes], Answer | None], str, int]] = {
    "gone": (lambda request, data: Answer(404), "is not in the registry", 0),
    "refused": (lambda request, data: Answer(500), "500", 0),
    "a wrong table": (flip_in(0.00001), "start pack: table", 0),
    "a wrong frame": (flip_in(0.9), "start pack: frame", 3),
    "cut": (lambda request, data: Answer(200, data[: len(data) * 3 // 4]), "ends after", 2),
    "too long": (lambda request, data: Answer(200, data + b"x"), "longer than", 3),
}


@pytest.mark.root
@pytest.mark.parametrize("fault", ON_THE_WAY)
def test_what_goes_wrong_on_the_way_costs_the_pack_alone(
    fault: str, source: ImageSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log says it in one line, a counter counts, what was right is used, and everything reads right."""
    answer, words, frames = ON_THE_WAY[fault]
    with blob_server(source, on_pack(source, answer)) as server:
        with serve(
            source, "erofs", tmp_path / "s", preset="packed", store=registry(server), options=IMPATIENT
        ) as served:
            read_all(served)
            pack = served.usage().pack
            assert pack is not None
            assert pack.failures == 1
            assert words in pack.failure
            assert pack.frames >= frames
            assert served.usage().read_errors == 0
            assert served.usage().digest_mismatches == 0
    assert capfd.readouterr().err.count("goes on without its pack") == 1


def bomb(frames: list[Frame], blobs: list[bytes]) -> None:
    """A frame of 64 MiB of zeros, which says that it has 1 MiB."""
    blobs[1] = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    frames[1] = replace(frames[1], packed_bytes=len(blobs[1]), digest=frame_digest(blobs[1]))


def no_zstd(frames: list[Frame], blobs: list[bytes]) -> None:
    blobs[1] = noise(5000)
    frames[1] = replace(frames[1], packed_bytes=len(blobs[1]), digest=frame_digest(blobs[1]))


def outside(frames: list[Frame], blobs: list[bytes]) -> None:
    frames[0] = replace(
        frames[0],
        begins=(0, *frames[0].begins[1:]),
        ends=(frames[0].ends[0] - frames[0].begins[0], *frames[0].ends[1:]),
    )


NO_PACKS: dict[str, tuple[Callable[[list[Frame], list[bytes]], None], str, str]] = {
    "bomb": (bomb, "", "does not unpack to"),
    "no zstd": (no_zstd, "", "damaged zstd data"),
    "in the metadata": (outside, "", "outside the layers"),
    "of another image": (lambda frames, blobs: None, "sha256:" + "7" * 64, "belongs to another index"),
}


@pytest.mark.root
@pytest.mark.parametrize("fault", NO_PACKS)
def test_packs_that_are_none(
    fault: str, source: ImageSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every digest of them is right up to the manifest; the start goes on without them, and reads right."""
    change, head, words = NO_PACKS[fault]
    put_pack(source, change, head=head)
    with serve(source, "erofs", tmp_path / "s", preset="packed", options=QUIET) as served:
        read_all(served)
        pack = served.usage().pack
        assert pack is not None
        assert pack.failures >= 1
        assert words in pack.failure
        assert served.usage().read_errors == 0
        assert served.usage().memory_peak_bytes < 160 << 20
    assert capfd.readouterr().err.count("goes on without its pack") == 1


@pytest.mark.root
def test_an_index_without_a_pack_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The preset then starts as `tuned`, and its counters say that no frame came."""
    plain = convert(write_image(tmp_path / "plain", [LOWER, UPPER]), tmp_path / "image", "erofs")
    with serve(plain, "erofs", tmp_path / "s", preset="packed", options=QUIET) as served:
        read_all(served)
        pack = served.usage().pack
        assert pack is not None
        assert (pack.frames_total, pack.frames) == (0, 0)
        assert "has none" in pack.failure
    assert "coldbench index erofs IMAGE --record" in capfd.readouterr().err


@pytest.mark.root
def test_a_stream_that_stands_still_is_not_waited_for(source: ImageSource, tmp_path: Path) -> None:
    """The registry stops in the middle of the pack: reads of what has not come take their spans."""
    go_on = threading.Event()

    def stall(request: Request, data: bytes) -> Answer:
        go_on.wait(60)
        return serve_range(request, data)

    with blob_server(source, on_pack(source, stall)) as server:
        try:
            with serve(
                source, "erofs", tmp_path / "s", preset="packed", store=registry(server), options=QUIET
            ) as served:
                read_all(served)
                usage = served.usage()
                assert usage.pack is not None
                assert usage.pack.frames == 0
                assert usage.pack.passed_over > 0
                assert usage.spans_fetched > 0
        finally:
            go_on.set()


@pytest.mark.root
def test_a_daemon_killed_in_mid_push_fails_reads(source: ImageSource, tmp_path: Path) -> None:
    """What the kernel has reads right, everything else fails, and nothing is left behind."""
    with serve(source, "erofs", tmp_path / "s", preset="packed", options=QUIET) as served:
        begin = (served.root / "more").open("rb")
        begin.read(4096)
        served.kill()
        forget_pages()
        with pytest.raises(OSError, match=r"Input/output error|Transport endpoint"):
            begin.read()
        begin.close()


@pytest.mark.files
@pytest.mark.logs("goes on without its pack")
def test_a_kernel_that_refuses_pages_is_answered_from_frames(source: ImageSource) -> None:
    """NOTIFY_STORE fails: nothing more is pushed, and each read gets its bytes from its frame."""
    made, index, manifest = loaded_pack(source)
    image = source.resolve()
    head, windows = form.index_parts(manifest, image.descriptor.digest)
    layers = open_layers(source, image, index, source.open_blob(windows) if windows else None)
    file = bytearray(index.image_bytes)
    for layer in index.layers:
        stop = -(-(layer.start + layer.size) // PAGE_BYTES) * PAGE_BYTES
        file[layer.start : stop] = read_image(index, layers, layer.start, stop)

    def refuse(offset: int, data: list[bytes | memoryview]) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    async def read_everything() -> PackCounters:
        counters = PackCounters()
        pack = StartPack(source.store, made.descriptor, counters, refuse)
        pack.bind(head.digest, index)
        pack.opened()
        pack.start()
        for begin, end in made.pack.ranges():
            data = pack.answer(begin, end - begin)
            if data is None:
                assert pack.may_have(begin, end - begin)
                data = await pack.wait(begin, end - begin)
            assert data is not None
            assert bytes(data) == file[begin:end]
        with trio.fail_after(20):
            while not counters.failures:
                await trio.sleep(0.01)
        pack.close()
        return counters

    counters = trio.run(read_everything)
    assert counters.bytes_pushed == 0
    assert "does not take its pages" in counters.failure


@pytest.mark.files
def test_a_long_stream_makes_way_for_reads_that_wait(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rest takes long it looks whether reads wait for the registry, and goes on in the end all the same."""
    made, index, manifest = loaded_pack(source)
    head, _ = form.index_parts(manifest, source.resolve().descriptor.digest)
    asked: dict[float, int] = {}
    for slow_s in (1e9, 0.0):
        monkeypatch.setattr(pack_stream, "SLOW_S", slow_s)
        monkeypatch.setattr(pack_stream, "PAUSE_S", 0.01)
        came: list[int] = []
        done = threading.Event()
        asked[slow_s] = 0

        def others_wait(slow_s: float = slow_s) -> bool:
            asked[slow_s] += 1
            return True

        def take(number: int, packed: bytes, came: list[int] = came) -> None:
            came.append(number)

        def end(error: ColdbenchError | None, done: threading.Event = done) -> None:
            done.set()

        stream = pack_stream.PackStream(
            source.store, made.descriptor, lambda pack: None, take, end, others_wait=others_wait
        )
        stream.bind(head.digest, index)
        stream.start()
        assert done.wait(30)
        assert came == list(range(len(made.pack.frames)))
    assert asked[1e9] == 0
    assert asked[0.0] > 0
