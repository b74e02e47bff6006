"""The reference presets' requests, counted over sources in memory and over a layout on disk."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import RegistryError
from harness.lazyfs.data.disk_cache import SparseFile
from harness.lazyfs.data.regions import RegionSource
from harness.lazyfs.data.sources import open_layer
from harness.lazyfs.plan import plan_layers
from harness.model.modes import lazy_policy
from harness.oci.layout import LayoutStore
from tests.lazyfs.support import File, convert, noise, tar_of, write_image

if TYPE_CHECKING:
    from pathlib import Path

BLOB = noise(1_030, "regions")


class Source:
    """A blob in memory that notes its ranges as (offset, end) and fails while ``error`` is set."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.lock = threading.Lock()

    def read_range(self, offset: int, size: int) -> bytes:
        with self.lock:
            self.ranges.append((offset, offset + size))
        if self.error is not None:
            raise self.error
        return BLOB[offset : offset + size]


def opened(tmp_path: Path, step: int = 0) -> tuple[Source, RegionSource]:
    source = Source()
    return source, RegionSource(source, len(BLOB), 100, step, SparseFile(str(tmp_path), "regions"))


@pytest.mark.files
def test_reads_are_rounded_out_to_regions_and_asked_once(tmp_path: Path) -> None:
    """A range costs its regions, those that are local nothing, and a hole between them one request."""
    source, regions = opened(tmp_path)
    assert regions.read_range(150, 100) == BLOB[150:250]
    assert regions.read_range(199, 2) == BLOB[199:201]
    assert regions.read_range(1_025, 5) == BLOB[1_025:]
    assert source.ranges == [(100, 300), (1_000, 1_030)]
    assert regions.read_range(50, 500) == BLOB[50:550]
    assert source.ranges[2:] == [(0, 100), (300, 600)]


@pytest.mark.files
def test_long_reads_go_in_steps_and_bring_does_not(tmp_path: Path) -> None:
    """A read of several steps asks for each step's missing regions; what is brought comes in one request."""
    source, regions = opened(tmp_path, step=250)
    assert regions.read_range(20, 600) == BLOB[20:620]
    assert source.ranges == [(0, 300), (300, 600), (600, 700)]
    regions.bring(0, 1_030)
    assert source.ranges[3:] == [(700, 1_030)]
    assert regions.read_range(0, 1_030) == BLOB
    assert len(source.ranges) == 4


@pytest.mark.files
def test_many_threads_fetch_a_region_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first."""
    source, regions = opened(tmp_path)
    chooser = random.Random(7)
    wanted = [(start, chooser.randint(1, 1_030 - start)) for start in (chooser.randrange(1_030) for _ in range(300))]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda place: regions.read_range(*place), wanted))
    assert got == [BLOB[start : start + size] for start, size in wanted]
    assert sum(end - start for start, end in source.ranges) <= len(BLOB)


@pytest.mark.files
def test_a_failed_region_is_asked_again(tmp_path: Path) -> None:
    """The error reaches the reader, and nothing of the request counts as local."""
    source, regions = opened(tmp_path)
    source.error = RegistryError("gone")
    with pytest.raises(RegistryError):
        regions.read_range(0, 10)
    source.error = None
    assert regions.read_range(0, 10) == BLOB[:10]
    assert source.ranges == [(0, 100), (0, 100)]


def test_without_a_disk_nothing_is_kept() -> None:
    """Each read then fetches its regions anew."""
    source = Source()
    regions = RegionSource(source, len(BLOB), 100, 0, None)
    assert regions.read_range(10, 10) == regions.read_range(10, 10) == BLOB[10:20]
    assert source.ranges == [(0, 100), (0, 100)]


class Counting(LayoutStore):
    """A layout that notes what is asked of its blobs."""

    asked: list[tuple[Any, ...]]

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        self.asked.append((digest, offset, size))
        return super().get_range(digest, offset, size)

    def blob_size(self, digest: str) -> int | None:
        self.asked.append((digest, "size"))
        return super().blob_size(digest)


@pytest.mark.files
@pytest.mark.parametrize("mode", ["soci", "estargz"])
def test_reference_asks_what_the_real_daemons_ask_of_a_layer(mode: str, tmp_path: Path) -> None:
    """Probe, then HEAD and the TOC in whole regions (stargz), or gzip header and the whole zTOC (SOCI)."""
    source = convert(write_image(tmp_path / "plain", [tar_of(File("a", noise(300_000)))]), tmp_path / mode, mode)
    (layer,) = plan_layers(source, source.resolve(), mode).lazy
    store = Counting(source.store.where.removeprefix("oci:").partition(":")[0])
    store.asked = []
    digest, size = layer.digest, layer.size
    with_regions = SparseFile(str(tmp_path), "regions")
    open_layer(store, layer, lazy_policy(mode, "reference"), with_regions)
    if mode == "soci":
        assert store.asked == [(digest, 0, 2), (digest, 0, 10), (layer.index_digest, 0, layer.index_size)]
        return
    assert store.asked[:2] == [(digest, 0, 2), (digest, "size")]
    regions = store.asked[2:]
    assert 1 <= len(regions) <= 2
    assert all(offset % 50_000 == 0 and (end % 50_000 == 0 or end == size) for offset, end in
               ((offset, offset + length) for _, offset, length in regions))  # fmt: skip
