"""What is inflated goes to the kernel before it asks: whole pages, of verified bytes, and nothing is lost by it."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.lazyfs.compare import compare, survey
from harness.lazyfs.data.memory_cache import Resident
from harness.lazyfs.fuse.kernel_pages import PAGE_BYTES, KernelPages, Piece, cut
from tests.lazyfs.data.test_store import TAR as STORE_TAR
from tests.lazyfs.data.test_store import run
from tests.lazyfs.mounting.test_handover import forget_pages
from tests.lazyfs.support import QUIET, File, convert, serve, tar_of, text, unpack, write_image

if TYPE_CHECKING:
    from pathlib import Path

    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.store import Store
    from tests.lazyfs.data.test_store import Source

TAR = tar_of(*(File(f"file{n}", text(3_000, n)) for n in range(400)), File("large", text(2_000_000, 7)))


@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(0, 50), st.integers(0, 50))
def test_cut_takes_bytes_across_pieces(pieces: list[bytes], begin: int, end: int) -> None:
    """As if they had been joined."""
    assert b"".join(cut(pieces, begin, end)) == b"".join(pieces)[begin : max(begin, end)]


class File4096:
    """A file that takes whole pages, and can be told to be gone or broken."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.error: int | None = None
        self.gone = False

    def store(self, offset: int, data: list[memoryview]) -> bool:
        if self.error is not None:
            raise OSError(self.error, "told to")
        whole = b"".join(data)
        assert offset % PAGE_BYTES == len(whole) % PAGE_BYTES == 0
        for at in range(0, len(whole), PAGE_BYTES):
            self.pages[offset + at] = whole[at : at + PAGE_BYTES]
        return not self.gone


def piece(begin: int, end: int, layer: int = 0) -> Piece:
    return Piece((layer, 0), Resident(b"stored"), begin, end)


def test_only_whole_pages_are_stored_and_told() -> None:
    """The edges of a piece stay with the unit: a part of a page would not become valid."""
    file = File4096()
    pages = KernelPages(file.store, [8192, 512])
    data = bytes(range(256)) * 80
    for _ in range(6):  # the latest are kept back
        pages.push(piece(1000, 1000 + len(data)), [data[:7000], data[7000:]])
    pages.push(piece(10, 20), [data[:10]])  # no whole page
    pages.push(piece(0, 8000, layer=1), [data[:8000]])
    pages.close()
    assert file.pages[8192 + 4096] == data[3096:7192]
    assert sorted(file.pages) == [4096, 12288, 16384, 20480, 24576]
    assert file.pages[4096] == data[4096 - 512 : 8192 - 512]
    told = pages.stored()
    assert {(found.begin, found.end) for found in told} == {(4096, 20480)}
    assert 0 < len(told) < 7


@pytest.mark.logs("storing pages")
@pytest.mark.parametrize("way", ["gone", "error"])
def test_what_is_not_stored_is_not_told(way: str) -> None:
    """A file that is gone, or a kernel that refuses: the bytes stay where they are, and the thread does not end."""
    file = File4096()
    file.gone, file.error = way == "gone", errno.ENOMEM if way == "error" else None
    pages = KernelPages(file.store, [0])
    for _ in range(20):
        pages.push(piece(0, 8192), [bytes(8192)])
    pages.close(20)
    assert pages.stored() == []
    assert pages.bytes_stored == 0


class AtOnce(KernelPages):
    """Without waiting for the thread."""

    def push(self, piece: Piece, data: list[bytes]) -> None:
        self._hand_over(piece, data)


def test_reads_of_what_was_released_are_inflated_again() -> None:
    """The kernel may drop its pages: then the stored bytes give them back, without another request."""

    async def work(store: Store, layer: Layer, source: Source) -> None:
        file = File4096()
        store.pages = AtOnce(file.store, [0])
        for _ in range(3):
            for offset in range(0, layer.size, 50_000):
                size = min(50_000, layer.size - offset)
                assert bytes(await store.read(layer, offset, size, layer.size)) == STORE_TAR[offset : offset + size]
        for at, page in file.pages.items():
            assert page == STORE_TAR[at : at + PAGE_BYTES]
        assert sum(resident.held for resident in store.residency.memory.residents()) < layer.size * 3 // 4
        assert store.residency.memory.used == sum(resident.cost for resident in store.residency.memory.residents())
        assert len(source.ranges) == len(set(source.ranges)) <= len(layer)
        assert store.counters.bytes_inflated > layer.size

    run(work)


@pytest.mark.root
def test_the_rest_of_a_span_costs_no_request(tmp_path: Path) -> None:
    """One byte read brings a span to the kernel: its other files are read without the daemon."""
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs", span_bytes=1 << 20)
    with serve(source, "erofs", tmp_path / "s", options=QUIET) as served:
        (served.root / "file0").read_bytes()
        for _ in range(3000):
            if served.usage().bytes_pushed > 500_000:
                break
            threading.Event().wait(0.01)
        asked = []
        for first in (0, 40, 80):  # the best of three: anybody on the host may drop the kernel's caches in between
            before = served.count("read")
            for number in range(first, first + 40):
                assert (served.root / f"file{number}").read_bytes() == text(3_000, number)
            asked.append(served.count("read") - before)
        assert min(asked) == 0


@pytest.mark.root
@pytest.mark.parametrize("memory_bytes", [64 << 20, 1 << 20])
def test_every_byte_is_right_with_and_without_the_kernels_pages(memory_bytes: int, tmp_path: Path) -> None:
    """Pages that were pushed, pages that were dropped again, units that had to leave memory: always the same tree."""
    unpacked = survey(str(unpack(TAR, tmp_path / "unpacked")))
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs")
    with serve(source, "erofs", tmp_path / "s", options={**QUIET, "memory_bytes": memory_bytes}) as served:
        for _ in range(3):
            assert not list(compare(unpacked, survey(str(served.root))))
            forget_pages()
        assert served.usage().bytes_pushed > 0


@pytest.mark.root
def test_a_trace_sees_every_read(tmp_path: Path) -> None:
    """Nothing is pushed then: what the kernel has already, it would not ask for."""
    source = convert(write_image(tmp_path / "plain", [TAR]), tmp_path / "image", "erofs", span_bytes=1 << 20)
    with serve(source, "erofs", tmp_path / "s", options=QUIET, trace=True) as served:
        for number in (0, 300):
            (served.root / f"file{number}").read_bytes()
        assert served.usage().bytes_pushed == 0
        paths = [touch.path for touch in served.touches()]
        assert {"/file0", "/file300"} <= set(paths)
        assert "/large" not in paths
