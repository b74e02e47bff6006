"""A reader that waits for the registry, mode erofs: whom it holds up, and whom it does not."""

from __future__ import annotations

import threading
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from harness.formats.erofs.device import device_starts
from harness.lazyfs.data.blob_image import BlobImage
from harness.lazyfs.messages import FileRange
from harness.lazyfs.plan import plan_blob
from tests.lazyfs.support import QUIET, File, blob_server, convert, noise, registry, serve, tar_of, write_image

if TYPE_CHECKING:
    from pathlib import Path

    from harness.oci.store import ImageSource
    from tests.oci.registry.fault_server import Answer, Request

pytestmark = pytest.mark.root

DEVICES = 7
NEAR_BYTES = 384 << 10
"""A request of the kernel's for bytes that it reads ahead, which may touch what is waited for, and a span."""


def places_of(source: ImageSource, names: list[str]) -> tuple[dict[str, tuple[int, int]], tuple[int, ...]]:
    """Where in the image file each file's bytes begin and end, and where the layers' loop devices begin."""
    image = BlobImage.open(source.store, plan_blob(source, source.resolve()))
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        ((layer, begin, end),) = image.extents_of([FileRange(f"/{name}")])
        base = image.index.layer_starts[layer]
        found[name] = base + begin, base + end
    return found, device_starts(image.index.layer_starts[0], image.index.image_bytes, DEVICES)


@pytest.mark.parametrize("layers", [1, 3, 9])
def test_a_reader_that_waits_holds_up_its_own_device_and_neighbours_at_most(layers: int, tmp_path: Path) -> None:
    """The registry does not answer for one file: what the kernel has, and what is absent on other devices and not right
    beside it, is read meanwhile, whether the image has fewer layers than devices or more."""
    files = {f"l{n % layers}/f{n}": noise(150_000, str(n)) for n in range(36)}
    tars = [tar_of(*(File(k, v) for k, v in files.items() if k.startswith(f"l{n}/"))) for n in range(layers)]
    source = convert(write_image(tmp_path / "image", tars), tmp_path / "erofs", "erofs")
    places, starts = places_of(source, list(files))
    blocked = next(name for name in files if name.endswith("f18"))
    first, last = (bisect_right(starts, place) - 1 for place in places[blocked])
    low, high = starts[first] - NEAR_BYTES, [*starts, 1 << 40][last + 1] + NEAR_BYTES
    others = [name for name, (begin, end) in places.items() if end <= low or begin >= high]
    local = next(name for name, (begin, end) in places.items() if low < begin and end < high and name != blocked)
    assert len(others) > len(files) // 4
    image = BlobImage.open(source.store, plan_blob(source, source.resolve()))
    ((number, begin, end),) = image.extents_of([FileRange(f"/{blocked}")])
    units = image.units[number]
    wanted = {units.extent(bisect_right(units.starts, place) - 1)[0] for place in range(begin, end, 16 << 10)}
    digest = source.resolve().layers[number].digest
    asked, let_go, armed = threading.Event(), threading.Event(), threading.Event()

    def fault(request: Request, data: bytes) -> Answer | None:
        span = request.range
        if armed.is_set() and request.path.endswith(digest) and span is not None and span[0] in wanted:
            asked.set()
            let_go.wait(300)
        return None

    options = {**QUIET, "readahead_units": 0, "block_bytes": 0, "merge_bytes": 0, "stream": False, "in_flight": 16}
    with blob_server(source, fault) as server, ThreadPoolExecutor(17) as pool:
        with serve(source, "erofs", tmp_path / "s", store=registry(server), options=options) as served:
            assert (served.root / local).read_bytes() == files[local]
            armed.set()
            try:
                waiting = pool.submit((served.root / blocked).read_bytes)
                assert asked.wait(30)
                assert (served.root / local).read_bytes() == files[local], "the kernel has its pages"
                reads = {name: pool.submit((served.root / name).read_bytes) for name in others}
                assert {name: read.result(60) for name, read in reads.items()} == {n: files[n] for n in others}
                assert not waiting.done()
            finally:
                let_go.set()
            assert waiting.result(60) == files[blocked]
