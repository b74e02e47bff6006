"""Micro-benchmarks of mode erofs: merging layers, writing metadata, loading the index, per 43 000 entries."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.formats.erofs.head import decode_head, encode_index
from harness.formats.erofs.merge import MergedTree, merge_layers
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.erofs.writer import ErofsMetadata, write_metadata
from tests.formats.erofs.test_writer import big_table

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from harness.formats.table import LayerTable

ENTRIES = 43_000


@cache
def table() -> LayerTable:
    return big_table(
        [b"usr/lib/python3/package%03d/module%02d/file_%d.py" % (n // 200, n // 20, n) for n in range(ENTRIES)]
    )


@cache
def tree() -> MergedTree:
    return merge_layers([table()])


@cache
def metadata() -> ErofsMetadata:
    return write_metadata(tree(), [0])


def test_merge(benchmark: BenchmarkFixture) -> None:
    """One layer's table to the merged tree."""
    assert len(benchmark(merge_layers, [table()])) > ENTRIES


def test_write(benchmark: BenchmarkFixture) -> None:
    """The merged tree to metadata."""
    assert benchmark(write_metadata, tree(), [0]).data == metadata().data


def test_load(benchmark: BenchmarkFixture) -> None:
    """The head of an index to what a start needs: what stands between artefacts fetched and mounted."""
    head, _ = encode_index(metadata().data, [], metadata().image_bytes, [])
    assert benchmark(decode_head, head, [], None).metadata == metadata().data


def test_walk(benchmark: BenchmarkFixture) -> None:
    """Reading all of the metadata with our reader (trace and inspect; never during a start)."""
    image = ErofsImage(over_bytes(metadata().data))
    assert benchmark(lambda: sum(1 for _ in image.walk())) > ENTRIES
